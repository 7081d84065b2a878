"""UCM's RTP to an endpoint that is not heard: dropped while learn can hear it, and not for ever."""

import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from moh_ebpf.layout import Kind, State
from moh_ebpf.registry.record import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState, bench
from tests.packets.conftest import Benches
from tests.support.firewall import PROVIDER, PUBLIC, UCM, firewall
from tests.support.wire import rtp, udp

MOH = PeerState(State.MOH, f"{PUBLIC}:4000")
TWO = PeerState(State.TWO, f"{PUBLIC}:24600")
REPORT = b"\x80\xc8\0\6" + bytes(24)
VERDICTS = [Role.ENFORCE, Role.BYPASS]


def counted(role: Role, **counters: int) -> dict[str, int]:
    """What enforce lets pass is UCM's still at the WAN: not NATed."""
    passed = counters.get("passed_blind", 0) + counters.get("passed_unheard", 0)
    return counters | ({"passed_unnatted": passed} if role is Role.ENFORCE else {})


# The programs of tests/packets have a timeout of 10 s, and a patience of 3 s. Ages here keep clear
# of a limit by more than the test itself takes, or by what a pause of the machine cannot change.


def music(to: str = PROVIDER) -> Packet:
    return udp(f"{UCM}:24576", to)


def report(to: str = "203.0.113.10:21001") -> Packet:
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
def test_learn_sees_any_packet_to_a_public_address(
    programs: Bench, what: str, packet: Packet
) -> None:
    programs.run(Role.LEARN, packet)
    (wan,) = programs.wans()
    assert wan.learn_age is not None, what


@pytest.mark.parametrize(("what", "packet"), UNSEEN, ids=lambda value: str(value)[:30])
def test_learn_that_runs_is_not_learn_that_sees(programs: Bench, what: str, packet: Packet) -> None:
    frame = packet if Ether in packet else programs.firewall.wan.frame(packet)
    programs.run(Role.LEARN, frame)
    (wan,) = programs.wans()
    assert wan.learn_age is None, what


# A WAN is stale


@pytest.mark.parametrize("role", VERDICTS)
@pytest.mark.parametrize("learned", [None, 1.5, 20])
def test_a_call_whose_learn_fell_silent_goes_on(
    programs: Bench, role: Role, learned: float | None
) -> None:
    programs.set_learned(learned)
    programs.set_peer(PROVIDER, forgotten(TWO, 10.5 if learned is None else learned + 9.5))
    assert programs.run(role, music())[0] == UNSPEC
    assert programs.run(role, report())[0] == UNSPEC
    assert programs.counters() == counted(role, passed_blind=2)
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
    programs: Bench, role: Role, what: str, peer: PeerState | None
) -> None:
    programs.set_learned(2)
    if peer:
        programs.set_peer(PROVIDER, peer)
    assert programs.run(role, music())[0] == SHOT, what
    programs.age_waiting(1.5)
    assert programs.run(role, music())[0] == UNSPEC, what
    assert programs.counters() == counted(role, dropped_unidentified=1, passed_blind=1)


def test_a_peer_forgotten_while_learn_speaks_did_not_fall_silent_with_it(
    benches: Benches,
) -> None:
    """Its timeout has been over for a moment, and learn's last packet is a moment old."""
    with benches(timeout="2m") as programs:
        took = 1.0
        while took > 0.3:  # the WAN may be stale by now: again
            begun = time.monotonic()
            programs.set_learned(0.4)
            programs.set_peer(PROVIDER, forgotten(TWO, 120.2))
            verdict, _ = programs.run(Role.BYPASS, music())
            took = time.monotonic() - begun
        assert verdict == SHOT


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
    """That of the WAN where the peer was heard of late decides, otherwise the route's."""
    with firewall(masquerade=False) as own, ExitStack() as stack:
        own.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
        own.namespace.run("ip", "route", "add", "8.8.8.0/24", "via", "192.0.2.1")
        # Under emulation the patience may be over before the last packet.
        values = {"wan": ["wan", "wan2"], "patience": "never"}
        programs = stack.enter_context(bench(own, **values))

        def verdict_to(endpoint: str, learned: float, learned2: float) -> int:
            programs.set_learned(learned, wan=0)
            programs.set_learned(learned2, wan=1)
            return programs.run(Role.BYPASS, music(endpoint))[0]

        for endpoint, expected in (("8.8.8.8:20000", UNSPEC), (PROVIDER, SHOT)):
            verdict_to(endpoint, -5, 5)
            programs.age_waiting(1.5)
            assert verdict_to(endpoint, -5, 5) == expected
        # Heard on wan2, whose learn fell silent; the way there is by wan.
        programs.set_peer(PROVIDER, PeerState(State.TWO, "192.0.2.2:24600", age=10.5, wan=1))
        assert verdict_to(PROVIDER, -5, 5) == UNSPEC
        # Heard on wan, which is alive; the way there is by wan2, on which nothing ever comes in.
        programs.set_peer("8.8.8.9:20000", PeerState(State.TWO, f"{PUBLIC}:24600", age=10.5))
        verdict_to("8.8.8.9:20000", -5, 20)
        programs.age_waiting(1.5)
        assert verdict_to("8.8.8.9:20000", -5, 20) == SHOT


