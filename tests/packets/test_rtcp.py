"""What RTCP tells of an endpoint whose RTP is silent; and that it tells nothing else."""

import time

import pytest
from scapy.layers.inet import IP

from moh_ebpf.layout import Evidence, Kind, State
from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, UNSPEC, Bench, PeerState
from tests.packets.conftest import Benches
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import flow, udp

REPORT = b"\x81\xc9\0\7" + bytes(28)
BESIDE = "203.0.113.10:21001"  # the port above that of RTP
CALL, HOLD = f"{PUBLIC}:24576", f"{PUBLIC}:4000"
MUSIC = f"{UCM}:30000"
BOTH = [Role.ENFORCE, Role.BYPASS]


def report(programs: Bench, public: str, endpoint: str = BESIDE) -> int:
    return programs.run(Role.LEARN, udp(endpoint, public, REPORT))[0]


def leaves(
    programs: Bench, role: Role, source: str, to: str = PROVIDER, payload: bytes | None = None
) -> str:
    """The source that UCM's packet leaves with; the verdict's name if it is not rewritten."""
    verdict, out = programs.run(role, udp(source, to, payload))
    left = flow(IP(out[14:]))[0]
    return left if left != source else {SHOT: "dropped", UNSPEC: "as it is"}[verdict]


@pytest.fixture
def quiet(programs: Bench) -> Bench:
    """RTP was heard long ago, or never; learn is alive."""
    programs.set_learned()
    return programs


HOLDS = [(BESIDE, 4001), (PROVIDER, 4000), (PROVIDER, 4001), (BESIDE, 4000)]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("source", "port"), HOLDS)
def test_a_hold_by_rtcp_alone(quiet: Bench, role: Role, source: str, port: int) -> None:
    """From the port above RTP's or from its own (rtcp-mux), to the phantom port of either."""
    assert report(quiet, f"{PUBLIC}:{port}", source) == SHOT
    assert leaves(quiet, role, MUSIC) == HOLD
    quiet.age_reports(14)
    assert leaves(quiet, role, MUSIC) == HOLD
    quiet.age_reports(2)
    quiet.set_learned()
    assert leaves(quiet, role, MUSIC) == "dropped"


@pytest.mark.parametrize("role", BOTH)
def test_rtcp_leaves_as_it_is_awaited(quiet: Bench, role: Role) -> None:
    for source, port in HOLDS:
        report(quiet, f"{PUBLIC}:{port}", source)
        assert leaves(quiet, role, f"{UCM}:30001", source, REPORT) == f"{PUBLIC}:{port}"


@pytest.mark.parametrize("role", BOTH)
def test_video_on_hold(quiet: Bench, role: Role) -> None:
    report(quiet, f"{PUBLIC}:4003")
    assert leaves(quiet, role, MUSIC) == f"{PUBLIC}:4002"


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("source", "port"), [(BESIDE, 24577), (PROVIDER, 24576)])
def test_a_call_by_rtcp_alone(quiet: Bench, role: Role, source: str, port: int) -> None:
    """From the port that the report is for, or its neighbour: no other, which a hold's may be."""
    assert report(quiet, f"{PUBLIC}:{port}", source) == UNSPEC
    assert leaves(quiet, role, f"{UCM}:24576") == "as it is"
    assert leaves(quiet, role, MUSIC) == "dropped"
    assert leaves(quiet, role, f"{UCM}:24576") == "as it is"


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("state", "public"), [(State.MOH, HOLD), (State.TWO, CALL)])
def test_nothing_against_rtp_that_is_heard(
    programs: Bench, role: Role, state: State, public: str
) -> None:
    """FIELD's F70: a report to 4001 moves no music to 4001, and to a call's port ends no hold."""
    programs.set_peer(PROVIDER, PeerState(state, public, told=True))
    before = programs.peers()
    for source, port in [*HOLDS, (BESIDE, 24577), (PROVIDER, 24577), (PROVIDER, 24576)]:
        report(programs, f"{PUBLIC}:{port}", source)
        expected = HOLD if state is State.MOH else "as it is"
        assert leaves(programs, role, f"{UCM}:24576") == expected
    assert programs.peers() == before
    assert all(each.kind == Kind.MUSIC for each in programs.events())


