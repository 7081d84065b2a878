"""UCM's RTP to an endpoint that is not heard: dropped while learn can hear it, and not for ever."""

from contextlib import ExitStack

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from moh_ebpf.layout import Kind, State
from moh_ebpf.registry import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState, bench
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.wire import rtp, udp

MOH = PeerState(State.MOH, f"{PUBLIC}:4000")
TWO = PeerState(State.TWO, f"{PUBLIC}:24600")
REPORT = b"\x80\xc8\0\6" + bytes(24)
VERDICTS = [Role.ENFORCE, Role.BYPASS]

# The programs of tests/packets have a timeout of 10 s, and a patience of 3 s. Ages here keep clear
# of a limit by more than the test itself takes, or by what a pause of the machine cannot change.


def music(to: str = PROVIDER):
    return udp(f"{UCM}:24576", to)


def report(to: str = "203.0.113.10:21001"):
    return udp(f"{UCM}:24577", to, REPORT)


def forgotten(peer: PeerState, age: float = 10.5) -> PeerState:
    return PeerState(peer.state, peer.public, age=age)


# learn's clock


SEEN = [
    ("RTP", udp(PROVIDER, f"{PUBLIC}:24600")),
    ("SIP", udp("203.0.113.10:5060", f"{PUBLIC}:5060", b"SIP/2.0 200 OK\r\n")),
    ("TCP", IP(src="203.0.113.10", dst=PUBLIC) / TCP(sport=443, dport=40000)),
    ("ICMP", IP(src="8.8.8.8", dst=PUBLIC) / ICMP()),
    ("a private source", udp("192.168.7.7:21000", f"{PUBLIC}:4000")),
    ("a fragment", udp(PROVIDER, f"{PUBLIC}:4000", frag=3)),
]  # fmt: skip
UNSEEN = [
    ("another destination", udp(PROVIDER, "198.51.100.3:24600")),
    ("a VLAN's packet", Ether() / Dot1Q(vlan=10) / udp(PROVIDER, f"{PUBLIC}:24600")),
    ("IP version 5", udp(PROVIDER, f"{PUBLIC}:24600", version=5)),
    ("no IP header where it is looked for", Ether(type=0x800)
     / Raw(bytes(14) + bytes(udp(PROVIDER, f"{PUBLIC}:24600")))),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet"), SEEN, ids=lambda value: str(value)[:30])
def test_learn_sees_any_packet_to_a_public_address(programs: Bench, what: str, packet) -> None:
    programs.run(Role.LEARN, packet)
    (wan,) = programs.wans()
    assert wan.learn_age is not None, what


@pytest.mark.parametrize(("what", "packet"), UNSEEN, ids=lambda value: str(value)[:30])
def test_learn_that_runs_is_not_learn_that_sees(programs: Bench, what: str, packet) -> None:
    frame = packet if Ether in packet else programs.firewall.wan.frame(packet)
    programs.run(Role.LEARN, frame)
    (wan,) = programs.wans()
    assert wan.learn_age is None, what


# A WAN is stale


@pytest.mark.parametrize("role", VERDICTS)
@pytest.mark.parametrize("learned", [None, 1.5, 20])
def test_a_call_whose_learn_fell_silent_goes_on(programs: Bench, role: Role, learned) -> None:
    programs.set_learned(learned)
    programs.set_peer(PROVIDER, forgotten(TWO, 10.5 if learned is None else learned + 9.5))
    assert programs.run(role, music())[0] == UNSPEC
    assert programs.run(role, report())[0] == UNSPEC
    assert programs.counters() == {"passed_blind": 2}
    (wan,) = programs.wans()
    assert wan.is_failing_open


@pytest.mark.parametrize("role", VERDICTS)
@pytest.mark.parametrize(
    ("what", "peer"),
    [
        ("nobody", None),
        ("on hold", forgotten(MOH)),
        ("a call that ended before learn fell silent", forgotten(TWO, 25)),
    ],
)
def test_what_may_become_a_hold_is_held_back_for_a_second(
    programs: Bench, role: Role, what: str, peer
) -> None:
    programs.set_learned(2)
    if peer:
        programs.set_peer(PROVIDER, peer)
    assert programs.run(role, music())[0] == SHOT, what
    programs.age_waiting(1.5)
    assert programs.run(role, music())[0] == UNSPEC, what
    assert programs.counters() == {"dropped_unidentified": 1, "passed_blind": 1}


@pytest.mark.parametrize("role", VERDICTS)
def test_rtcp_goes_with_the_rtp_that_passes(programs: Bench, role: Role) -> None:
    programs.set_learned(2)
    assert programs.run(role, report())[0] == SHOT
    programs.run(role, music())
    programs.age_waiting(1.5)
    assert programs.run(role, report())[0] == UNSPEC
    # The same port, as with rtcp-mux.
    assert programs.run(role, report(PROVIDER))[0] == UNSPEC


@pytest.mark.parametrize("role", VERDICTS)
def test_while_learn_sees_it_is_dropped(programs: Bench, role: Role) -> None:
    for _ in range(3):
        programs.set_learned()
        programs.set_peer(PROVIDER, forgotten(TWO))
        assert programs.run(role, music())[0] == SHOT
        programs.age_waiting(0.5)
    assert programs.counters() == {"dropped_unidentified": 3}


def test_each_wan_has_a_clock_of_its_own() -> None:
    """By the peer's WAN, and by the route's where there is no peer."""
    with firewall(masquerade=False) as own, ExitStack() as stack:
        own.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
        own.namespace.run("ip", "route", "add", "8.8.8.0/24", "via", "192.0.2.1")
        programs = stack.enter_context(bench(own, wan=["wan", "wan2"]))
        programs.set_learned(wan=0)
        programs.set_learned(5, wan=1)
        for endpoint, verdict in (("8.8.8.8:20000", UNSPEC), (PROVIDER, SHOT)):
            programs.run(Role.BYPASS, music(endpoint))
            programs.age_waiting(1.5)
            programs.set_learned(wan=0)
            assert programs.run(Role.BYPASS, music(endpoint))[0] == verdict
        # Heard on wan2, whose learn fell silent; the way there is by wan.
        programs.set_peer(PROVIDER, PeerState(State.TWO, "192.0.2.2:24600", age=10.5, wan=1))
        assert programs.run(Role.BYPASS, music())[0] == UNSPEC
        assert [wan.is_blind for wan in programs.wans()] == [False, True]


# A WAN is blind


def test_a_blind_wan_is_told_once_and_told_to_see_again(programs: Bench) -> None:
    programs.set_learned(10)
    programs.set_peer(PROVIDER, forgotten(TWO, 15))
    for _ in range(3):
        programs.run(Role.BYPASS, music())
    (blind,) = programs.events()
    assert (blind.kind, blind.address, blind.port) == (Kind.BLIND, bytes(4), bytes(2))
    assert 9e9 < blind.lasted < 1000e9
    (wan,) = programs.wans()
    assert wan.blind_for is not None
    assert wan.blind_for >= 10

    # Nothing is held back where it is known that nothing can be learned.
    assert programs.run(Role.BYPASS, music("203.0.113.99:30000"))[0] == UNSPEC

    programs.run(Role.LEARN, udp("8.8.8.8:53", f"{PUBLIC}:40000", b"answer"))
    (seeing,) = programs.events()
    assert seeing.kind == Kind.SEEING
    assert seeing.lasted > 9e9
    (wan,) = programs.wans()
    assert not wan.is_blind
    assert programs.run(Role.BYPASS, music("203.0.113.98:30000"))[0] == SHOT


def test_a_short_silence_is_no_blindness(programs: Bench) -> None:
    """One call on a quiet WAN, whose far end pauses."""
    programs.set_learned(1.2)
    programs.set_peer(PROVIDER, forgotten(TWO, 10.2))
    assert programs.run(Role.BYPASS, music())[0] == UNSPEC
    (wan,) = programs.wans()
    told = programs.events()
    assert bool(told) == wan.is_blind
    assert not wan.is_blind or told[0].lasted >= 3e9, "it was really silent for so long"


# Patience


@pytest.mark.parametrize("role", VERDICTS)
@pytest.mark.parametrize("peer", [None, forgotten(MOH), forgotten(TWO)])
def test_after_the_patience_it_passes_and_is_told_once(programs: Bench, role: Role, peer) -> None:
    if peer:
        programs.set_peer(PROVIDER, peer)
    for seconds, verdict in ((0, SHOT), (0.9, SHOT), (2.5, UNSPEC), (1, UNSPEC)):
        programs.age_waiting(seconds)
        programs.set_learned()
        assert programs.run(role, music())[0] == verdict
        assert programs.run(role, report())[0] == verdict
    assert programs.counters() == {"dropped_unidentified": 4, "passed_unheard": 4}
    (unheard,) = programs.events()
    assert (unheard.kind, unheard.dropped) == (Kind.UNHEARD, 2)
    assert unheard.before == (peer.state if peer else 0)
    assert 3.4e9 <= unheard.lasted < 1000e9
    (wait,) = programs.waits()
    assert (wait.endpoint, wait.dropped, wait.passes) == (PROVIDER, 2, True)
    (wan,) = programs.wans()
    assert wan.is_failing_open
    assert not wan.is_blind


def test_who_is_heard_meanwhile_is_waited_for_anew(programs: Bench) -> None:
    programs.run(Role.BYPASS, music())
    programs.age_all(2.5)
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24600"))
    programs.age_all(10.5)
    programs.set_learned()
    # Its first packet was 13 s ago, but it has been heard since.
    assert programs.run(Role.BYPASS, music())[0] == SHOT


def test_ucm_that_pauses_is_waited_for_anew(programs: Bench) -> None:
    programs.run(Role.BYPASS, music())
    programs.age_waiting(10.5)
    programs.set_learned()
    assert programs.run(Role.BYPASS, music())[0] == SHOT


def test_heard_after_all_it_is_on_hold(programs: Bench) -> None:
    programs.run(Role.BYPASS, music())
    programs.age_waiting(5)
    programs.set_learned()
    assert programs.run(Role.BYPASS, music())[0] == UNSPEC
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:4000"))
    assert programs.run(Role.BYPASS, music())[0] == REDIRECT


@pytest.mark.parametrize(
    ("patience", "waited", "verdict"),
    [("never", 9, SHOT), ("0s", 0, UNSPEC), ("500ms", 0.6, UNSPEC), ("60m", 9, SHOT)],
)
def test_patience_is_a_setting(
    shared_firewall: Firewall, patience: str, waited: float, verdict: int
) -> None:
    with bench(shared_firewall, patience=patience) as programs:
        programs.run(Role.ENFORCE, music())
        programs.age_waiting(waited)
        programs.set_learned()
        assert programs.run(Role.ENFORCE, music())[0] == verdict


def test_private_destinations_are_none_of_ours(programs: Bench) -> None:
    for role in VERDICTS:
        assert programs.run(role, music("192.168.20.5:24580"))[0] == UNSPEC
    assert programs.counters() == {}


# MOH states end


@pytest.mark.parametrize(
    ("learned", "state", "verdict"),
    [(50, State.MOH, REDIRECT), (70, State.MOH, SHOT), (None, State.MOH, SHOT),
     (70, State.TWO, UNSPEC)],
)  # fmt: skip
def test_a_long_hold_ends_with_learn(
    shared_firewall: Firewall, learned: float | None, state: State, verdict: int
) -> None:
    with bench(shared_firewall, timeout="30m") as programs:
        public = f"{PUBLIC}:{4000 if state is State.MOH else 24600}"
        programs.set_peer(PROVIDER, PeerState(state, public, age=75))
        programs.set_learned(learned)
        assert programs.run(Role.BYPASS, music())[0] == verdict
        programs.age_waiting(1.5)
        assert programs.run(Role.BYPASS, music())[0] == (
            REDIRECT if verdict == REDIRECT else UNSPEC
        )
        (peer,) = programs.snapshot().peers
        assert peer.expired == (verdict == SHOT)


def test_its_next_packet_begins_it_anew(shared_firewall: Firewall) -> None:
    with bench(shared_firewall, timeout="30m") as programs:
        programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000", age=75))
        programs.set_learned(70)
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:4000", rtp(2)))
        assert programs.run(Role.BYPASS, music())[0] == REDIRECT