# A WAN is blind


def open_for(programs: Bench, seconds: int, age: float = 15) -> None:
    """UCM sends for so long, a packet each second, to a call whose learn is silent."""
    for _ in range(seconds + 1):
        programs.set_peer(PROVIDER, forgotten(TWO, age))
        assert programs.run(Role.BYPASS, music())[0] == UNSPEC
        programs.age_all(1)


def test_a_wan_that_is_heard_now_and_then_is_not_blind(programs: Bench) -> None:
    """A provider that sends reports alone: learn sees one in some seconds."""
    programs.set_learned(10)
    for _ in range(4):
        open_for(programs, 4)
        programs.run(Role.LEARN, IP(src="8.8.8.8", dst=PUBLIC) / ICMP())
        programs.age_all(0.9)
    assert Kind.BLIND not in {each.kind for each in programs.events()}


def test_a_blind_wan_is_told_once_and_told_to_see_again(programs: Bench) -> None:
    programs.set_learned(10)
    open_for(programs, 12)
    (blind,) = programs.events()
    assert (blind.kind, blind.address, blind.port) == (Kind.BLIND, bytes(4), bytes(2))
    assert 19e9 < blind.lasted < 1000e9
    (wan,) = programs.wans()
    assert wan.is_blind
    assert wan.blind_for is not None
    assert wan.blind_for >= 20

    # Nothing is held back where it is known that nothing can be learned.
    assert programs.run(Role.BYPASS, music("203.0.113.99:30000"))[0] == UNSPEC

    programs.run(Role.LEARN, udp("8.8.8.8:53", f"{PUBLIC}:40000", b"answer"))
    (seeing,) = programs.events()
    assert seeing.kind == Kind.SEEING
    assert seeing.lasted > 19e9
    (wan,) = programs.wans()
    assert not wan.is_blind
    programs.set_learned()
    assert programs.run(Role.BYPASS, music("203.0.113.98:30000"))[0] == SHOT


def test_the_time_before_ucm_sends_is_no_blindness(programs: Bench) -> None:
    """A quiet WAN at night, then a call; and a call that ends is no reason to be blind for ever."""
    programs.set_learned(60)
    open_for(programs, 5)
    assert programs.events() == []
    programs.age_all(30)
    open_for(programs, 5)
    assert programs.events() == []
    assert not programs.wans()[0].is_blind
    open_for(programs, 10)
    assert programs.wans()[0].is_blind
    programs.age_all(30)
    assert not programs.wans()[0].is_blind


def test_reports_of_a_silent_provider_keep_a_wan_from_being_blind(programs: Bench) -> None:
    for _ in range(5):
        programs.run(Role.LEARN, udp("192.168.7.7:30001", f"{PUBLIC}:24601", REPORT))
        programs.age_all(1.5)
        open_for(programs, 4, age=11)
    assert programs.events() == []


# Patience


