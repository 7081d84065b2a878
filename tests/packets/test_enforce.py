"""enforce: UCM's RTP at the WAN, as it leaves without NAT."""

import socket
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, UNSPEC, Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import flow, rtp, udp

HOLD = f"{PUBLIC}:4000"
MOH = PeerState(State.MOH, HOLD)
TWO = PeerState(State.TWO, f"{PUBLIC}:24600")


def music(source: str = f"{UCM}:24576", to: str = PROVIDER, **ip: Any) -> Packet:
    return udp(source, to, **ip)


def rewritten(packet: Packet) -> bytes:
    """The packet as it must leave: source and checksums anew, computed by scapy, else the same."""
    expected = packet.copy()
    expected[IP].src, expected[UDP].sport = PUBLIC, 4000
    del expected[IP].chksum
    if packet[UDP].chksum != 0:
        del expected[UDP].chksum
    return bytes(expected)


MUSIC = [
    ("G.711", music()),
    ("the lowest port", music(f"{UCM}:16384")),
    ("the highest port", music(f"{UCM}:32767")),
    ("IP options", music(options=[IPOption_NOP()] * 12)),
    ("the most IP options", music(options=[IPOption_NOP()] * 40)),
    ("TOS and DF", music(tos=0xB8, flags="DF")),
    ("TTL 1, already forwarded", music(ttl=1)),
    ("an odd length", udp(f"{UCM}:24576", PROVIDER, rtp(size=161))),
    ("one byte", udp(f"{UCM}:24576", PROVIDER, b"\x80")),
    ("no checksum", IP(src=UCM, dst="203.0.113.10")
     / UDP(sport=24576, dport=21000, chksum=0) / Raw(rtp())),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet"), MUSIC, ids=lambda value: str(value)[:30])
def test_rewrites_hold_music(programs: Bench, what: str, packet: Packet) -> None:
    programs.set_peer(PROVIDER, MOH)
    frame = programs.firewall.wan.frame(packet)
    verdict, out = programs.run(Role.ENFORCE, frame)
    assert verdict == UNSPEC, "filters after ours must see it"
    assert out[14:] == rewritten(packet), what
    assert out[:14] == bytes(frame)[:14]
    assert programs.counters() == {"rewritten": 1}
    (peer,) = programs.all_peers()
    assert (peer.out_packets, peer.out_bytes) == (1, len(packet))


def test_every_payload_sum_stays_right(programs: Bench) -> None:
    """The incremental update over all that a checksum can become, 0xffff and 0 among them."""
    for word in range(0, 0x10000, 197):
        programs.set_peer(PROVIDER, MOH)
        packet = udp(f"{UCM}:24576", PROVIDER, b"\x80\0" + word.to_bytes(2, "big"))
        assert programs.run(Role.ENFORCE, packet)[1][14:] == rewritten(packet)


@pytest.mark.parametrize("options", [[], [IPOption_NOP()] * 4])
def test_a_sum_of_zero_is_sent_as_ffff(programs: Bench, options: list[Packet]) -> None:
    """0 would mean "no checksum" (RFC 768). The word that makes it so is the sum without it."""
    programs.set_peer(PROVIDER, MOH)
    without = IP(bytes(udp(HOLD, PROVIDER, b"\x80\0\0\0")))[UDP].chksum
    payload = b"\x80\0" + without.to_bytes(2, "big")
    source = udp(f"{UCM}:24576", PROVIDER, payload, options=options)
    out = IP(programs.run(Role.ENFORCE, source)[1][14:])
    assert out[UDP].chksum == 0xFFFF
    assert bytes(out) == rewritten(source)


@pytest.mark.parametrize("options", [[], [IPOption_NOP()] * 4])
def test_a_full_sum_that_looks_like_a_partial_one(programs: Bench, options: list[Packet]) -> None:
    """It is the sum over the pseudo header by chance; a partial one would not count the payload."""
    programs.set_peer(PROVIDER, MOH)
    ends = socket.inet_aton(UCM) + socket.inet_aton(PROVIDER.split(":")[0])
    pseudo = sum_of(ends + b"\0\x11\0\x0c")  # UDP, 12 bytes
    without = IP(bytes(udp(f"{UCM}:24576", PROVIDER, b"\x80\0\0\0")))[UDP].chksum
    word = (without - pseudo) % 0xFFFF
    source = udp(f"{UCM}:24576", PROVIDER, b"\x80\0" + word.to_bytes(2, "big"), options=options)
    assert IP(bytes(source))[UDP].chksum == pseudo
    assert programs.run(Role.ENFORCE, source)[1][14:] == rewritten(source)


def sum_of(data: bytes) -> int:
    """One's complement, folded."""
    return sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)) % 0xFFFF


@pytest.mark.parametrize("layer", [IP, UDP])
def test_a_wrong_checksum_stays_wrong(programs: Bench, layer: type[Packet]) -> None:
    programs.set_peer(PROVIDER, MOH)
    packet = IP(bytes(music()))
    right = packet[layer].chksum
    packet[layer].chksum = right ^ 0x0101
    out = IP(programs.run(Role.ENFORCE, packet)[1][14:])
    assert flow(out) == (HOLD, PROVIDER)
    assert out[layer].chksum != IP(rewritten(IP(bytes(music()))))[layer].chksum


