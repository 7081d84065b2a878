"""The IP header is looked for in each packet, as on interfaces whose kind does not tell its place.

A test run has the network header at byte 14, whatever the packet is: what stands elsewhere in it
must not mislead. tests/netns/test_links.py has the other places.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from moh_ebpf.kernel import interfaces
from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState, bench
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import rtp, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"


@pytest.fixture(scope="module")
def shared_searching(shared_firewall: Firewall) -> Iterator[Bench]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interfaces, "link_header_of", lambda link, links: None)
            made = stack.enter_context(bench(shared_firewall))
        yield made


@pytest.fixture
def searching(shared_searching: Bench) -> Bench:
    shared_searching.clear()
    return shared_searching


def again_behind(packet: Packet, bytes_between: int) -> Packet:
    """With its IP header once more in its payload, so far behind the UDP header."""
    padding = b"\x80" + bytes(bytes_between - 1) if bytes_between else b""
    size = len(padding) + len(rtp()) - 20
    sized = udp(MUSIC, PROVIDER, padding + bytes(20) + rtp(size=size)[:size])
    header = bytes(sized)[:20]
    raw = bytes(sized)
    at = 28 + len(padding)
    return IP(raw[:at] + header + raw[at + 20 :])


def test_learned_and_consumed(searching: Bench) -> None:
    assert searching.run(Role.LEARN, udp(PROVIDER, HOLD))[0] == SHOT
    assert searching.peers() == {PROVIDER: ("MOH", HOLD)}


def test_as_short_as_rtp_can_be(searching: Bench) -> None:
    """No room behind it for the longest link header that is looked behind."""
    assert searching.run(Role.LEARN, udp(PROVIDER, HOLD, rtp(size=0)))[0] == SHOT


def test_rewritten_at_the_wan(searching: Bench) -> None:
    searching.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    verdict, frame = searching.run(Role.ENFORCE, udp(MUSIC, PROVIDER))
    expected = udp(HOLD, PROVIDER)
    assert (verdict, frame[14:]) == (UNSPEC, bytes(expected))


def test_sent_by_the_kernels_neighbour_code_always(searching: Bench) -> None:
    """Its link header is not ours to write, also where the next hop is known."""
    searching.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    frame = searching.firewall.lan.frame(udp(MUSIC, PROVIDER))
    for _ in range(2):
        verdict, sent = searching.run(Role.BYPASS, frame)
        assert verdict == REDIRECT
        assert sent[:14] == bytes(frame)[:14]
        assert sent[14:] == bytes(udp(HOLD, PROVIDER, ttl=63))
        searching.trust_hops()


@pytest.mark.parametrize("between", [2, 4, 6, 8])
def test_the_first_of_two_headers_is_it(searching: Bench, between: int) -> None:
    searching.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    packet = again_behind(udp(MUSIC, PROVIDER), between)
    assert bytes(packet)[28 + between :][:20] == bytes(packet)[:20]
    verdict, sent = searching.run(Role.ENFORCE, packet)
    assert verdict == UNSPEC
    assert (IP(sent[14:]).src, IP(sent[14:])[UDP].sport) == (PUBLIC, 4000)


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_a_tag_where_the_kernel_has_the_network_header(searching: Bench, tpid: int) -> None:
    """A tagged frame is its VLAN's; what is behind a tag of the interface's own starts with 4."""
    searching.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    link = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=tpid)
    for inside in (Dot1Q(vlan=7) / udp(MUSIC, PROVIDER), Raw(bytes(40))):
        frame = bytes(link / inside)
        assert searching.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert searching.counters() == {}


def test_what_is_behind_the_interfaces_own_tag(searching: Bench) -> None:
    """Where a VLAN sends with its tag in the packet, the protocol is the tag's."""
    searching.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    link = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x8100)
    verdict, sent = searching.run(Role.ENFORCE, bytes(link / udp(MUSIC, PROVIDER)))
    assert (verdict, sent[14:]) == (UNSPEC, bytes(udp(HOLD, PROVIDER)))


def test_a_tag_is_no_interfaces_own_where_nothing_is_searched(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    link = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x8100)
    frame = bytes(link / udp(MUSIC, PROVIDER))
    assert programs.run(Role.ENFORCE, frame) == (UNSPEC, frame)
