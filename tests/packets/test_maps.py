"""The sizes of the maps: room for what is asked for, whatever the kernel and its CPUs."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from moh_ebpf.attach import compiler
from moh_ebpf.registry.record import Role
from tests.packets.bench import Bench, bench
from tests.support.firewall import PUBLIC, Firewall
from tests.support.wire import udp

PEERS = 128


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This process on one CPU, after each of the others has been free to take elements."""
    cpus = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


def endpoints(network: int, count: int) -> list[str]:
    return [f"198.18.{network}.{n}:{20000 + n}" for n in range(1, count + 1)]


def frames(bench: Bench, network: int, count: int) -> list[bytes]:
    """RTP to the phantom port from so many endpoints."""
    wire = bench.firewall.wan
    return [
        bytes(wire.frame(udp(source, f"{PUBLIC}:4000"))) for source in endpoints(network, count)
    ]


def hear(bench: Bench, heard: list[bytes]) -> None:
    for frame in heard:
        bench.run(Role.LEARN, frame)


@pytest.mark.usefixtures("one_cpu")
@pytest.mark.parametrize(("count", "lost"), [(PEERS * 3 // 4, 0), (PEERS, 2)])
def test_max_peers_live_ones_stay(shared_firewall: Firewall, count: int, lost: int) -> None:
    """As many as --max-peers says, while each other CPU holds back elements of the map, and while
    sources come that speak once and no more. (The kernel's LRU is no exact one: in a full map it
    may take one that has just been used.)"""
    first, *others = sorted(os.sched_getaffinity(0))
    with bench(shared_firewall, max_peers=PEERS) as programs:
        live, spoofed = frames(programs, 0, count), frames(programs, 1, 200)
        for cpu, frame in zip(others, frames(programs, 2, len(others)), strict=True):
            os.sched_setaffinity(0, {cpu})
            hear(programs, [frame])
        os.sched_setaffinity(0, {first})
        for _ in range(3):
            hear(programs, live)
        for at in range(0, len(spoofed), 8):
            hear(programs, spoofed[at : at + 8])
            hear(programs, live)
        heard = {each.endpoint: each.in_packets for each in programs.all_peers()}
        times = 3 + len(spoofed) // 8
        stayed = [each for each in endpoints(0, count) if heard.get(each) == times]
        assert len(stayed) >= count - lost, "live ones were evicted"


@pytest.mark.parametrize("page", [4 << 10, 16 << 10, 64 << 10, 1 << 20])
def test_the_ring_of_events_is_as_large_whatever_the_page(
    shared_firewall: Firewall, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """At least a page, which is the least that the kernel takes."""
    monkeypatch.setattr(compiler, "mmap", SimpleNamespace(PAGESIZE=page))
    with bench(shared_firewall) as programs:
        ring = programs.loaded.maps.opened["events"]
        assert ring.max_entries == max(256 << 10, page)