@pytest.mark.parametrize("role", BOTH)
def test_what_rtcp_has_decided_holds_for_each_port(programs: Bench, role: Role) -> None:
    """Also for the one that the endpoint sent to before its hold: UCM may take it again."""
    programs.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=2, told=True))
    report(programs, f"{PUBLIC}:4001")
    assert leaves(programs, role, f"{UCM}:24576") == "as it is"
    assert leaves(programs, role, MUSIC) == HOLD
    assert leaves(programs, role, f"{UCM}:24576") == HOLD


# RTP and RTCP, the one later than the other: who said what how long ago, and what music does.
ORDER = [
    ("the RTP of a call has just stopped", (State.TWO, 2), (4001, 1), HOLD),
    ("a call that goes on after a hold", (State.TWO, 1), (4001, 2), "dropped"),
    ("a call whose RTCP is later than its RTP", (State.TWO, 2), (24577, 1), "dropped"),
    ("a hold goes on after its RTP", (State.MOH, 11), (4001, 12), HOLD),
    ("it began since the call's last RTP", (State.TWO, 11), (4001, 5), HOLD),
    ("it ended by RTP", (State.TWO, 11), (4001, 13), "dropped"),
    ("the call's RTCP is older than its RTP", (State.TWO, 11), (24577, 13), "dropped"),
    ("the call's RTCP is older than a hold's RTP", (State.MOH, 11), (24577, 13), "dropped"),
    ("a hold ended by RTCP, before music", (State.MOH, 12), (24577, 5), "dropped"),
]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("what", "rtp", "rtcp", "expected"), ORDER, ids=lambda v: str(v)[:40])
def test_the_later_one_has_the_word(
    quiet: Bench,
    role: Role,
    what: str,
    rtp: tuple[State, float],
    rtcp: tuple[int, float],
    expected: str,
) -> None:
    state, age = rtp
    port, seconds = rtcp
    public = HOLD if state is State.MOH else CALL
    quiet.set_peer(PROVIDER, PeerState(state, public, age=age))
    report(quiet, f"{PUBLIC}:{port}")
    quiet.age_reports(seconds)
    assert leaves(quiet, role, MUSIC) == expected, what


@pytest.mark.parametrize("role", BOTH)
def test_a_call_goes_on_in_a_pause_of_its_rtp(quiet: Bench, role: Role) -> None:
    """From the port that it had, wherever the firewall's NAT has moved that to."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:50000", age=11, source=MUSIC))
    report(quiet, f"{PUBLIC}:50001")
    assert leaves(quiet, role, MUSIC) == "as it is"
    assert leaves(quiet, role, f"{UCM}:31000") == "dropped"


@pytest.mark.parametrize("role", BOTH)
def test_an_older_report_that_says_the_same(quiet: Bench, role: Role) -> None:
    """A pause in a call: RTP was later, and of the same call."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=11))
    report(quiet, f"{PUBLIC}:24577")
    quiet.age_reports(13)
    assert leaves(quiet, role, f"{UCM}:24576") == "as it is"
    assert leaves(quiet, role, MUSIC) == "dropped"
    assert quiet.all_peers()[0].public == CALL
    report(quiet, f"{PUBLIC}:4001")
    quiet.age_reports(13)
    assert leaves(quiet, role, f"{UCM}:24576") == "dropped", "it says otherwise"


