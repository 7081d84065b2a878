"""What signalling says of an endpoint, beside its RTP and its RTCP: docs/evidence.md's table."""

from typing import NamedTuple

import pytest

from moh_ebpf.layout import Evidence, Kind, State
from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, Bench, PeerState
from tests.packets.test_rtcp import BESIDE, REPORT, leaves, report
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import rtp, udp

CALL, HOLD = f"{PUBLIC}:24576", f"{PUBLIC}:4000"
OWN, OTHER = f"{UCM}:24576", f"{UCM}:30000"  # the call's port, and a hold's
PASSES, HELD_BACK = "as it is", "dropped"
TIMEOUT = 10.0  # of the benches
BOTH = [Role.ENFORCE, Role.BYPASS]


@pytest.fixture
def quiet(programs: Bench) -> Bench:
    """Nothing was heard yet; learn is alive."""
    programs.set_learned()
    return programs


class Case(NamedTuple):
    """Signalling, and what RTP said how many seconds ago; how UCM's packets leave then."""

    said: State
    heard: State | None
    age: float
    own: str
    other: str


TABLE = [
    Case(State.TWO, None, 0, PASSES, HELD_BACK),
    Case(State.TWO, State.TWO, 0, PASSES, HELD_BACK),
    Case(State.TWO, State.TWO, TIMEOUT + 1, PASSES, HELD_BACK),
    Case(State.TWO, State.MOH, 0, PASSES, HOLD),
    Case(State.TWO, State.MOH, TIMEOUT + 1, PASSES, HELD_BACK),
    Case(State.MOH, None, 0, PASSES, HOLD),
    Case(State.MOH, State.TWO, 0, PASSES, HOLD),
    Case(State.MOH, State.TWO, TIMEOUT + 1, PASSES, HOLD),
    Case(State.MOH, State.MOH, 0, HOLD, HOLD),
    Case(State.MOH, State.MOH, TIMEOUT + 1, PASSES, HOLD),
]


# A peer that is not heard finds out by itself: it was evicted, or the programs were replaced.
WITH_OR_WITHOUT_COMMAND = [
    (case, told) for case in TABLE for told in (True, False) if told or not case.heard or case.age
]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("case", "told"), WITH_OR_WITHOUT_COMMAND)
def test_the_order_of_evidence(quiet: Bench, role: Role, case: Case, told: bool) -> None:
    if case.heard:
        public = HOLD if case.heard is State.MOH else CALL
        quiet.set_peer(PROVIDER, PeerState(case.heard, public, age=case.age))
    quiet.signal(PROVIDER, case.said, source=OWN, told=told)
    assert leaves(quiet, role, OTHER) == case.other
    assert leaves(quiet, role, OWN) == case.own
    assert leaves(quiet, role, OTHER) == case.other


@pytest.mark.parametrize("role", BOTH)
def test_rtcp_has_no_word_against_signalling(quiet: Bench, role: Role) -> None:
    report(quiet, f"{PUBLIC}:4001")
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    assert leaves(quiet, role, OWN) == PASSES
    assert leaves(quiet, role, OTHER) == HELD_BACK
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    report(quiet, f"{PUBLIC}:24577")
    assert leaves(quiet, role, OTHER) == HOLD


@pytest.mark.parametrize("role", BOTH)
def test_nor_where_rtp_agrees_with_signalling(quiet: Bench, role: Role) -> None:
    quiet.learn(CALL, 1, 2)
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    quiet.age_all(1)
    quiet.set_learned()
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, OTHER) == HELD_BACK
    assert leaves(quiet, role, OWN) == PASSES


