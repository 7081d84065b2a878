"""The real programs against the model, on sequences of packets and time that nobody thought of.

Verdict, packet, map and counters must agree after every packet. MOH_ORACLE_SEQUENCES sets how many
sequences are tried: 12,000 by default, 3,000 in CI, where they are the same each time.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets import model
from tests.packets.bench import Bench, bench
from tests.packets.model import Model
from tests.support.firewall import GATEWAY, PUBLIC, Firewall

IN_CI = "CI" in os.environ
SEQUENCES = int(os.environ.get("MOH_ORACLE_SEQUENCES", "3000" if IN_CI else "12000"))

# Few of each, so that packets meet: what one teaches, another is sent to.
UCM_ADDRESSES = ["10.10.10.10", "10.10.10.11"]
BARE, BARE_UCM_ADDRESSES = "tun0", ["8.0.10.10", "8.0.10.11"]
PUBLIC_ADDRESSES = [PUBLIC, "198.51.100.3"]
HOST = "10.10.10.99"
# Behind an interface that is no --wan.
ELSEWHERE = "203.0.113.12"
PROVIDERS = ["203.0.113.10", "203.0.113.10", "203.0.113.10", "203.0.113.11", "8.8.8.8", ELSEWHERE]
OTHERS = ["10.10.10.99", "192.168.1.1", "172.16.0.1", "172.32.0.1", "169.254.0.1", "127.0.0.1",
          "224.0.0.5", "255.255.255.255", "0.0.0.0", "198.51.100.77", "100.64.0.1"]  # fmt: skip
UCM_PORTS = [16383, 16384, 24576, 24576, 24576, 32767, 32768]
PUBLIC_PORTS = [3999, 4000, 4000, 4000, 4001, 4002, 4005, 4006, 24576, 24576, 24577]
ANOTHERS_PORTS = [3999, 4000, 4000, 4001, 4006]
PROVIDER_PORTS = [21000, 21000, 21001]
LISTED = [IPv4Network("203.0.113.0/24"), IPv4Network("192.168.0.0/16")]

# How far time moves. No sum of these is a little less than a limit (learn's second, the patience of
# 3 s; 10, 15, 20 and 120 s), where the time that the test itself takes, or the tick that a clock is
# late, would decide.
STEPS = [*[0.0] * 12, 4.0, 6.2, 10.3, 100.0]


def packet(random: Random, inbound: bool, late: bool = True) -> bytes:
    """A frame of RTP between a provider and us; one time in three something about it is odd. Unless
    `late` is wanted, each port has a stream of its own: no packet is overtaken by one to another.
    """
    if inbound:
        source, destination = random.choice(PROVIDERS), random.choice(PUBLIC_ADDRESSES)
        sport, dport = random.choice(PROVIDER_PORTS), random.choice(PUBLIC_PORTS)
    else:
        source, destination = random.choice(UCM_ADDRESSES), random.choice(PROVIDERS)
        sport, dport = random.choice(UCM_PORTS), random.choice(PROVIDER_PORTS)
        if random.random() < 1 / 8:  # another host, at the LAN or behind NAT already
            source, sport = random.choice([HOST, PUBLIC]), random.choice(ANOTHERS_PORTS)
    # By name: what is odd, and the value that it has.
    odd: dict[str, Any] = dict([random.choice(ODDITIES)]) if random.random() < 1 / 3 else {}
    if "port" in odd:
        sport, dport = random.choice([(odd["port"], dport), (sport, odd["port"])])
    if "address" in odd:
        other = random.choice(OTHERS)
        source, destination = random.choice([(other, destination), (source, other)])

    first, second = odd.get("first byte", 0x80), odd.get("second byte", random.choice([0, 0, 200]))
    # A stream's packets follow each other, or not; RTCP has its length there: 3 is too long.
    sequence, ssrc = random.choice([1, 1, 2, 2, 3, 9]), random.choice([7, 7, 7, 8])
    ssrc = ssrc if late else dport
    header = bytes([first, second, 0, sequence]) + bytes(4) + ssrc.to_bytes(4, "big")
    payload = header + bytes(odd.get("payload", 0))
    payload = payload[: odd.get("payload end")]
    udp_length = 8 + len(payload) + odd.get("udp length", 0)
    udp = bytearray(b"".join(n.to_bytes(2, "big") for n in (sport, dport, udp_length, 0)) + payload)
    options = bytes([1]) * odd.get("options", 0)
    length = 20 + len(options) + len(udp) + odd.get("ip length", 0)
    ip = bytearray(
        bytes([odd.get("version", 4) << 4 | (5 + len(options) // 4 + odd.get("ihl", 0)), 0xB8])
        + max(0, length).to_bytes(2, "big")
        + b"\x12\x34"
        + odd.get("fragment", random.choice([0, 0x4000])).to_bytes(2, "big")
        + bytes([odd.get("ttl", 64), odd.get("protocol", 17), 0, 0])
        + IPv4Address(source).packed
        + IPv4Address(destination).packed
        + options
    )
    ip[10:12] = odd.get("ip checksum", checksum(ip))
    right = checksum(ip[12:20] + b"\0\x11" + len(udp).to_bytes(2, "big") + udp)
    udp[6:8] = odd.get("udp checksum", right if any(right) else b"\xff\xff")

    kind = odd.get("type", b"\x08\x00")
    for_us = odd.get("mac", 1)
    frame = bytes([2, 0, 0, 0, 0, for_us, 2, 0, 0, 0, 0, 9]) + kind + ip + udp
    frame = frame[: len(frame) - odd.get("cut", 0)] + bytes(odd.get("padding", 0))
    # The kernel's test run itself refuses what has no room for its type's header.
    return frame.ljust(54 if kind == b"\x86\xdd" else 34, b"\0")


ODDITIES = [
    *[("address", True)] * 6,
    *[("first byte", value) for value in (0x7F, 0xBF, 0xC0, 0x00, ord("I"))],
    *[
        ("second byte", value)
        for value in (0x80, 63, 64, 95, 96, 191, 192, 201, 207, 208, 223, 224)
    ],
    *[("payload", value) for value in (1, 159, 160)],
    *[("payload end", value) for value in (0, 1, 2, 7, 8, 11)],
    *[("port", value) for value in (1023, 1024)],
    *[("udp length", value) for value in (-13, -12, -11, -1, 1, 30000)],
    *[("options", value) for value in (4, 20, 40)],
    *[("ip length", value) for value in (-33, -13, -12, -1, 1, 30000)],
    *[("version", value) for value in (0, 5, 6)],
    *[("ihl", value) for value in (-5, -1, 1, 2, 10)],
    *[("fragment", value) for value in (0x2000, 0x6000, 0x0001, 0x1FFF, 0x8000)],
    *[("ttl", value) for value in (0, 1, 1, 1, 1, 1, 1, 1, 2, 255)],
    *[("protocol", value) for value in (0, 1, 6, 50)],
    *[("ip checksum", value) for value in (b"\0\0", b"\x12\x34", b"\xff\xff")],
    *[("udp checksum", value) for value in (b"\0\0", b"\xab\xcd", b"\xff\xff", b"\0\1")],
    *[("type", value) for value in (b"\x86\xdd", b"\x81\x00\0\7\x08\x00", b"\x08\x06")],
    *[("mac", 2)] * 2,
    *[("cut", value) for value in (1, 11, 12, 13, 20, 21)],
    *[("padding", value) for value in (1, 30)],
]


def checksum(data: bytes | bytearray) -> bytes:
    data = bytes(data) + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF - total).to_bytes(2, "big")


@dataclass(frozen=True)
class Signal:
    """What signalling says of an endpoint, since `age` seconds and by a lease in seconds; without a
    state: nothing. The kernel is told, or finds out."""

    endpoint: tuple[str, int]
    state: str | None
    source: tuple[str, int] | None
    lease: float
    is_told: bool
    age: float


def signal(random: Random) -> Signal:
    state = random.choice([None, model.MOH, model.MOH, model.TWO, model.TWO])
    source = random.choice(UCM_ADDRESSES[:1]), random.choice(UCM_PORTS)
    return Signal(
        (random.choice(PROVIDERS), random.choice(PROVIDER_PORTS)),
        state,
        None if state == model.MOH and random.random() < 1 / 2 else source,
        random.choice([600.0, 600.0, 30.0]),
        random.random() < 4 / 5,
        random.choice([0.0, 0.0, 50.0]),
    )


def step(random: Random) -> tuple[Role, bytes | Signal, float]:
    """A packet at one of the programs, or news of signalling, some time after the one before."""
    if random.random() < 1 / 8:
        return Role.LEARN, signal(random), random.choice(STEPS)
    role = random.choice(list(Role))
    return role, packet(random, inbound=role is Role.LEARN), random.choice(STEPS)


# One draw a step: hypothesis shortens sequences well, and would spend most of the time on the
# bytes of each packet otherwise.
steps = st.binary(min_size=6, max_size=6).map(lambda seed: step(Random(seed)))


def leaves_by_wan(address: IPv4Address) -> bool:
    """The test firewall's routes: all but its LAN, the DMZ, its own and broadcast addresses."""
    return not (
        address in IPv4Network("10.10.10.0/24")
        or str(address) == ELSEWHERE
        or str(address) in (PUBLIC, "198.51.100.255", "198.51.100.0", "255.255.255.255")
    )