def test_answers_from_where_it_was_heard(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, "198.51.100.77:4001"))
    out = IP(programs.run(Role.ENFORCE, music())[1][14:])
    assert flow(out) == ("198.51.100.77:4001", PROVIDER)


def test_passes_two_way(programs: Bench) -> None:
    programs.set_peer(PROVIDER, TWO)
    frame = bytes(programs.firewall.wan.frame(music()))
    assert programs.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert programs.counters() == {"passed_two": 1, "passed_unnatted": 1}


UNIDENTIFIED = [
    ("nobody", None, {}),
    ("forgotten", MOH, {"age": 10.0001}),
    ("forgotten, two-way", TWO, {"age": 10.0001}),
]


@pytest.mark.parametrize(("what", "peer", "changes"), UNIDENTIFIED)
def test_drops_the_unidentified(
    programs: Bench, what: str, peer: PeerState | None, changes: dict[str, Any]
) -> None:
    programs.set_learned()
    if peer:
        programs.set_peer(PROVIDER, PeerState(peer.state, peer.public, **changes))
    assert programs.run(Role.ENFORCE, music())[0] == SHOT, what
    assert programs.counters() == {"dropped_unidentified": 1}


def test_not_forgotten_a_moment_before(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, HOLD, age=5))
    assert programs.run(Role.ENFORCE, music())[0] == UNSPEC
    assert programs.counters() == {"rewritten": 1}


def test_a_clock_behind_another_cpus_is_not_expiry(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, HOLD, age=-5))
    programs.run(Role.ENFORCE, music())
    assert programs.counters() == {"rewritten": 1}


REPORT = b"\x80\xc8\0\6" + bytes(24)
RTCP_ENDPOINT = "203.0.113.10:21001"


def test_rtcp_goes_with_its_rtp(programs: Bench) -> None:
    """Its own endpoint is silent for seconds between two reports, and forgotten meanwhile."""
    report = udp(f"{UCM}:24577", RTCP_ENDPOINT, REPORT)
    assert programs.run(Role.ENFORCE, report)[0] == SHOT
    programs.set_peer(PROVIDER, MOH)
    assert flow(IP(programs.run(Role.ENFORCE, report)[1][14:])) == (
        f"{PUBLIC}:4001", RTCP_ENDPOINT,
    )  # fmt: skip
    programs.set_peer(PROVIDER, TWO)
    frame = bytes(programs.firewall.wan.frame(report))
    assert programs.run(Role.ENFORCE, frame) == (UNSPEC, frame)


def test_rtcp_with_an_endpoint_of_its_own_goes_by_that(programs: Bench) -> None:
    programs.set_peer(PROVIDER, TWO)
    programs.set_peer(RTCP_ENDPOINT, PeerState(State.MOH, f"{PUBLIC}:4001"))
    report = udp(f"{UCM}:24577", RTCP_ENDPOINT, REPORT)
    out = IP(programs.run(Role.ENFORCE, report)[1][14:])
    assert flow(out) == (f"{PUBLIC}:4001", RTCP_ENDPOINT)


def test_rtp_one_port_above_a_peer_is_another_stream(programs: Bench) -> None:
    programs.set_peer(PROVIDER, TWO)
    assert programs.run(Role.ENFORCE, music(to=RTCP_ENDPOINT))[0] == SHOT


NOT_OURS = [
    ("another host", udp("10.10.10.11:24576", PROVIDER)),
    ("a port below the range", music(f"{UCM}:16383")),
    ("a port above the range", music(f"{UCM}:32768")),
    ("SIP", udp(f"{UCM}:5060", PROVIDER, b"INVITE sip:1@example.org SIP/2.0\r\n")),
    ("SIP from an RTP port", udp(f"{UCM}:24576", PROVIDER, b"INVITE sip:1@example.org SIP/2.0")),
    ("T.38", udp(f"{UCM}:24576", PROVIDER, b"\0\1" + bytes(30))),
    ("the byte above RTP", udp(f"{UCM}:24576", PROVIDER, b"\xc0" + bytes(171))),
    ("TCP", IP(src=UCM, dst="203.0.113.10") / TCP(sport=24576, dport=21000) / Raw(rtp())),
    ("IPv6", Ether() / IPv6() / UDP(sport=24576, dport=21000) / Raw(rtp())),
    ("a VLAN's packet", Ether() / Dot1Q(vlan=7) / music()),
    ("a branch behind an IPsec policy", music(to="192.168.20.5:24580")),
    ("multicast music", music(to="239.1.1.1:16384")),
    ("UDP length beyond the packet", IP(src=UCM, dst="203.0.113.10")
     / UDP(sport=24576, dport=21000, len=999) / Raw(rtp())),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet"), NOT_OURS, ids=lambda value: str(value)[:30])
def test_leaves_alone(programs: Bench, what: str, packet: Packet) -> None:
    programs.set_peer(PROVIDER, MOH)
    frame = bytes(packet if Ether in packet else programs.firewall.wan.frame(packet))
    assert programs.run(Role.ENFORCE, frame) == (UNSPEC, frame), what
    assert programs.counters() == {}


@pytest.mark.parametrize("ip", [{"flags": "MF"}, {"frag": 2}])
def test_fragments_pass(programs: Bench, ip: dict[str, Any]) -> None:
    programs.set_peer(PROVIDER, MOH)
    frame = bytes(programs.firewall.wan.frame(music(**ip)))
    assert programs.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert programs.counters() == {"fragments": 1}
