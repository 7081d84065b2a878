"""learn: what an inbound packet teaches, and what becomes of it."""

from typing import Any

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, UNSPEC, Bench, PeerState, bench
from tests.support.firewall import PROVIDER, PUBLIC, firewall
from tests.support.wire import rtp, udp

MOH_PEER = ("MOH", f"{PUBLIC}:4000")
TWO_PEER = ("TWO", f"{PUBLIC}:24600")


def hold(**ip: Any) -> Packet:
    return udp(PROVIDER, f"{PUBLIC}:4000", **ip)


TEACHES = [
    ("RTP to the phantom port", hold(), SHOT, MOH_PEER),
    ("RTP to another port", udp(PROVIDER, f"{PUBLIC}:24600"), UNSPEC, TWO_PEER),
    ("a port below the phantom", udp(PROVIDER, f"{PUBLIC}:3999"), UNSPEC,
     ("TWO", f"{PUBLIC}:3999")),
    ("the phantom port of RTCP", udp(PROVIDER, f"{PUBLIC}:4001"), SHOT, ("MOH", f"{PUBLIC}:4001")),
    ("that of video", udp(PROVIDER, f"{PUBLIC}:4002"), SHOT, ("MOH", f"{PUBLIC}:4002")),
    ("that of data's RTCP", udp(PROVIDER, f"{PUBLIC}:4005"), SHOT, ("MOH", f"{PUBLIC}:4005")),
    ("a port above them", udp(PROVIDER, f"{PUBLIC}:4006"), UNSPEC, ("TWO", f"{PUBLIC}:4006")),
    ("an endpoint of the lowest port", udp("203.0.113.10:1024", f"{PUBLIC}:1024"), UNSPEC,
     ("TWO", f"{PUBLIC}:1024")),
    ("IP options", hold(options=[IPOption_NOP()] * 8), SHOT, MOH_PEER),
    ("the most IP options", hold(options=[IPOption_NOP()] * 40), SHOT, MOH_PEER),
    ("padding, marker, CSRC", udp(PROVIDER, f"{PUBLIC}:4000", b"\xbf\xff" + bytes(200)), SHOT,
     MOH_PEER),
    ("a keepalive without payload", udp(PROVIDER, f"{PUBLIC}:4000", rtp(size=0)), SHOT, MOH_PEER),
    *[(f"payload type {number}", udp(PROVIDER, f"{PUBLIC}:4000", rtp(payload_type=number)), SHOT,
       MOH_PEER) for number in (13, 63, 96, 127, 128, 191, 224, 255)],
    ("no UDP checksum", IP(bytes(IP(src="203.0.113.10", dst=PUBLIC)
     / UDP(sport=21000, dport=4000, chksum=0) / Raw(rtp()))), SHOT, MOH_PEER),
    ("TTL 1, for the firewall is the end", hold(ttl=1), SHOT, MOH_PEER),
    ("DF", hold(flags="DF"), SHOT, MOH_PEER),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet", "verdict", "peer"), TEACHES, ids=lambda v: str(v)[:40])
def test_teaches(
    programs: Bench, what: str, packet: Packet, verdict: int, peer: tuple[str, str]
) -> None:
    assert programs.run(Role.LEARN, packet)[0] == verdict, what
    assert programs.peers() == {packet_source(packet): peer}
    assert programs.counters() == ({"consumed": 1} if verdict == SHOT else {})
    (seen,) = programs.all_peers()
    assert (seen.in_packets, seen.in_bytes) == (1, packet[IP].len or len(packet))
    assert (seen.out_packets, seen.out_bytes) == (0, 0)


def packet_source(packet: Packet) -> str:
    return f"{packet[IP].src}:{packet[UDP].sport}"


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
    *[(f"DNS {id:#x}", IP(src="203.0.113.10", dst=PUBLIC) / UDP(sport=53, dport=port) / DNS(id=id))
      for id in (0x1234, 0x9ABC, 0x80C8) for port in (33333, 4000)],
    ("NTP", udp("203.0.113.10:123", f"{PUBLIC}:4000", b"\xa4\1" + bytes(46))),
    ("IKE", udp("203.0.113.10:500", f"{PUBLIC}:4000", b"\x9a\x80" + bytes(90))),
    ("QUIC", udp("203.0.113.10:443", f"{PUBLIC}:24600", b"\xb2\0" + bytes(40))),
    ("a port below 1024", udp("203.0.113.10:1023", f"{PUBLIC}:24600")),
    ("to a port below 1024", udp(PROVIDER, f"{PUBLIC}:1023")),
    ("11 bytes", udp(PROVIDER, f"{PUBLIC}:4000", rtp()[:11])),
    *[(f"payload type {number}", udp(PROVIDER, f"{PUBLIC}:4000", rtp(payload_type=number)))
      for number in (64, 71, 72, 79, 80, 95, 192, 199, 208, 223)],
    ("RTCP that is cut", udp(PROVIDER, f"{PUBLIC}:4001", b"\x80\xc8\0\6" + bytes(23))),
    ("7 bytes of RTCP", udp(PROVIDER, f"{PUBLIC}:4001", b"\x80\xcb\0\0" + bytes(3))),
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
def test_leaves_alone(programs: Bench, what: str, packet: Packet) -> None:
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
def test_fragments_teach_nothing(programs: Bench, what: str, packet: Packet) -> None:
    assert programs.run(Role.LEARN, packet)[0] == UNSPEC, what
    assert (programs.peers(), programs.counters()) == ({}, {"fragments": 1})


RTCP = [
    ("a sender report", b"\x80\xc8\0\6" + bytes(24)),
    ("with a trailer, as SRTCP has", b"\x81\xc9\0\1" + bytes(18)),
    ("a report of nothing", b"\x80\xc9\0\1" + bytes(4)),
    ("the last type", b"\x80\xcf\0\2" + bytes(8)),
]


@pytest.mark.parametrize(("what", "payload"), RTCP, ids=lambda value: str(value)[:30])
def test_rtcp_makes_no_peer(programs: Bench, what: str, payload: bytes) -> None:
    for port, verdict in ((4001, SHOT), (4000, SHOT), (24601, UNSPEC)):
        packet = udp("203.0.113.10:21001", f"{PUBLIC}:{port}", payload)
        assert programs.run(Role.LEARN, packet)[0] == verdict, what
    assert (programs.peers(), programs.counters()) == ({}, {"consumed": 2})


def two(port: int = 24600, sequence: int = 1) -> Packet:
    return udp(PROVIDER, f"{PUBLIC}:{port}", rtp(sequence))


def moh(sequence: int = 1) -> Packet:
    return udp(PROVIDER, f"{PUBLIC}:4000", rtp(sequence))


def test_state_changes_with_the_first_packet(programs: Bench) -> None:
    for sequence in (1, 2):
        programs.run(Role.LEARN, moh(sequence))
    for packet, peer in [(two(), TWO_PEER), (two(), TWO_PEER), (hold(), MOH_PEER)]:
        programs.run(Role.LEARN, packet)
        assert programs.peers() == {PROVIDER: peer}
    assert programs.counters() == {
        "learned_moh": 1, "moh_to_two": 1, "two_to_moh": 1, "consumed": 3,
    }  # fmt: skip
    assert programs.all_peers()[0].in_packets == 5


def test_a_new_port_in_a_call_is_no_new_state(programs: Bench) -> None:
    programs.run(Role.LEARN, two())
    (before,) = programs.all_peers()
    programs.run(Role.LEARN, two(24602))
    (after,) = programs.all_peers()
    assert after.public_port == 24602
    assert after.since >= before.since
    assert programs.counters() == {}


def test_forgotten_endpoint_is_learned_anew(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000", age=10.001))
    programs.run(Role.LEARN, two())
    (peer,) = programs.all_peers()
    assert (peer.state, peer.in_packets, peer.expired) == (State.TWO, 1, False)
    assert peer.since < 10


@pytest.mark.parametrize(
    ("config", "last"),
    [({"port": 16380}, 16383), ({"port": 16382}, 16383), ({"port": 65534}, 65535)],
)
def test_phantom_ports_as_far_as_rtp_leaves_them(config: dict[str, Any], last: int) -> None:
    with firewall(masquerade=False) as own, bench(own, **config) as programs:
        for port in (config["port"], last):
            assert programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:{port}"))[0] == SHOT
        assert programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:{last + 1 & 0xFFFF}"))[0] == UNSPEC


def test_endpoints_are_told_apart_by_port_and_by_address(programs: Bench) -> None:
    others = ["203.0.113.10:21002", "203.0.113.11:21000"]
    programs.run(Role.LEARN, hold())
    for endpoint in others:
        programs.run(Role.LEARN, udp(endpoint, f"{PUBLIC}:24600"))
    assert programs.peers() == {PROVIDER: MOH_PEER, **dict.fromkeys(others, TWO_PEER)}