class Pair:
    """The programs and the model, side by side."""

    unreachable = frozenset({"learn_failed", "dropped_too_big", "dropped_failed"})
    unreachable |= {  # those of test_rtp.py, test_flip.py and test_events.py
        name for name in COUNTERS if name.startswith(("rtp_", "sip_", "events_"))
    }

    def __init__(self, programs: Bench, providers: list[IPv4Network]) -> None:
        self.programs, self.providers = programs, providers
        wire = programs.firewall.lan
        self.lan_mac = bytes.fromhex(wire.firewall_mac.replace(":", ""))
        wan = programs.firewall.wan
        self.hop = bytes.fromhex((wan.mac + wan.firewall_mac).replace(":", ""))

    def start(self) -> None:
        self.begun = time.monotonic()
        self.programs.clear()
        self.model = Model(
            ucm=set(map(IPv4Address, UCM_ADDRESSES + BARE_UCM_ADDRESSES)),
            public=set(map(IPv4Address, PUBLIC_ADDRESSES)),
            providers=self.providers,
            leaves_by_wan=leaves_by_wan,
            lan_mac=self.lan_mac,
        )

    @property
    def was_held_up(self) -> bool:
        """Has so much time really passed that the shortest limit, of a tenth of a second, tells?"""
        return time.monotonic() - self.begun > 0.08

    def step(self, role: Role, frame: bytes | Signal, seconds: float) -> None:
        self.model.now += 1e-6  # each packet is later than the one before
        if isinstance(frame, Signal):
            self.pass_time(seconds)
            self.signal(frame)
            self.assert_same_state()
            return
        if frame[5] == 1:  # a frame for us; the others are for somebody else
            wire = self.programs.firewall.lan if role is Role.BYPASS else self.programs.firewall.wan
            frame = bytes.fromhex(wire.firewall_mac.replace(":", "")) + frame[6:]
        self.pass_time(seconds)
        expected = getattr(self.model, role.value)(frame)
        verdict, out = self.run(role, frame)
        assert verdict == expected[0]
        if verdict != model.SHOT:
            self.assert_same_packet(out, expected[1], verdict)
        self.assert_same_state()

    def pass_time(self, seconds: float) -> None:
        if seconds:
            self.model.now += seconds
            self.programs.age_all(seconds)

    def signal(self, news: Signal) -> None:
        address, port = news.endpoint
        source = f"{news.source[0]}:{news.source[1]}" if news.source else None
        state = State[news.state] if news.state else None
        self.programs.signal(
            f"{address}:{port}",
            state,
            source=source,
            lease=news.lease,
            age=news.age,
            told=news.is_told,
        )
        said = None
        if news.state:
            public_port = 4000 if news.state == model.MOH or not news.source else news.source[1]
            said = model.Said(
                news.state,
                (IPv4Address(PUBLIC), public_port),
                self.model.now + news.lease,
                (IPv4Address(news.source[0]), news.source[1]) if news.source else None,
                self.model.now - news.age,
            )
        self.model.signal((IPv4Address(address), port), said, news.is_told)

    def run(self, role: Role, frame: bytes) -> tuple[int, bytes]:
        return self.programs.run(role, frame)

    def assert_same_packet(self, out: bytes, expected: bytes, verdict: int) -> None:
        datagram = model.read(expected)
        if datagram and datagram.kind != "fragment":
            check = 14 + datagram.header + 6
            for at in (24, check):
                assert model.same_checksum(out[at : at + 2], expected[at : at + 2])
                out = out[:at] + expected[at : at + 2] + out[at + 2 :]
        if verdict == model.REDIRECT:
            assert out[:12] in (expected[:12], self.hop)
            out = expected[:12] + out[12:]
        assert out == expected

    def assert_same_state(self) -> None:
        assert self.programs.counters() == +self.model.counters
        found = {
            (IPv4Address(each.address), each.port): (
                each.state.name,
                (IPv4Address(each.public_address), each.public_port),
                (each.in_packets, each.in_bytes),
                (each.out_packets, each.out_bytes),
                each.expired,
            )
            for each in self.programs.all_peers()
        }
        assert found == {
            endpoint: (state, public, peer.inbound, peer.outbound, expired)
            for endpoint, peer in self.model.peers.items()
            for state, public, expired in [self.model.shown(peer)]
        }
        told = {
            f"{address}:{port}" for (address, port), peer in self.model.peers.items() if peer.told
        }
        assert set(self.programs.shown()) == told


