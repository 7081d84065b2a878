"""Each program on each of its paths, by BPF_PROG_TEST_RUN, beside an empty program.

A repeated test run is given the frame that the run before has left. So that it takes the same path
each time, the peer here was heard to send to UCM's own address and port: the source that hold
music is given is the one that it has. The work is the same, for no path asks whether they differ.
The TTL ends after 255 hops, so runs of bypass are short, and many.

Three paths change the peers and are run once a time, on peers made for each run, after others that
warm the caches: an endpoint that is new, a peer whose next hop is to be looked up (at 50 packets/s,
every fifth packet's), and one whose whole route is (once in half a second).

So is a hold that is flipped, after the same packet as it is then, which is read as often and left.
"""

import ctypes
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.libbpf import ProgramInfo
from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.bench import native
from tests.bench.contenders import LIFETIME
from tests.bench.limits import Limits, limits
from tests.packets import test_flip as sip
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState, bench, run_program
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.wire import Wire, udp

_TTL = 255
_REPEAT = 200
_RENEWED = "MOH, next hop looked up"
_FLIP = ", --flip-hold"

MOH_PEER, TWO_PEER, STRANGER = PROVIDER, "203.0.113.11:21000", "203.0.113.12:21000"
UCM_ENDPOINT = f"{UCM}:24576"
OTHER_HOST = "10.10.10.99:24576"


@dataclass(frozen=True)
class Way:
    """A program, a packet, and the verdict that tells that it went the way that is meant."""

    role: Role
    what: str
    packet: Packet
    verdict: int
    kind: str  # of a goal: not ours, TWO, rewritten; or none
    once: bool = False
    flips: bool = False  # with --flip-hold

    @property
    def name(self) -> str:
        return f"{self.role}{_FLIP * self.flips}: {self.what}"


def _out(source: str, destination: str) -> Packet:
    return udp(source, destination, ttl=_TTL)


def _out_tcp(port: int) -> Packet:
    return IP(src=PUBLIC, dst=sip.PROVIDER) / TCP(sport=40000, dport=port) / (b"x" * 500)


_CALL, _HOLD = sip.message(sip.CALL), sip.message(sip.HOLD)
_FLIPPED = "SIP, a hold flipped"

PATHS = [
    Way(Role.LEARN, "no IP", Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(), UNSPEC, "not ours"),
    Way(Role.LEARN, "to another address", udp(PROVIDER, "192.0.2.7:4000"), UNSPEC, "not ours"),
    Way(Role.LEARN, "MOH, known", udp(MOH_PEER, f"{PUBLIC}:4000"), SHOT, ""),
    Way(Role.LEARN, "MOH, new", udp(STRANGER, f"{PUBLIC}:4000"), SHOT, "", once=True),
    Way(Role.LEARN, "TWO, known", udp(TWO_PEER, f"{PUBLIC}:24576"), UNSPEC, "TWO"),
    Way(Role.BYPASS, "another host's", _out(OTHER_HOST, PROVIDER), UNSPEC, "not ours"),
    Way(Role.BYPASS, "UCM's, no RTP port", _out(f"{UCM}:5060", PROVIDER), UNSPEC, "not ours"),
    Way(Role.BYPASS, "MOH", _out(UCM_ENDPOINT, MOH_PEER), REDIRECT, "rewritten"),
    Way(Role.BYPASS, _RENEWED, _out(UCM_ENDPOINT, MOH_PEER), REDIRECT, "", once=True),
    Way(Role.BYPASS, "MOH, route looked up", _out(UCM_ENDPOINT, MOH_PEER), REDIRECT, "", once=True),
    Way(Role.BYPASS, "TWO", _out(UCM_ENDPOINT, TWO_PEER), UNSPEC, "TWO"),
    Way(Role.BYPASS, "unidentified", _out(UCM_ENDPOINT, STRANGER), SHOT, ""),
    Way(Role.ENFORCE, "NATed already", _out(f"{PUBLIC}:24576", PROVIDER), UNSPEC, "not ours"),
    Way(Role.ENFORCE, "MOH", _out(UCM_ENDPOINT, MOH_PEER), UNSPEC, "rewritten"),
    Way(Role.ENFORCE, "TWO", _out(UCM_ENDPOINT, TWO_PEER), UNSPEC, "TWO"),
    Way(Role.ENFORCE, "unidentified", _out(UCM_ENDPOINT, STRANGER), SHOT, ""),
    # Media are told apart before SIP is thought of; other TCP is, by its ports.
    Way(Role.LEARN, "TWO, known", udp(TWO_PEER, f"{PUBLIC}:24576"), UNSPEC, "", flips=True),
    Way(Role.ENFORCE, "MOH", _out(UCM_ENDPOINT, MOH_PEER), UNSPEC, "", flips=True),
    Way(Role.ENFORCE, "no SIP", _out_tcp(80), UNSPEC, "", flips=True),
    Way(Role.ENFORCE, "SIP, a call", sip.out_udp(_CALL), UNSPEC, "", flips=True),
    Way(Role.ENFORCE, _FLIPPED, sip.out_udp(_HOLD), UNSPEC, "", once=True, flips=True),
]


