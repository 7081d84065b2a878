"""learn: what an inbound packet teaches, and what becomes of it."""

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from moh_ebpf.layout import State
from moh_ebpf.registry import Role
from tests.packets.bench import SHOT, UNSPEC, Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC
from tests.support.wire import rtp, udp

MOH_PEER = ("MOH", f"{PUBLIC}:4000")
TWO_PEER = ("TWO", f"{PUBLIC}:24600")


def hold(**ip: object):
    return udp(PROVIDER, f"{PUBLIC}:4000", **ip)


TEACHES = [
    ("RTP to the phantom port", hold(), SHOT, MOH_PEER),
    ("its RTCP, sender report", udp(PROVIDER, f"{PUBLIC}:4001", b"\x80\xc8\0\6" + bytes(24)), SHOT,
     ("MOH", f"{PUBLIC}:4001")),
    ("RTP to another port", udp(PROVIDER, f"{PUBLIC}:24600"), UNSPEC, TWO_PEER),
    ("a port below the phantom", udp(PROVIDER, f"{PUBLIC}:3999"), UNSPEC,
     ("TWO", f"{PUBLIC}:3999")),
    ("a port above its RTCP", udp(PROVIDER, f"{PUBLIC}:4002"), UNSPEC, ("TWO", f"{PUBLIC}:4002")),
    ("IP options", hold(options=[IPOption_NOP()] * 8), SHOT, MOH_PEER),
    ("the most IP options", hold(options=[IPOption_NOP()] * 40), SHOT, MOH_PEER),
    ("padding, marker, CSRC", udp(PROVIDER, f"{PUBLIC}:4000", b"\xbf\xff" + bytes(200)), SHOT,
     MOH_PEER),
    ("one byte of payload", udp(PROVIDER, f"{PUBLIC}:4000", b"\x80"), SHOT, MOH_PEER),
    ("no UDP checksum", IP(bytes(IP(src="203.0.113.10", dst=PUBLIC)
     / UDP(sport=21000, dport=4000, chksum=0) / Raw(rtp()))), SHOT, MOH_PEER),
    ("TTL 1, for the firewall is the end", hold(ttl=1), SHOT, MOH_PEER),
    ("DF", hold(flags="DF"), SHOT, MOH_PEER),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet", "verdict", "peer"), TEACHES, ids=lambda v: str(v)[:40])
def test_teaches(programs: Bench, what: str, packet, verdict: int, peer) -> None:
    assert programs.run(Role.LEARN, packet)[0] == verdict, what
    assert programs.peers() == {PROVIDER: peer}
    learned = f"learned_{peer[0].lower()}"
    consumed = {"consumed": 1} if verdict == SHOT else {}
    assert programs.counters() == {learned: 1, **consumed}
    (seen,) = programs.snapshot().peers
    assert (seen.in_packets, seen.in_bytes) == (1, packet[IP].len or len(packet))
    assert (seen.out_packets, seen.out_bytes) == (0, 0)


def truncated(length: int) -> bytes:
    """An Ethernet frame cut after so many bytes."""
    return bytes(Ether(type=0x800) / hold())[:length]


NOT_OURS = [
    ("SIP", udp("203.0.113.10:5060", f"{PUBLIC}:5060", b"INVITE sip:1@example.org SIP/2.0\r\n")),
    ("SIP to the phantom port", udp(PROVIDER, f"{PUBLIC}:4000", b"OPTIONS sip:a SIP/2.0\r\n")),
    ("STUN", udp(PROVIDER, f"{PUBLIC}:4000", b"\0\1\0\0\x21\x12\xa4\x42" + bytes(12))),
    ("DTLS", udp(PROVIDER, f"{PUBLIC}:4000", b"\x16\xfe\xff" + bytes(40))),
    ("T.38", udp(PROVIDER, f"{PUBLIC}:4000", b"\0\1" + bytes(30))),
    ("the byte below RTP", udp(PROVIDER, f"{PUBLIC}:4000", b"\x7f" + bytes(171))),
    ("the byte above RTP", udp(PROVIDER, f"{PUBLIC}:4000", b"\xc0" + bytes(171))),
    ("no payload", udp(PROVIDER, f"{PUBLIC}:4000", b"")),
    ("DNS", IP(src="203.0.113.10", dst=PUBLIC) / UDP(sport=53, dport=40000) / DNS(id=0x1234)),
    ("another destination", udp(PROVIDER, "198.51.100.3:4000")),
    ("TCP", IP(src="203.0.113.10", dst=PUBLIC) / TCP(sport=21000, dport=4000) / Raw(rtp())),
    ("ICMP", IP(src="203.0.113.10", dst=PUBLIC) / ICMP() / Raw(rtp())),
    ("a private source", udp("192.168.7.7:21000", f"{PUBLIC}:4000")),
    ("a 10/8 source", udp("10.1.2.3:21000", f"{PUBLIC}:4000")),
    ("a 172.16/12 source", udp("172.31.2.3:21000", f"{PUBLIC}:4000")),
    ("a loopback source", udp("127.0.0.1:21000", f"{PUBLIC}:4000")),
    ("a link-local source", udp("169.254.1.1:21000", f"{PUBLIC}:4000")),
    ("a multicast source", udp("224.0.0.5:21000", f"{PUBLIC}:4000")),
    ("a source of nobody", udp("0.0.0.0:21000", f"{PUBLIC}:4000")),
    ("UDP length beyond the packet", IP(src="203.0.113.10", dst=PUBLIC)
     / UDP(sport=21000, dport=4000, len=999) / Raw(rtp())),
    ("UDP length without payload", IP(src="203.0.113.10", dst=PUBLIC)
     / UDP(sport=21000, dport=4000, len=8) / Raw(rtp())),
    ("UDP length below its header", IP(src="203.0.113.10", dst=PUBLIC)
     / UDP(sport=21000, dport=4000, len=7) / Raw(rtp())),
    ("IP length beyond the frame", hold(len=999)),
    ("IP length of the header alone", hold(len=20)),
    ("IP length below its header", hold(len=19)),
    ("IP version 5", hold(version=5)),
    ("ihl below 5", hold(ihl=4)),
    ("ihl beyond the frame", IP(src="203.0.113.10", dst=PUBLIC, ihl=15, proto=17) / Raw(bytes(12))),
    ("IPv6", Ether() / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(dport=4000) / Raw(rtp())),
    ("ARP", Ether() / ARP()),
    ("a VLAN's packet", Ether() / Dot1Q(vlan=10) / hold()),
    *[(f"cut to {length} bytes", truncated(length)) for length in (34, 35, 41, 42)],
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet"), NOT_OURS, ids=lambda value: str(value)[:30])
def test_leaves_alone(programs: Bench, what: str, packet) -> None:
    wire = programs.firewall.wan
    frame = (
        packet
        if isinstance(packet, bytes)
        else bytes(packet if Ether in packet else wire.frame(packet))
    )
    assert programs.run(Role.LEARN, frame) == (UNSPEC, frame), what
    assert programs.peers() == {}
    assert programs.counters() == {}


@pytest.mark.parametrize(
    ("what", "packet"),
    [
        ("the first fragment", hold(flags="MF")),
        ("a later fragment", hold(frag=3)),
        ("the last but one", hold(flags="MF", frag=3)),
    ],
)
def test_fragments_teach_nothing(programs: Bench, what: str, packet) -> None:
    assert programs.run(Role.LEARN, packet)[0] == UNSPEC, what
    assert (programs.peers(), programs.counters()) == ({}, {"fragments": 1})


def test_state_changes_with_the_first_packet(programs: Bench) -> None:
    two = udp(PROVIDER, f"{PUBLIC}:24600")
    for packet, peer in [(hold(), MOH_PEER), (two, TWO_PEER), (two, TWO_PEER), (hold(), MOH_PEER)]:
        programs.run(Role.LEARN, packet)
        assert programs.peers() == {PROVIDER: peer}
    assert programs.counters() == {
        "learned_moh": 1, "moh_to_two": 1, "two_to_moh": 1, "consumed": 2,
    }  # fmt: skip
    assert programs.snapshot().peers[0].in_packets == 4


def test_a_new_port_in_a_call_is_no_new_state(programs: Bench) -> None:
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24600"))
    (before,) = programs.snapshot().peers
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24602"))
    (after,) = programs.snapshot().peers
    assert after.public_port == 24602
    assert after.since >= before.since
    assert programs.counters() == {"learned_two": 1}


def test_forgotten_endpoint_is_learned_anew(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000", age=10.001))
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24600"))
    assert programs.counters() == {"learned_two": 1}  # not moh_to_two
    (peer,) = programs.snapshot().peers
    assert (peer.in_packets, peer.expired) == (1, False)
    assert peer.since < 10


def test_endpoints_are_told_apart_by_port_and_by_address(programs: Bench) -> None:
    others = ["203.0.113.10:21002", "203.0.113.11:21000"]
    programs.run(Role.LEARN, hold())
    for endpoint in others:
        programs.run(Role.LEARN, udp(endpoint, f"{PUBLIC}:24600"))
    assert programs.peers() == {PROVIDER: MOH_PEER, **dict.fromkeys(others, TWO_PEER)}