class BarePair(Pair):
    """The same on an interface without link header: the frame is the IP packet.

    A test run takes the first 14 bytes of what it is given for an Ethernet header, and what stands
    at its type, the first half of the source address, for the protocol. So all sources are of
    8.0.0.0/16, which reads as IPv4, and providers with them. Bypass does not take such packets,
    for what stands at the destination's MAC is none of ours.
    """

    # Another host, too, would be one of 8.0.0.0/16, and no public address is.
    unreachable = Pair.unreachable | {"bypassed", "left_to_stack", "routed_elsewhere"}
    unreachable |= {"passed_anothers"}

    def step(self, role: Role, frame: bytes | Signal, seconds: float) -> None:
        if isinstance(frame, Signal):
            super().step(role, frame, seconds)
            return
        if role is Role.BYPASS or frame[12:14] != b"\x08\x00":
            return
        bare = bytearray(frame[14:].ljust(14 + 20, b"\0"))
        bare[12:14] = b"\x08\x00"
        if str(IPv4Address(bytes(bare[16:20]))) in PROVIDERS:
            bare[16:18] = b"\x08\x00"
        super().step(role, bytes(frame[:5]) + b"\2" + frame[6:14] + bytes(bare), seconds)

    def run(self, role: Role, frame: bytes) -> tuple[int, bytes]:
        verdict, out = self.programs.run(role, frame[14:], interface=BARE)
        return verdict, frame[:14] + out