def test_rtcp_of_before_signalling_says_nothing_after_it(quiet: Bench) -> None:
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, Role.BYPASS, OTHER) == HOLD
    assert [each.state for each in quiet.all_peers() if not each.expired] == [State.MOH]
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    quiet.signal(PROVIDER, None)
    assert [each.state for each in quiet.all_peers() if not each.expired] == []


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize("told", [True, False])
def test_rtcp_goes_with_its_rtp(quiet: Bench, role: Role, told: bool) -> None:
    quiet.signal(PROVIDER, State.MOH, source=OWN, told=told)
    assert leaves(quiet, role, f"{UCM}:30001", BESIDE, REPORT) == f"{PUBLIC}:4001"
    assert leaves(quiet, role, OTHER, PROVIDER, REPORT) == HOLD
    assert leaves(quiet, role, f"{UCM}:24577", BESIDE, REPORT) == PASSES
    quiet.signal(PROVIDER, State.TWO, source=OWN, told=told)
    if told:
        assert leaves(quiet, role, f"{UCM}:24577", BESIDE, REPORT) == PASSES


@pytest.mark.parametrize("role", BOTH)
def test_a_turn_of_the_provider_that_no_message_told_of(quiet: Bench, role: Role) -> None:
    """It was heard in this call, turns, and goes on there: what signalling said is of before, also
    when that is said again. The next message counts."""
    quiet.signal(PROVIDER, State.MOH, source=OWN, age=10)
    quiet.learn(HOLD, 1, 2)
    assert leaves(quiet, role, OTHER) == HOLD
    quiet.learn(CALL, 3)
    assert leaves(quiet, role, OTHER) == HOLD
    quiet.learn(CALL, 4)
    assert quiet.shown()[PROVIDER] == ("TWO", "RTP")
    assert leaves(quiet, role, OWN) == PASSES
    quiet.signal(PROVIDER, State.MOH, source=OWN, age=0, renewed=True)
    assert quiet.shown()[PROVIDER] == ("TWO", "RTP")
    quiet.age_all(TIMEOUT + 1)
    quiet.set_learned()
    assert leaves(quiet, role, OTHER) == "dropped"  # not known
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    assert leaves(quiet, role, OTHER) == HOLD


@pytest.mark.parametrize("role", BOTH)
def test_what_is_no_turn(quiet: Bench, role: Role) -> None:
    """The first words in a call, which may be older than the message; whatever was heard in another
    call; one that turns at once, as it was told by the message before; a single packet."""

    def is_on_hold() -> bool:
        quiet.signal(PROVIDER, State.MOH, source=OWN, renewed=True)
        return leaves(quiet, role, OTHER) == HOLD and quiet.shown()[PROVIDER][0] == "MOH"

    quiet.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:20000", age=60, told=True))
    quiet.signal(PROVIDER, State.MOH, source=OWN, age=10)
    quiet.learn(CALL, 1, 2, 3)
    assert is_on_hold()
    quiet.learn(HOLD, 4, 5)
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    quiet.learn(CALL, 6, 7)
    assert is_on_hold()
    quiet.learn(HOLD, 300, 301)
    quiet.age_all(2)
    quiet.learn(f"{PUBLIC}:24600", 800)
    quiet.learn(f"{PUBLIC}:24602", 900, 900)  # the same one twice
    assert is_on_hold()


@pytest.mark.parametrize("role", BOTH)
def test_a_peer_that_was_evicted(quiet: Bench, role: Role) -> None:
    """Whoever speaks first, it is known again at once."""
    for said, public, expected in ((State.TWO, HOLD, PASSES), (State.MOH, CALL, PASSES)):
        quiet.clear()
        quiet.set_learned()
        quiet.signal(PROVIDER, said, source=OWN, told=False)
        quiet.learn(public, 1, 2)
        assert leaves(quiet, role, OWN) == expected
        assert quiet.shown()[PROVIDER][0] == said.name


def test_reports_of_a_call_that_signalling_has_ended(quiet: Bench) -> None:
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    leaves(quiet, Role.BYPASS, OTHER)
    report(quiet, f"{PUBLIC}:4001")
    quiet.signal(PROVIDER, None)
    assert leaves(quiet, Role.BYPASS, OTHER) == "dropped"
    quiet.age_all(1)
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, Role.BYPASS, OTHER) == HOLD


def test_a_place_that_is_ours_no_more(quiet: Bench) -> None:
    """Where it was heard once, or is still, may be no public address any more."""
    for age in (60, 0):
        quiet.set_peer(PROVIDER, PeerState(State.MOH, "192.0.2.77:4000", age=age, told=True))
        quiet.signal(PROVIDER, State.MOH, source=OWN)
        quiet.age_all(TIMEOUT + 1)
        quiet.set_learned()
        assert leaves(quiet, Role.BYPASS, OTHER) == HOLD