@pytest.mark.parametrize("role", VERDICTS)
@pytest.mark.parametrize("peer", [None, forgotten(MOH), forgotten(TWO)])
def test_after_the_patience_it_passes_and_is_told_once(
    programs: Bench, role: Role, peer: PeerState | None
) -> None:
    if peer:
        programs.set_peer(PROVIDER, peer)
    for seconds, verdict in ((0, SHOT), (0.9, SHOT), (2.5, UNSPEC), (1, UNSPEC)):
        programs.age_waiting(seconds)
        programs.set_learned()
        assert programs.run(role, music())[0] == verdict
        assert programs.run(role, report())[0] == verdict
    assert programs.counters() == counted(role, dropped_unidentified=4, passed_unheard=4)
    (unheard,) = programs.events()
    assert (unheard.kind, unheard.dropped) == (Kind.UNHEARD, 2)
    assert unheard.before == (peer.state if peer else 0)
    assert 3.4e9 <= unheard.lasted < 1000e9
    (wait,) = programs.waits()
    assert (wait.endpoint, wait.dropped, wait.passes) == (PROVIDER, 2, True)
    (wan,) = programs.wans()
    assert wan.is_failing_open
    assert not wan.is_blind


def test_who_is_heard_meanwhile_is_waited_for_anew(benches: Benches) -> None:
    with benches(patience="12s") as programs:
        for _ in range(2):
            programs.set_learned()
            assert programs.run(Role.BYPASS, music())[0] == SHOT
            programs.age_waiting(6.5)
        programs.set_learned()
        # UCM's first packet was 13 s ago, but the endpoint has been heard since.
        programs.set_peer(PROVIDER, forgotten(TWO, 10.5))
        assert programs.run(Role.BYPASS, music())[0] == SHOT


def wait_until_it_passes(programs: Bench, role: Role) -> None:
    """For longer than the patience, with learn alive."""
    programs.run(role, music())
    programs.age_waiting(4)
    programs.set_learned()
    assert programs.run(role, music())[0] == UNSPEC


def test_a_hold_that_is_heard_before_ucm_goes_on_is_waited_for_anew(programs: Bench) -> None:
    """Packets to it have passed, but they were of no hold."""
    wait_until_it_passes(programs, Role.BYPASS)
    programs.age_waiting(8)
    programs.set_learned()
    programs.set_peer(PROVIDER, forgotten(MOH, 10.5))
    assert programs.run(Role.BYPASS, music())[0] == SHOT


@pytest.mark.parametrize("role", VERDICTS)
def test_the_first_rtcp_has_waited_as_long_as_its_rtp(programs: Bench, role: Role) -> None:
    wait_until_it_passes(programs, role)
    assert programs.run(role, report())[0] == UNSPEC


def test_a_call_that_is_heard_now_and_then_passes(programs: Bench) -> None:
    """One packet from its endpoint in some seconds, such as comfort noise: no pause is cut out."""
    programs.run(Role.BYPASS, music())
    programs.age_all(4)
    programs.set_learned()
    for number in range(6):
        assert programs.run(Role.BYPASS, music())[0] == UNSPEC
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24576", rtp(number)))
        assert programs.run(Role.BYPASS, music())[0] == UNSPEC
        programs.set_peer(PROVIDER, replace(forgotten(TWO, 10.2), told=True))
        programs.age_waiting(4)
        programs.set_learned()
    assert programs.counters()["dropped_unidentified"] == 1


def test_a_hold_that_is_heard_now_and_then_is_held_back(programs: Bench) -> None:
    """What passes in its pauses would leave from another port than its music."""
    programs.run(Role.BYPASS, music())
    programs.age_waiting(4)
    programs.set_learned()
    programs.run(Role.BYPASS, music())
    programs.learn(f"{PUBLIC}:4000", 1, 2)
    programs.run(Role.BYPASS, music())
    programs.set_peer(PROVIDER, forgotten(MOH, 10.2))
    programs.set_learned()
    assert programs.run(Role.BYPASS, music())[0] == SHOT


@pytest.mark.parametrize("role", VERDICTS)
def test_rtcp_alone_is_waited_for_as_well(programs: Bench, role: Role) -> None:
    """Neither side sends RTP; nobody is told, for no media wait."""
    for seconds, verdict in ((0, SHOT), (5, UNSPEC), (5, UNSPEC)):
        programs.age_waiting(seconds)
        programs.set_learned()
        assert programs.run(role, report())[0] == verdict
    assert (programs.events(), programs.waits()) == ([], [])