@pytest.fixture(scope="module")
def routed_firewall(shared_firewall: Firewall) -> Firewall:
    shared_firewall.add_neighbour(GATEWAY, shared_firewall.wan)
    shared_firewall.add_wire("dmz", "192.0.2.1/24", "192.0.2.77")
    shared_firewall.namespace.run("ip", "route", "add", ELSEWHERE, "via", "192.0.2.77")
    return shared_firewall


@pytest.fixture(scope="module", params=["any global address", "listed providers", "no link header"])
def pair(request: pytest.FixtureRequest, routed_firewall: Firewall) -> Iterator[Pair]:
    providers = LISTED if request.param == "listed providers" else []
    values = {
        "ucm": UCM_ADDRESSES,
        "public": PUBLIC_ADDRESSES,
        "provider": list(providers),
        "max_peers": 1024,
    }
    kind: type[Pair] = Pair
    if request.param == "no link header":
        kind = BarePair
        routed_firewall.add_tun(BARE, f"{PUBLIC_ADDRESSES[1]}/32")
        values |= {"wan": BARE, "ucm": BARE_UCM_ADDRESSES}
    with bench(routed_firewall, **values) as programs, routed_firewall.namespace.entered():
        yield kind(programs, providers)


@settings(
    max_examples=-(-SEQUENCES // 3),
    deadline=None,
    derandomize=IN_CI,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    database=None,
)
@given(sequence=st.lists(steps, min_size=1, max_size=8))
def test_programs_do_what_the_model_does(
    pair: Pair, sequence: list[tuple[Role, bytes | Signal, float]]
) -> None:
    pair.start()
    try:
        for role, frame, seconds in sequence:
            pair.step(role, frame, seconds)
    except AssertionError:
        if pair.was_held_up:
            reject()
        raise


def test_the_sequences_reach_everything(pair: Pair) -> None:
    """The generator's own check: in 2,000 sequences it reaches every counter that it can."""
    random = Random(1)
    reached: set[str] = set()
    wanted = set(COUNTERS) - pair.unreachable
    for _ in range(2000):
        if reached == wanted:
            return
        pair.start()
        try:
            for _ in range(8):
                pair.step(*step(random))
        except AssertionError:
            if not pair.was_held_up:
                raise
        reached.update(pair.model.counters)
    assert reached == wanted
