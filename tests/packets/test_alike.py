"""What only looks like RTP: a header may, a flow does not."""

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Packet

from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, UNSPEC, Bench
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import rtp, udp

FAX = f"{UCM}:24600"
BOTH = [Role.ENFORCE, Role.BYPASS]


def udptl(number: int, data: bytes) -> bytes:
    """T.38's UDPTL: a sequence number, the primary packet with its length, no redundancy."""
    return struct.pack("!HB", number % 65536, len(data)) + data + b"\0\0"


def fax_headers(programs: Bench, role: Role, size: int) -> bytes:
    """All before the payload. Its checksum is 0, which is none; scapy takes longer than a run."""
    wire = programs.firewall.lan if role is Role.BYPASS else programs.firewall.wan
    packet = udp(FAX, PROVIDER, bytes(size))
    packet[UDP].chksum = 0
    return bytes(wire.frame(packet))[:-size]


def named(value: object) -> str:
    return value if isinstance(value, str) else ""


FAXES = [
    ("scan lines", lambda n: bytes([0xC0, 1]) + struct.pack("!Q", n * 0x9E3779B97F4A7C15 % 2**64)),
    ("the training's zeros", lambda n: b"\xc0\1" + bytes(30)),
    ("an indicator, again and again", lambda n: b"\6" + bytes(14)),
]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("what", "data"), FAXES, ids=named)
def test_a_fax_over_all_of_its_numbers(
    programs: Bench, role: Role, what: str, data: Callable[[int], bytes]
) -> None:
    """One packet is held back at most, where it begins to look like RTP."""
    verdicts = []
    headers = fax_headers(programs, role, len(udptl(0, data(0))))
    for number in range(0x7F80, 0xC080, 11):
        programs.set_learned()
        for each in range(number, number + 3):
            packet = headers + udptl(each, data(each))
            verdicts.append(programs.run(role, packet)[0])
    assert verdicts.count(SHOT) <= 1, what
    assert programs.waits() == [], "no media wait"
    counters = programs.counters()
    assert counters["passed_no_rtp"] > 1000
    assert counters.get("dropped_unidentified", 0) <= 1
    assert (programs.events(), programs.shown()) == ([], {})


def test_a_fax_both_ways_is_told_of_nowhere(programs: Bench) -> None:
    for number in range(0x8000, 0x8400):
        data = struct.pack("!HQ", 0xC001, number * 0x9E3779B97F4A7C15 % 2**64)
        answer = udp(PROVIDER, f"{PUBLIC}:24600", udptl(number, data))
        assert programs.run(Role.LEARN, answer)[0] == UNSPEC
        packet = udp(FAX, PROVIDER, udptl(number, data))
        assert programs.run(Role.BYPASS, packet)[0] == UNSPEC
    assert (programs.events(), programs.shown(), programs.rtp_counters()) == ([], {}, {})
    told = {"learned_moh", "learned_two", "moh_to_two", "two_to_moh", "consumed"}
    assert not told & programs.counters().keys()


@pytest.mark.parametrize("role", BOTH)
def test_hold_music_is_held_back_all_the_same(programs: Bench, role: Role) -> None:
    """A stream that follows in sequence is RTP; one packet lost or late is no other stream."""
    programs.set_learned()
    assert programs.send(role, 1, 2, 3, 5, 4, 6) == [SHOT] * 6
    # Another port of UCM's is another flow, whatever its SSRC and numbers are.
    other = udp(f"{UCM}:30000", PROVIDER, rtp(40000).replace(b"\0\0\0\7", b"\0\0\0\x09", 1))
    assert programs.run(role, other)[0] == SHOT
    assert programs.counters() == {"dropped_unidentified": 7}


@pytest.mark.parametrize("role", BOTH)
def test_a_new_stream_of_one_port_is_rtp_again(programs: Bench, role: Role) -> None:
    programs.set_learned()
    programs.send(role, 1, 2)
    verdicts = [
        programs.run(role, udp(f"{UCM}:24576", PROVIDER, rtp(n)[:8] + b"\0\0\1\0" + bytes(160)))[0]
        for n in (9000, 9001, 9002)
    ]
    assert verdicts == [UNSPEC, SHOT, SHOT]


ALIKE = [
    ("UCM's DNS query", udp(f"{UCM}:24600", "203.0.113.10:53", b"\x9a\xbc\1\0" + bytes(30))),
    ("NTP", udp(f"{UCM}:24600", "203.0.113.10:123", b"\xa3\0" + bytes(46))),
    ("payload type 72", udp(f"{UCM}:24600", PROVIDER, rtp(payload_type=72))),
    ("11 bytes", udp(f"{UCM}:24600", PROVIDER, rtp()[:11])),
    ("RTCP that is cut", udp(f"{UCM}:24601", PROVIDER, b"\x80\xc8\0\6" + bytes(20))),
]  # fmt: skip


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("what", "packet"), ALIKE, ids=lambda value: str(value)[:20])
def test_what_only_looks_like_rtp_is_not_dropped(
    programs: Bench, role: Role, what: str, packet: Packet
) -> None:
    programs.set_learned()
    assert programs.run(role, packet)[0] == UNSPEC, what
    assert programs.counters() == {}
    assert programs.waits() == []
