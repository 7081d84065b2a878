"""What is heard of what comes in, on real interfaces."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.packet import Raw

from moh_ebpf.kernel.capture import Capture, Segment
from tests.support.firewall import PROVIDER, PUBLIC, Firewall
from tests.support.waiting import until
from tests.support.wire import udp

PEER = PROVIDER.partition(":")[0]
TEXT = bytes(range(256)) * 12


@pytest.fixture
def capture(fw: Firewall) -> Iterator[Capture]:
    with fw.namespace.entered(), closing(Capture([5060, 5070])) as made:
        yield made


def heard(capture: Capture, count: int) -> list[Segment]:
    found: list[Segment] = []

    def enough() -> bool:
        while each := capture.read():
            found.append(each)
        return len(found) >= count

    until("it is heard", enough)
    return found


def test_ports_and_protocols(fw: Firewall, capture: Capture) -> None:
    fw.wan.send(
        udp(f"{PEER}:5060", f"{PUBLIC}:9", b"one"),
        udp(f"{PEER}:9", f"{PUBLIC}:5070", b"two"),
        udp(f"{PEER}:9", f"{PUBLIC}:5061", b"another's"),
        IP(src=PEER, dst=PUBLIC, options=b"\1\1\1\1")
        / TCP(sport=7, dport=5060, seq=5, flags="S", options=[("MSS", 9)]) / Raw(b"three"),
        IP(src=PEER, dst=PUBLIC) / TCP(sport=7, dport=5061, seq=5) / Raw(b"another's"),
        IP(src=PEER, dst=PUBLIC) / TCP(sport=7, dport=5060, seq=9, flags="FA") / Raw(b"four"),
    )  # fmt: skip
    found = heard(capture, 4)
    assert [each.data for each in found] == [b"one", b"two", b"three", b"four"]
    assert [each.is_tcp for each in found] == [False, False, True, True]
    assert [(each.sequence, each.begins, each.ends) for each in found[2:]] == [
        (5, True, False),
        (9, False, True),
    ]
    assert capture.read() is None


def test_fragments_come_as_a_whole(fw: Firewall, capture: Capture) -> None:
    whole = IP(src=PEER, dst=PUBLIC, id=77) / UDP(sport=5060, dport=5060) / Raw(TEXT)
    first, *others = fragment(whole, fragsize=800)
    fw.wan.send(*others, first, udp(f"{PEER}:5060", f"{PUBLIC}:5060", b"after"))
    assert [each.data for each in heard(capture, 2)] == [TEXT, b"after"]


def test_what_leaves_is_not_heard(fw: Firewall, capture: Capture) -> None:
    fw.lan.send(udp("10.10.10.10:5060", f"{PEER}:5060", b"through"))
    until("it has left", fw.wan.sent)
    assert [each.interface for each in heard(capture, 1)] == ["lan"]
    assert capture.read() is None


def test_by_which_interface_it_came_in(fw: Firewall, capture: Capture) -> None:
    fw.lan.send(udp("10.10.10.10:5060", "10.10.10.1:5060", b"of the LAN"))
    fw.wan.send(udp(f"{PEER}:5060", f"{PUBLIC}:5060", b"of the WAN"))
    assert [(each.data, each.interface, each.time) for each in heard(capture, 2)] == [
        (b"of the LAN", "lan", 0),
        (b"of the WAN", "wan", 0),
    ]


def test_what_this_machine_sends(fw: Firewall) -> None:
    """And nothing that comes in; with the time, if that is asked for."""
    with (
        fw.namespace.entered(),
        closing(Capture([5060], outgoing=True)) as capture,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as proxy,
    ):
        capture.stamp()
        before = time.time_ns()
        proxy.bind(("10.10.10.1", 5060))
        fw.lan.send(udp("10.10.10.10:5060", "10.10.10.1:5060", b"in"))
        proxy.sendto(b"elsewhere", (PEER, 5060))
        proxy.sendto(TEXT, ("10.10.10.10", 5060))
        elsewhere, found = heard(capture, 2)
        assert (elsewhere.data, elsewhere.interface) == (b"elsewhere", "wan")
        assert (found.data, found.interface) == (TEXT, "lan")
        assert before <= found.time <= time.time_ns()
        assert capture.read() is None