@pytest.mark.parametrize(("first", "last"), [(PROVIDER, BESIDE), (BESIDE, PROVIDER)])
def test_the_later_of_two_reports(quiet: Bench, first: str, last: str) -> None:
    """From RTP's own port, and from the one above: one of them may be forged."""
    report(quiet, f"{PUBLIC}:9999", first)
    quiet.age_reports(1)
    report(quiet, f"{PUBLIC}:4000", last)
    assert leaves(quiet, Role.BYPASS, MUSIC) == HOLD


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize("age", [0, 11])
def test_reports_of_a_call_beside(quiet: Bench, role: Role, age: float) -> None:
    """With rtcp-mux, another call may have the port above: its reports are its own."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=11))
    quiet.set_peer(BESIDE, PeerState(State.MOH, HOLD, age=age, told=True))
    report(quiet, HOLD, BESIDE)
    assert leaves(quiet, role, f"{UCM}:24576") == "dropped"
    assert leaves(quiet, role, MUSIC, BESIDE) == HOLD
    # And UCM's RTCP there is not that of the port below.
    quiet.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    quiet.set_peer(BESIDE, PeerState(State.TWO, f"{PUBLIC}:27000", age=11, told=True))
    report(quiet, f"{PUBLIC}:27000", BESIDE)
    assert leaves(quiet, role, f"{UCM}:27000", BESIDE, REPORT) == "as it is"


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("silence", "expected"), [(6, "dropped"), (3, HOLD)])
def test_a_report_of_the_call_before(
    quiet: Bench, role: Role, silence: float, expected: str
) -> None:
    """A provider uses a port again: UCM's voice must not leave from 4000 because the call before
    was on hold."""
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, MUSIC) == HOLD
    quiet.age_all(silence)
    quiet.set_learned()
    for _ in range(2):
        assert leaves(quiet, role, f"{UCM}:26000") == expected
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, f"{UCM}:26000") == HOLD


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("age", "told"), [(11, False), (16, True)])
def test_noise_and_calls_long_past_are_no_call_beside(
    quiet: Bench, role: Role, age: float, told: bool
) -> None:
    """One forged packet from the port above must not take a hold's reports away."""
    quiet.set_peer(BESIDE, PeerState(State.TWO, f"{PUBLIC}:9999", age=age, told=told))
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, MUSIC) == HOLD


@pytest.mark.parametrize("role", BOTH)
def test_a_pause_of_ucm_s_in_a_hold(quiet: Bench, role: Role) -> None:
    """Reports since UCM's last packet are of the present hold, however long that is silent."""
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, MUSIC) == HOLD
    quiet.age_all(6)
    report(quiet, f"{PUBLIC}:4001")
    quiet.age_all(2)
    quiet.set_learned()
    assert leaves(quiet, role, f"{UCM}:26000") == HOLD


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("goes_on", "expected"), [(False, "dropped"), (True, "as it is")])
def test_a_port_that_passed_by_waiting_is_no_proof(
    quiet: Bench, role: Role, goes_on: bool, expected: str
) -> None:
    """The music of a hold that is not known of passes after 0.2 s. The reports of the call before
    must not keep it going when the call's RTP expires; they do if the call went on meanwhile."""
    moved = f"{PUBLIC}:50000"
    quiet.set_peer(PROVIDER, PeerState(State.TWO, moved, age=1, source=f"{UCM}:24576"))
    assert leaves(quiet, role, MUSIC) == "dropped"
    quiet.age_all(0.3)
    quiet.set_learned()
    assert leaves(quiet, role, MUSIC) == "as it is"
    report(quiet, f"{PUBLIC}:50001")
    quiet.age_reports(3)
    if goes_on:
        quiet.learn(moved, 1)
    quiet.age_all(7)
    quiet.set_learned()
    assert leaves(quiet, role, MUSIC) == "as it is"
    quiet.age_all(3.1)
    quiet.set_learned()
    assert leaves(quiet, role, MUSIC) == expected


