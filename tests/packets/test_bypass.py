"""bypass: UCM's RTP at the LAN, with the kernel's own routes and neighbours."""

from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import udp

HOLD = f"{PUBLIC}:4000"
MOH = PeerState(State.MOH, HOLD)
TWO = PeerState(State.TWO, f"{PUBLIC}:24600")


def music(to: str = PROVIDER, **ip: Any) -> Packet:
    return udp(f"{UCM}:24576", to, **ip)


def routed(packet: Packet) -> bytes:
    """As a router with our source would send it: one hop less, checksums anew by scapy."""
    expected = packet.copy()
    expected[IP].src, expected[UDP].sport = PUBLIC, 4000
    expected[IP].ttl = packet[IP].ttl - 1
    del expected[IP].chksum
    if packet[UDP].chksum != 0:
        del expected[UDP].chksum
    return bytes(expected)


@pytest.mark.parametrize(
    ("what", "packet"),
    [
        ("G.711", music()),
        ("TTL 2", music(ttl=2)),
        ("TTL 255, TOS", music(ttl=255, tos=0xB8)),
        ("no checksum", IP(src=UCM, dst="203.0.113.10")
         / UDP(sport=24576, dport=21000, chksum=0) / music()[UDP].payload),
    ],
)  # fmt: skip
def test_hold_music_goes_to_the_next_hop(programs: Bench, what: str, packet: Packet) -> None:
    programs.set_peer(PROVIDER, MOH)
    first, by_route = programs.run(Role.BYPASS, packet)
    programs.trust_hops()
    second, by_hop = programs.run(Role.BYPASS, packet)
    assert (first, second) == (REDIRECT, REDIRECT), what
    assert by_route[14:] == by_hop[14:] == routed(packet)
    # The first is left to the kernel's neighbour code, the second carries the header we kept.
    wan = programs.firewall.wan
    assert by_hop[:14] == bytes(Ether(dst=wan.mac, src=wan.firewall_mac, type=0x800))
    assert programs.counters() == {"rewritten": 2, "bypassed": 2}
    (peer,) = programs.all_peers()
    assert (peer.out_packets, peer.out_bytes) == (2, 2 * len(packet))


@pytest.mark.parametrize("word", ["hop_dst", "hop_src"])
def test_words_of_two_hops_are_none(programs: Bench, word: str) -> None:
    """The frame is left to the kernel's neighbour code, or has the right header: no mixed one."""
    programs.set_peer(PROVIDER, MOH)
    programs.run(Role.BYPASS, music())
    programs.trust_hops()
    programs.mix_hops(word)
    verdict, frame = programs.run(Role.BYPASS, music())
    wan, lan = programs.firewall.wan, programs.firewall.lan
    right = bytes(Ether(dst=wan.mac, src=wan.firewall_mac, type=0x800))
    assert verdict == REDIRECT
    assert frame[:14] in (right, bytes(Ether(dst=lan.firewall_mac, src=lan.mac, type=0x800)))


def test_two_way_goes_on_to_netfilter(programs: Bench) -> None:
    programs.set_peer(PROVIDER, TWO)
    frame = bytes(programs.firewall.lan.frame(music()))
    assert programs.run(Role.BYPASS, frame) == (UNSPEC, frame)
    assert programs.counters() == {"passed_two": 1}
    assert programs.all_peers()[0].out_packets == 1


def test_unidentified_for_the_wan_is_dropped(programs: Bench) -> None:
    assert programs.run(Role.BYPASS, music())[0] == SHOT
    assert programs.counters() == {"dropped_unidentified": 1}


def test_the_last_ttl_goes_to_the_stack(programs: Bench) -> None:
    programs.set_peer(PROVIDER, MOH)
    for ttl in (0, 1):
        frame = bytes(programs.firewall.lan.frame(music(ttl=ttl)))
        assert programs.run(Role.BYPASS, frame) == (UNSPEC, frame)
    assert programs.counters() == {"left_to_stack": 2}


def test_overheard_frames_are_not_forwarded(programs: Bench) -> None:
    """A frame for another router, seen because the interface is promiscuous."""
    programs.set_peer(PROVIDER, MOH)
    frame = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:99") / music())
    assert programs.run(Role.BYPASS, frame) == (UNSPEC, frame)
    assert programs.counters() == {}


@pytest.mark.parametrize("to", ["192.168.20.5:24580", "10.10.10.77:24580", "239.1.1.1:16384"])
def test_private_and_multicast_destinations_are_not_ours(programs: Bench, to: str) -> None:
    frame = bytes(programs.firewall.lan.frame(music(to)))
    assert programs.run(Role.BYPASS, frame) == (UNSPEC, frame)
    assert programs.counters() == {}


def test_fragments_pass(programs: Bench) -> None:
    programs.set_peer(PROVIDER, MOH)
    assert programs.run(Role.BYPASS, music(flags="MF"))[0] == UNSPEC
    assert programs.counters() == {"fragments": 1}