class Programs:
    """moh_ebpf's programs and the empty one, for packets of one firewall."""

    def __init__(self, fw: Firewall, ours: Bench, flipping: Bench, limit: Limits) -> None:
        self._fw, self._limit = fw, limit
        self._with = {False: ours, True: flipping}  # --flip-hold
        self._numbers = itertools.count()
        unidentified = _out(UCM_ENDPOINT, STRANGER)
        self._warming = bytes(fw.lan.frame(unidentified))  # to learn, nothing that it learns from

    def frame(self, path: Way) -> bytes:
        wire = self._wire(path)
        return bytes(path.packet if Ether in path.packet else wire.frame(path.packet))

    def _wire(self, path: Way) -> Wire:
        return self._fw.lan if path.role is Role.BYPASS else self._fw.wan

    def samples(self, path: Way, frame: bytes) -> tuple[float, float]:
        """ns of one run of the empty program and of this one, with the test run's own cost."""
        ours = self._with[path.flips]
        ifindex = ours.ifindex[self._wire(path).interface]
        repeat = 1 if path.once else _REPEAT
        empty = run_program(self._limit.fd["empty"], frame, ifindex, repeat)
        if path.what == "MOH, new":
            frame = self._of_a_new_endpoint(frame)
        _set_peers(ours)
        fd = ours.programs[path.role]
        if not path.once or path.what == _RENEWED:
            run_program(fd, frame, ifindex)  # a peer that was set has no next hop yet
        if path.what == _RENEWED:
            ours.age_all(0.15)  # past the next hop's life, mostly within the route's period
        if path.once:
            warming = frame if path.what == _FLIPPED else self._warming
            run_program(fd, warming, ifindex, _REPEAT)
        run = run_program(fd, frame, ifindex, repeat)
        assert run.verdict == path.verdict, f"{path.name}: {run.verdict}"
        assert path.what != _FLIPPED or b"a=sendrecv" in run.frame
        return empty.ns, run.ns

    def _of_a_new_endpoint(self, frame: bytes) -> bytes:
        """The same from 11.0.0.0 and up."""
        number = next(self._numbers)
        return frame[:26] + (0x0B000000 + number).to_bytes(4, "big") + frame[30:]

    def instructions(self) -> dict[str, dict[str, int]]:
        return {
            f"{role}{_FLIP * flips}": _instructions(fd)
            for flips, ours in self._with.items()
            for role, fd in ours.programs.items()
        }


def _set_peers(ours: Bench) -> None:
    """Known to readers, who are told no more of a packet to them."""
    for endpoint, state in ((MOH_PEER, State.MOH), (TWO_PEER, State.TWO)):
        ours.set_peer(endpoint, PeerState(state, UCM_ENDPOINT, told=True, sent=True))
    ours.set_learned()  # nothing is stale, so that what is not identified is dropped


def _instructions(fd: int) -> dict[str, int]:
    """BPF instructions as the kernel runs them, bytes of machine code, the verifier's work."""
    info = ProgramInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    libbpf.call("bpf_obj_get_info_by_fd", fd, ctypes.byref(info), ctypes.byref(length))
    return {
        "instructions": info.xlated_prog_len // 8,
        "machine_code_bytes": info.jited_prog_len,
        "verified": fdinfo(fd).get("verified_insns", 0),
    }


def fdinfo(fd: int) -> dict[str, int]:
    """The numbers that the kernel shows of a descriptor."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    pairs = (line.split(":") for line in lines)
    return {name: int(value) for name, value in pairs if value.strip().isdecimal()}


@contextmanager
def programs() -> Iterator[Programs]:
    with (
        firewall(masquerade=False) as fw,
        limits(fw) as limit,
        bench(fw, timeout=LIFETIME, patience="never") as ours,
        bench(fw, timeout=LIFETIME, patience="never", flip_hold=True) as flipping,
        fw.namespace.entered(),
    ):
        yield Programs(fw, ours, flipping, limit)


def measure(rounds: int) -> dict[str, Any]:
    """ns of each path and of the empty program beside it, so many samples of each."""
    found: dict[str, Any] = {
        path.name: {"kind": path.kind, "empty": [], "ns": []} for path in PATHS
    }
    with programs() as made, _on_the_measured_cpu():
        frames = {path.name: made.frame(path) for path in PATHS}
        for _, path in itertools.product(range(rounds), PATHS):
            empty, ns = made.samples(path, frames[path.name])
            found[path.name]["empty"].append(empty)
            found[path.name]["ns"].append(ns)
        return {"paths": found, "instructions": made.instructions()}


@contextmanager
def _on_the_measured_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {native.CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