def test_a_renewal_is_no_news(quiet: Bench) -> None:
    """Ports that UCM has taken meanwhile stay the call's."""
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    taken = OTHER, f"{UCM}:30002"
    for port in taken:
        for _ in range(2):
            leaves(quiet, Role.BYPASS, port)
            quiet.age_all(0.25)
            quiet.set_learned()
        assert leaves(quiet, Role.BYPASS, port) == PASSES
    quiet.signal(PROVIDER, State.TWO, source=OWN, renewed=True)
    assert [leaves(quiet, Role.BYPASS, port) for port in taken] == [PASSES, PASSES]


def test_what_is_told(quiet: Bench) -> None:
    """Of whom signalling names, at once; a hold's music with its wait, as ever."""
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    quiet.signal(PROVIDER, State.TWO, source=OWN)  # a renewal
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    leaves(quiet, Role.ENFORCE, OWN)  # a late packet of the call is no music
    leaves(quiet, Role.ENFORCE, OTHER)
    quiet.signal(PROVIDER, None)
    quiet.signal(PROVIDER, None)
    told = quiet.events()
    assert [(each.kind, each.before, each.evidence) for each in told] == [
        (Kind.LEARNED, 0, Evidence.SIGNALLING),
        (Kind.CHANGED, State.TWO, Evidence.SIGNALLING),
        (Kind.MUSIC, State.MOH, Evidence.SIGNALLING),
        (Kind.UNSIGNALLED, State.MOH, Evidence.SIGNALLING),
    ]
    assert quiet.counters()["learned_two"] == quiet.counters()["two_to_moh"] == 1


def test_the_end_of_a_call_whose_media_go_on(quiet: Bench) -> None:
    quiet.learn(CALL, 1, 2)
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    quiet.signal(PROVIDER, None)
    assert quiet.shown()[PROVIDER] == ("TWO", "RTP")
    assert [each.kind for each in quiet.events()] == [
        Kind.LEARNED,
        Kind.CHANGED,
        Kind.UNSIGNALLED,
    ]


@pytest.mark.parametrize("role", BOTH)
def test_a_lease(quiet: Bench, role: Role) -> None:
    """Nobody renews it: what was said counts no more."""
    quiet.signal(PROVIDER, State.MOH, source=OWN, lease=60)
    quiet.age_all(59)
    quiet.set_learned()
    assert leaves(quiet, role, OTHER) == HOLD
    quiet.age_all(2)
    quiet.set_learned()
    assert leaves(quiet, role, OTHER) == "dropped"


def test_a_new_port_of_the_call(quiet: Bench) -> None:
    """A transfer: UCM tells a new port, and its first packet passes at once."""
    quiet.learn(CALL, 1, 2)
    quiet.signal(PROVIDER, State.TWO, source=OWN)
    assert leaves(quiet, Role.BYPASS, OWN) == PASSES
    quiet.signal(PROVIDER, State.TWO, source=OTHER)
    assert leaves(quiet, Role.BYPASS, OTHER) == PASSES
    assert quiet.counters().get("held_back") is None


def test_where_music_comes_from(quiet: Bench) -> None:
    """From the address that the endpoint was heard at, if it was; the port is signalling's."""
    quiet.learn(f"{PUBLIC}:24576", 1, 2)
    quiet.signal(PROVIDER, State.MOH, source=OWN, public="192.0.2.1:4000")
    assert leaves(quiet, Role.ENFORCE, OTHER) == HOLD


def test_another_hosts_phantom_port(quiet: Bench) -> None:
    """What comes to 4000 from whom signalling names is the hold's, whoever has used that before."""
    quiet.run(Role.BYPASS, udp("10.10.10.99:4000", PROVIDER, b"another's"))
    quiet.signal(PROVIDER, State.MOH, source=OWN)
    assert quiet.run(Role.LEARN, udp(PROVIDER, HOLD, rtp(1)))[0] == SHOT