@pytest.mark.parametrize("role", BOTH)
def test_music_that_passed_before_its_report(quiet: Bench, role: Role) -> None:
    """For 0.2 s it was held back, and then its port counted as the call's."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=1, source=MUSIC))
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, MUSIC) == HOLD


@pytest.mark.parametrize("role", BOTH)
def test_a_report_of_a_call_holds_nothing_back(quiet: Bench, role: Role) -> None:
    """RTP says that it is a call: a new port waits for 0.2 s, not for the patience."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=1, source=f"{UCM}:24576"))
    report(quiet, f"{PUBLIC}:24577")
    assert leaves(quiet, role, MUSIC) == "dropped"
    counters = quiet.counters()
    assert (counters.get("held_back"), counters.get("dropped_unidentified")) == (1, None)


def test_another_phantom_port_is_no_other_state(quiet: Bench) -> None:
    report(quiet, f"{PUBLIC}:4001")
    quiet.send(Role.BYPASS, 1, 2, source=MUSIC)
    quiet.events()
    report(quiet, f"{PUBLIC}:4003")
    quiet.send(Role.BYPASS, 3, source=MUSIC)
    assert quiet.all_peers()[0].public == f"{PUBLIC}:4002"
    assert quiet.events() == []
    assert "two_to_moh" not in quiet.counters()


def test_a_call_of_long_ago_is_told_of_anew(quiet: Bench) -> None:
    """One report and one packet are no call."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=40, told=True))
    report(quiet, f"{PUBLIC}:4001")
    quiet.send(Role.BYPASS, 1, source=MUSIC)
    assert quiet.events() == []
    assert "learned_moh" not in quiet.counters()
    quiet.send(Role.BYPASS, 2, source=MUSIC)
    learned, music = quiet.events()
    assert (learned.kind, learned.before, music.kind) == (Kind.LEARNED, 0, Kind.MUSIC)


def test_how_long_a_hold_by_rtcp_has_lasted(quiet: Bench) -> None:
    """Until its last report, not until that expired."""
    report(quiet, f"{PUBLIC}:4001")
    quiet.send(Role.BYPASS, 1, 2, source=MUSIC)
    quiet.age_all(16)
    quiet.events()
    quiet.learn(CALL, 1)
    (learned,) = quiet.events()
    assert (learned.kind, learned.before, learned.lasted) == (Kind.LEARNED, State.MOH, 0)


def test_by_what_it_is_known(quiet: Bench) -> None:
    report(quiet, f"{PUBLIC}:4001")
    assert quiet.shown() == {}, "UCM sends nothing to it"
    quiet.send(Role.BYPASS, 1, 2, source=MUSIC)
    assert quiet.shown() == {PROVIDER: ("MOH", "RTCP")}
    learned, music = quiet.events()
    assert (learned.kind, music.kind) == (Kind.LEARNED, Kind.MUSIC)
    assert learned.evidence == music.evidence == Evidence.RTCP
    assert quiet.counters()["learned_moh"] == 1
    (peer,) = quiet.all_peers()
    assert (peer.public, peer.out_packets, peer.in_packets) == (HOLD, 2, 0)
    assert not peer.expired


@pytest.mark.parametrize("role", BOTH)
def test_a_call_whose_rtp_stops_for_a_hold(quiet: Bench, role: Role) -> None:
    """It is not forgotten yet. The music is the hold's from its first packet on; the call's own
    port asks for nothing, as long as nothing has told of the hold."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=1, source=f"{UCM}:24576", told=True))
    report(quiet, f"{PUBLIC}:4001")
    assert leaves(quiet, role, f"{UCM}:24576") == "as it is"
    for _ in range(3):
        assert leaves(quiet, role, MUSIC) == HOLD
    assert quiet.shown() == {PROVIDER: ("MOH", "RTCP")}
    changed, music = quiet.events()
    assert (changed.kind, changed.before) == (Kind.CHANGED, State.TWO)
    assert (changed.evidence, music.kind) == (Evidence.RTCP, Kind.MUSIC)
    assert quiet.counters()["two_to_moh"] == 1
    # The call goes on: its RTP has the word again.
    quiet.learn(CALL, 1)
    assert leaves(quiet, role, f"{UCM}:24576") == "as it is"
    assert quiet.shown() == {PROVIDER: ("TWO", "RTP")}