def test_music_after_packets_that_passed(programs: Bench) -> None:
    """Its time counts until they passed; where none was dropped, there is none."""
    programs.run(Role.BYPASS, music())
    programs.age_all(4)
    programs.set_learned()
    programs.run(Role.BYPASS, music())
    programs.age_all(3)
    programs.learn(f"{PUBLIC}:4000", 1, 2)
    programs.run(Role.BYPASS, music())
    told = {each.kind: each for each in programs.events()}
    assert told[Kind.MUSIC].dropped == 1
    assert 3.9e9 < told[Kind.MUSIC].lasted < 6.5e9


def test_a_hold_has_not_lost_what_its_call_had(programs: Bench) -> None:
    programs.run(Role.BYPASS, music())
    programs.age_waiting(4)
    programs.set_learned()
    programs.send(Role.BYPASS, 2)
    programs.learn(f"{PUBLIC}:24576", 1, 2)
    programs.send(Role.BYPASS, 3)
    programs.learn(f"{PUBLIC}:4000", 3)
    programs.send(Role.BYPASS, 4)
    (told,) = [each for each in programs.events() if each.kind == Kind.MUSIC]
    assert (told.lasted, told.dropped) == (0, 0)


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
    [("never", 9, SHOT), ("500ms", 0.6, UNSPEC), ("60m", 9, SHOT)],
)
def test_patience_is_a_setting(
    benches: Benches, patience: str, waited: float, verdict: int
) -> None:
    with benches(patience=patience) as programs:
        programs.run(Role.ENFORCE, music())
        programs.age_waiting(waited)
        programs.set_learned()
        assert programs.run(Role.ENFORCE, music())[0] == verdict


def test_without_patience_nothing_is_dropped_or_told(benches: Benches) -> None:
    with benches(patience="0s") as programs:
        programs.set_learned()
        for role in VERDICTS:
            assert programs.run(role, report())[0] == UNSPEC
            assert programs.run(role, music())[0] == UNSPEC
        assert programs.events() == []


def test_private_destinations_are_none_of_ours(programs: Bench) -> None:
    for role in VERDICTS:
        assert programs.run(role, music("192.168.20.5:24580"))[0] == UNSPEC
    assert programs.counters() == {}


# MOH states end


@pytest.mark.parametrize(
    ("learned", "state", "verdict"),
    [(80, State.MOH, REDIRECT), (100, State.MOH, SHOT), (None, State.MOH, SHOT),
     (100, State.TWO, UNSPEC)],
)  # fmt: skip
def test_a_long_hold_ends_with_learn(
    benches: Benches, learned: float | None, state: State, verdict: int
) -> None:
    with benches(timeout="30m") as programs:
        public = f"{PUBLIC}:{4000 if state is State.MOH else 24600}"
        programs.set_peer(PROVIDER, PeerState(state, public, age=105))
        programs.set_learned(learned)
        assert programs.run(Role.BYPASS, music())[0] == verdict
        programs.age_waiting(1.5)
        assert programs.run(Role.BYPASS, music())[0] == (
            REDIRECT if verdict == REDIRECT else UNSPEC
        )
        (peer,) = programs.all_peers()
        assert peer.expired == (verdict == SHOT)


def test_a_hold_is_good_where_learn_has_not_spoken_yet(benches: Benches) -> None:
    """The programs are new, and the peer was carried over."""
    with benches(timeout="30m") as programs:
        programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000", age=60))
        assert programs.run(Role.BYPASS, music())[0] == REDIRECT
        assert not programs.all_peers()[0].expired


def test_its_next_packet_begins_it_anew(benches: Benches) -> None:
    with benches(timeout="30m") as programs:
        programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000", age=105))
        programs.set_learned(100)
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:4000", rtp(2)))
        assert programs.run(Role.BYPASS, music())[0] == REDIRECT


@pytest.mark.parametrize("role", [Role.ENFORCE, Role.BYPASS])
def test_a_call_known_by_rtcp_loses_nothing_with_learn(programs: Bench, role: Role) -> None:
    programs.set_learned()
    report = b"\x81\xc9\0\7" + bytes(28)
    programs.run(Role.LEARN, udp("203.0.113.10:21001", f"{PUBLIC}:24577", report))
    assert programs.send(role, 1, 2) == [UNSPEC] * 2
    programs.age_all(15.1)
    assert programs.send(role, 3) == [UNSPEC]
    assert programs.counters()["passed_blind"] == 1