@pytest.mark.parametrize("role", BOTH)
def test_a_late_report_of_a_hold_that_is_over(quiet: Bench, role: Role) -> None:
    """Between two packets of the call: the firewall's NAT has moved UCM's port, and it is new."""
    verdict, paused = "", True
    while paused:
        begun = time.monotonic()
        quiet.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:50000", source=MUSIC))
        report(quiet, f"{PUBLIC}:4001")
        verdict = leaves(quiet, role, f"{UCM}:31000")
        paused = time.monotonic() - begun > 0.08
    assert verdict == "dropped", "held back, as a new port is"
    assert quiet.counters()["held_back"] >= 1


def test_from_call_to_hold_and_back(quiet: Bench) -> None:
    """Each change is told once, with what it is known by."""
    quiet.set_peer(PROVIDER, PeerState(State.TWO, CALL, told=True, age=10.5))
    report(quiet, f"{PUBLIC}:4001")
    quiet.send(Role.BYPASS, 1, 2, source=MUSIC)
    report(quiet, f"{PUBLIC}:4001")
    quiet.send(Role.BYPASS, 3, source=MUSIC)
    quiet.learn(HOLD, 1)  # RTP again, and the same state
    quiet.learn(CALL, 2)
    told = [(Kind(each.kind), each.before, Evidence(each.evidence)) for each in quiet.events()]
    assert told == [
        (Kind.LEARNED, State.TWO, Evidence.RTCP),
        (Kind.MUSIC, State.MOH, Evidence.RTCP),
        (Kind.CHANGED, State.MOH, Evidence.RTP),
    ]
    assert quiet.shown() == {PROVIDER: ("TWO", "RTP")}


def test_a_hold_whose_rtp_has_just_stopped_goes_on(quiet: Bench) -> None:
    """It is not forgotten in between, and no change is told."""
    paused = True
    while paused:
        begun = time.monotonic()
        quiet.set_peer(PROVIDER, PeerState(State.MOH, HOLD, told=True, age=10.01))
        report(quiet, f"{PUBLIC}:4001")
        (before,) = quiet.all_peers()
        quiet.events()
        verdict = leaves(quiet, Role.BYPASS, MUSIC)
        paused = time.monotonic() - begun > 0.08
    assert verdict == HOLD, "the music has stopped"
    assert [Kind(each.kind) for each in quiet.events()] == [Kind.MUSIC]
    assert quiet.all_peers()[0].since >= before.since
    assert quiet.shown() == {PROVIDER: ("MOH", "RTCP")}


def test_it_can_be_turned_off(benches: Benches) -> None:
    with benches(rtcp_timeout="0s") as programs:
        programs.set_learned()
        assert report(programs, f"{PUBLIC}:4001") == SHOT
        assert report(programs, f"{PUBLIC}:24577") == UNSPEC
        assert leaves(programs, Role.BYPASS, MUSIC) == "dropped"
        assert leaves(programs, Role.BYPASS, f"{UCM}:24576") == "dropped"


def test_its_timeout_is_a_setting(benches: Benches) -> None:
    with benches(rtcp_timeout="40s") as programs:
        report(programs, f"{PUBLIC}:4001")
        programs.age_reports(38)
        assert leaves(programs, Role.BYPASS, MUSIC) == HOLD
        assert not programs.all_peers()[0].expired
        programs.age_all(3)
        assert programs.all_peers()[0].expired


def test_who_may_not_teach_reports_nothing(benches: Benches) -> None:
    with benches(provider=["198.18.0.0/15"]) as programs:
        programs.set_learned()
        assert report(programs, f"{PUBLIC}:4001") == UNSPEC
        assert leaves(programs, Role.BYPASS, MUSIC) == "dropped"
