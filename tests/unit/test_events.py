"""From the kernel's records to events, and events as lines."""

import struct
from collections.abc import Callable
from socket import inet_aton

import pytest

from moh_ebpf import layout
from moh_ebpf.calls import tracker
from moh_ebpf.calls.events import Event, KernelEvent, Key, Lost
from moh_ebpf.calls.peers import SipCall
from moh_ebpf.calls.tracker import PeerEntry, Tracker
from moh_ebpf.layout import Evidence, Kind, State
from moh_ebpf.service.sums import Histogram, Sums
from moh_ebpf.show.follow import line
from tests.support.samples import about

SECOND = 10**9
KEY = inet_aton("203.0.113.10"), struct.pack("!H", 20000)
OTHER = inet_aton("203.0.113.11"), struct.pack("!H", 20002)


def heard(state: State) -> bytes:
    port = 4000 if state is State.MOH else 24576
    return layout.HEARD.pack(inet_aton("198.51.100.2"), struct.pack("!H", port), state, 0)


def record(
    at: float, kind: Kind, state: State, *, key: Key = KEY, before: State | int = 0,
    lasted: float = 0.0, dropped: int = 0, evidence: Evidence = Evidence.RTP,
) -> KernelEvent:  # fmt: skip
    """`at` and `lasted` in seconds."""
    return KernelEvent(
        round(at * SECOND), heard(state), round(lasted * SECOND), dropped, *key, kind, before,
        evidence,
    )  # fmt: skip


class Peers:
    """The kernel's map: last_seen and since, in seconds, of endpoints in `state`."""

    def __init__(self) -> None:
        self.there: dict[Key, tuple[float, float]] = {}
        self.state = State.TWO
        self.renew: Callable[[], bool] = lambda: False
        self.tracker = Tracker(self.look, SECOND, {0: "eth1"}, lambda: self.renew())

    def look(self, key: Key) -> PeerEntry | None:
        times = self.there.get(key)
        if times is None:
            return None
        last_seen, since = (round(each * SECOND) for each in times)
        return PeerEntry(heard(self.state), last_seen, since)

    def told(self, *records: KernelEvent) -> list[Event]:
        return [event for each in records for event in self.tracker.tell(each)]

    def after(self, seconds: float) -> list[Event]:
        return list(self.tracker.due(round(seconds * SECOND)))


@pytest.fixture
def peers() -> Peers:
    return Peers()


def short(told: list[Event]) -> list[tuple[object, ...]]:
    return [(each.event, each.before, each.after, each.lasted) for each in told]


def test_a_hold_by_rtcp_has_lasted_until_its_last_report() -> None:
    """It expires 15 s after that."""
    found = PeerEntry(heard(State.MOH), 39 * SECOND, 20 * SECOND, Evidence.RTCP, 25 * SECOND)
    made = Tracker(lambda key: found, SECOND, {0: "eth1"})
    made.know(KEY, found)
    assert short(list(made.due(round(40.2 * SECOND)))) == [("expired", State.MOH, None, 5)]


def test_a_hold_by_rtcp_whose_endpoint_speaks_again() -> None:
    made = Tracker(lambda key: None, SECOND, {0: "eth1"}, rtcp_timeout_ns=15 * SECOND)
    made.know(
        KEY, PeerEntry(heard(State.MOH), 39 * SECOND, 20 * SECOND, Evidence.RTCP, 25 * SECOND)
    )
    again = record(40.05, Kind.LEARNED, State.TWO, before=State.MOH, lasted=5)
    expired, new = made.tell(again)
    assert (expired.event, expired.time, expired.lasted) == ("expired", 40, 5)
    assert (new.event, new.time) == ("new", about(40.05))


def test_a_call_that_is_put_on_hold_and_resumed(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.TWO),
        record(40, Kind.CHANGED, State.MOH, before=State.TWO, lasted=30),
        record(40.02, Kind.MUSIC, State.MOH, lasted=0.1, dropped=5),
        record(50, Kind.CHANGED, State.TWO, before=State.MOH, lasted=10),
    )
    assert short(told) == [
        ("new", None, State.TWO, None),
        ("hold", State.TWO, State.MOH, 30),
        ("resume", State.MOH, State.TWO, 10),
    ]
    hold = told[1]
    assert (hold.time, hold.time_to_music, hold.dropped_before) == (40, 0.1, 5)
    assert (hold.address, hold.port) == ("203.0.113.10", 20000)
    assert (hold.public_address, hold.public_port) == ("198.51.100.2", 4000)
    assert hold.interface == "eth1"


def test_one_that_begins_on_hold_is_new_and_on_hold(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.MOH), record(10.1, Kind.MUSIC, State.MOH, lasted=2)
    )
    assert short(told) == [("new", None, State.MOH, None), ("hold", None, State.MOH, None)]
    assert told[1].time_to_music == 2


def test_a_hold_without_music_is_told_after_a_second(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.MOH))
    peers.there[KEY], peers.state = (10.9, 10), State.MOH
    assert peers.after(10.5) == []
    (hold,) = peers.after(11.1)
    assert (hold.event, hold.time_to_music, hold.dropped_before) == ("hold", None, None)
    # Music that comes then is no second event.
    assert peers.told(record(12, Kind.MUSIC, State.MOH)) == []


def test_whoever_reads_late_is_told_the_same(peers: Peers) -> None:
    """All records at once, as --history has them: they alone say when the music came."""
    told = peers.told(
        record(10, Kind.LEARNED, State.MOH),
        record(11.5, Kind.MUSIC, State.MOH, lasted=0, dropped=0),
        record(20, Kind.CHANGED, State.TWO, before=State.MOH, lasted=10),
        record(30, Kind.CHANGED, State.MOH, before=State.TWO, lasted=10),
        record(31.1, Kind.CHANGED, State.TWO, before=State.MOH, lasted=1.1),
        record(32, Kind.CHANGED, State.MOH, before=State.TWO, lasted=0.9),
        record(32.9, Kind.CHANGED, State.TWO, before=State.MOH, lasted=0.9),
    )
    holds = [each for each in told if each.event == "hold"]
    assert [each.time_to_music for each in holds] == [None, None, None]
    assert [each.ended_first for each in holds] == [False, False, True]


def test_a_hold_without_music_that_ends_before(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.MOH),
        record(10.4, Kind.CHANGED, State.TWO, before=State.MOH, lasted=0.4),
    )
    assert [each.event for each in told] == ["new", "hold", "resume"]


def test_forgotten(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.TWO))
    peers.there[KEY] = 10.7, 10
    assert peers.after(11.2) == []  # it was heard in between
    (event,) = peers.after(11.8)
    assert short([event]) == [("expired", State.TWO, None, pytest.approx(0.7))]
    assert event.time == pytest.approx(11.7)
    assert peers.after(100) == []


def test_evicted(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.TWO))
    assert short(peers.after(11.2)) == [("evicted", State.TWO, None, None)]


def test_back_before_anybody_has_looked(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.TWO),
        record(15, Kind.LEARNED, State.TWO, before=State.TWO, lasted=3),
    )
    assert short(told) == [
        ("new", None, State.TWO, None),
        ("expired", State.TWO, None, 3),
        ("new", None, State.TWO, None),
    ]
    assert [each.time for each in told] == [10, 14, 15]


def test_evicted_and_back_before_anybody_has_looked(peers: Peers) -> None:
    told = peers.told(record(10, Kind.LEARNED, State.TWO), record(15, Kind.LEARNED, State.TWO))
    assert [each.event for each in told] == ["new", "evicted", "new"]


def test_two_cpus_that_learn_it_again_at_once(peers: Peers) -> None:
    """Both may find it forgotten; it is so once."""
    told = peers.told(
        record(10, Kind.LEARNED, State.TWO),
        record(15, Kind.LEARNED, State.TWO, before=State.TWO, lasted=3),
        record(15.000002, Kind.LEARNED, State.TWO, before=State.TWO, lasted=0),
    )
    assert [each.event for each in told] == ["new", "expired", "new"]


def test_last_seen_of_another_cpu_s_clock(peers: Peers) -> None:
    """The last packet may be of a CPU whose tick was before the one that learned it."""
    peers.told(record(10, Kind.LEARNED, State.TWO))
    peers.there[KEY] = 9.999, 10
    assert short(peers.after(12)) == [("expired", State.TWO, None, 0)]


def test_a_hold_whose_beginning_was_missed(peers: Peers) -> None:
    """Its music tells of it: as the first thing heard, or after a call."""
    music = record(10, Kind.MUSIC, State.MOH, lasted=0.5, dropped=25)
    (hold,) = peers.told(music)
    assert (hold.event, hold.before, hold.time_to_music) == ("hold", None, 0.5)
    peers.told(record(11, Kind.LEARNED, State.TWO, key=OTHER))
    (hold,) = peers.told(record(12, Kind.MUSIC, State.MOH, key=OTHER))
    assert (hold.event, hold.dropped_before) == ("hold", 0)


def test_of_a_flood_holds_are_told_with_their_music(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "_MOST_KNOWN", 1)
    peers.told(record(10, Kind.LEARNED, State.MOH))
    told = peers.told(record(10.1, Kind.LEARNED, State.MOH, key=OTHER))
    assert [each.event for each in told] == ["new"]
    (hold,) = peers.told(record(10.2, Kind.MUSIC, State.MOH, key=OTHER, lasted=0.1, dropped=5))
    assert (hold.event, hold.dropped_before) == ("hold", 5)
    another = inet_aton("203.0.113.12"), OTHER[1]
    assert len(peers.told(record(10.3, Kind.LEARNED, State.MOH, key=another))) == 1
    # Nothing is left to wait for once the one that is followed has ended.
    peers.there[KEY] = 10, 10
    assert [each.event for each in peers.after(12)] == ["hold", "expired"]
    assert peers.tracker.next_due(12 * SECOND) == float("inf")


def test_who_was_there_from_the_start(peers: Peers) -> None:
    peers.tracker.know(KEY, PeerEntry(heard(State.TWO), 12 * SECOND, 10 * SECOND))
    peers.there[KEY] = 12, 10
    assert short(peers.after(13.5)) == [("expired", State.TWO, None, 2)]


def test_what_the_map_had_before_its_record_was_read(peers: Peers) -> None:
    """It is news all the same, and its end comes once."""
    peers.tracker.know(KEY, PeerEntry(heard(State.TWO), 12 * SECOND, 10 * SECOND))
    assert short(peers.told(record(10, Kind.LEARNED, State.TWO))) == [
        ("new", None, State.TWO, None)
    ]
    peers.there[KEY] = 12, 10
    assert short(peers.after(13.5)) == [("expired", State.TWO, None, 2)]
    assert peers.after(30) == []


def test_changes_within_a_tick_of_the_clock(peers: Peers) -> None:
    """With --no-quality, times are those of the last tick. What has been told of is news."""
    told = peers.told(
        record(10, Kind.LEARNED, State.MOH),
        record(10, Kind.CHANGED, State.TWO, before=State.MOH),
        record(10, Kind.CHANGED, State.MOH, before=State.TWO),
        record(10, Kind.MUSIC, State.MOH),
    )
    assert [each.event for each in told] == ["new", "hold", "resume", "hold"]
    assert [each.ended_first for each in told] == [False, True, False, False]


def test_one_that_changes_for_ever_is_looked_for_once(peers: Peers) -> None:
    for n in range(1000):
        state, before = (State.MOH, State.TWO) if n % 2 else (State.TWO, State.MOH)
        peers.told(record(10 + n / 1000, Kind.CHANGED, state, before=before))
    assert peers.tracker.scheduled == 1
    peers.there[KEY] = 10.999, 10.999
    assert [each.event for each in peers.after(11.9)] == []
    assert [each.event for each in peers.after(12.1)] == ["hold", "expired"]


def test_a_replacement_with_another_timeout_and_other_interfaces(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.TWO))
    peers.there[KEY] = 10, 10
    peers.tracker.go_on(5 * SECOND)
    peers.tracker.interfaces = {0: "eth2"}
    assert peers.after(14.9) == []
    (end,) = peers.after(15.1)
    assert (end.event, end.time, end.interface) == ("expired", 15, "eth1")
    peers.told(record(20, Kind.LEARNED, State.TWO))
    peers.there[KEY] = 20, 20
    peers.tracker.go_on(SECOND)
    assert [each.event for each in peers.after(21.1)] == ["expired"]


def test_an_end_is_looked_up_where_it_is_by_now(peers: Peers) -> None:
    """A replacement may have moved the peers since: those in the old map grow old."""
    peers.told(record(10, Kind.LEARNED, State.TWO), record(10, Kind.LEARNED, State.TWO, key=OTHER))
    peers.there = {KEY: (10, 10), OTHER: (10, 10)}
    asked = []

    def renew() -> bool:
        asked.append(True)
        peers.there = {KEY: (11.5, 10), OTHER: (11.4, 10)}
        peers.tracker.go_on(SECOND)
        return True

    peers.renew = renew
    assert peers.after(11.6) == []
    assert len(asked) == 1
    assert [each.port for each in peers.after(12.55)] == [20002]
    assert peers.tracker.scheduled == 1


def test_what_it_was_at_last_though_a_record_was_missed(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.TWO))
    peers.there[KEY], peers.state = (40, 15), State.MOH
    assert short(peers.after(41.5)) == [("expired", State.MOH, None, 25)]


def test_two_cpus_that_see_the_same_change(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.TWO),
        record(20, Kind.CHANGED, State.MOH, before=State.TWO, lasted=10),
        record(20.000001, Kind.CHANGED, State.MOH, before=State.TWO, lasted=10),
        record(20.1, Kind.MUSIC, State.MOH),
    )
    assert [(each.event, each.ended_first) for each in told] == [("new", False), ("hold", False)]


def test_nothing_follows_any_more(peers: Peers) -> None:
    peers.told(record(10, Kind.LEARNED, State.MOH))
    assert [(each.event, each.ended_first) for each in peers.tracker.give_up()] == [("hold", True)]
    assert list(peers.tracker.give_up()) == []


def test_two_endpoints_do_not_mix(peers: Peers) -> None:
    told = peers.told(
        record(10, Kind.LEARNED, State.MOH),
        record(10, Kind.LEARNED, State.MOH, key=OTHER),
        record(10.1, Kind.MUSIC, State.MOH, key=OTHER),
    )
    assert [(each.event, each.port) for each in told] == [
        ("new", 20000), ("new", 20002), ("hold", 20002),
    ]  # fmt: skip


def test_nothing_to_do_is_nothing_to_wait_for(peers: Peers) -> None:
    assert peers.tracker.next_due(SECOND) == float("inf")


HOLD = Event(
    1700000000.25, "hold", "203.0.113.10", 20000, State.TWO, State.MOH, "198.51.100.2", 4000,
    "eth1", 30.0, 0.0425, 2, identified=Evidence.RTP,
)  # fmt: skip


def test_json_has_the_documented_fields() -> None:
    assert HOLD.to_json() == {
        "time": 1700000000.25, "event": "hold", "address": "203.0.113.10", "port": 20000,
        "from": "two", "to": "moh", "public_address": "198.51.100.2", "public_port": 4000,
        "interface": "eth1", "lasted": 30.0, "identified": "rtp", "call_id": None, "caller": None,
        "called": None, "time_to_music": 0.0425, "dropped_before": 2,
    }  # fmt: skip
    expired = HOLD._replace(event="expired", before=State.MOH, after=None).to_json()
    assert (expired["from"], expired["to"]) == ("moh", None)
    assert "time_to_music" not in expired
    assert Lost(5.0, 7).to_json() == {"time": 5.0, "event": "lost", "count": 7}


def test_lines() -> None:
    assert line(HOLD).endswith(
        "  hold    203.0.113.10:20000  MOH at 198.51.100.2:4000  after 30.0 s of TWO  "
        "music in 42 ms, 2 dropped"
    )
    silent = HOLD._replace(time_to_music=None, dropped_before=None)
    assert "NO MUSIC within 1 s" in line(silent)
    assert "no music before it ended" in line(silent._replace(ended_first=True))
    assert "7 events" in line(Lost(5.0, 7))


def test_a_histogram_counts_up_to_its_bounds() -> None:
    made = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        made.observe(seconds)
    assert (made.counts, made.sum) == ([2, 1, 1], 12.0)


def test_sums() -> None:
    sums = Sums()
    resume = HOLD._replace(event="resume", before=State.MOH, after=State.TWO, lasted=12.0,
                           time_to_music=None)  # fmt: skip
    # It tells how long UCM has waited, not how long a hold was.
    unheard = resume._replace(event="unheard", after=None, lasted=3.0)
    for each in (HOLD, resume, unheard, Lost(1.0, 3)):
        sums.add(each)
    assert sums.events == {"hold": 1, "resume": 1, "unheard": 1, "lost": 3}
    assert (sums.time_to_music.sum, sums.hold.sum) == (0.0425, 12.0)


# What signalling says

CALL = SipCall("a1b2@10.10.10.10")
LEASE = 600


class Signalled:
    """The kernel's maps, and the call that signalling names in them; times in seconds."""

    def __init__(self) -> None:
        self.call: SipCall | None = CALL
        self.found: PeerEntry | None = None
        self.tracker = Tracker(
            lambda key: self.found, SECOND, {0: "eth1"}, look_up_call=lambda key: self.call
        )

    def has(self, state: State, until: float, since: float, evidence: Evidence) -> None:
        """The map's entry, as the reader finds it: it expires then."""
        last_report = None if evidence is Evidence.RTP else 0
        times = (round((until - 1) * SECOND), round(since * SECOND))
        self.found = PeerEntry(heard(state), *times, evidence, last_report)

    def told(self, *records: KernelEvent) -> list[Event]:
        return [event for each in records for event in self.tracker.tell(each)]

    def after(self, seconds: float) -> list[Event]:
        return list(self.tracker.due(round(seconds * SECOND)))


@pytest.fixture
def signalled() -> Signalled:
    """A call that signalling has named at 10 s; at the next look, its lease is found."""
    made = Signalled()
    record_of_it = record(10, Kind.LEARNED, State.TWO, evidence=Evidence.SIGNALLING)
    made.has(State.TWO, 10 + LEASE, 10, Evidence.SIGNALLING)
    (new,) = made.told(record_of_it)
    assert (new.event, new.identified, new.call) == ("new", Evidence.SIGNALLING, CALL)
    assert made.after(12) == []
    return made


def ended(at: float, state: State = State.TWO) -> KernelEvent:
    """Signalling says nothing any more."""
    return record(
        at, Kind.UNSIGNALLED, state, before=state, lasted=at - 10, evidence=Evidence.SIGNALLING
    )


def test_a_call_by_signalling_ends_with_it_and_not_with_its_lease(signalled: Signalled) -> None:
    signalled.call = None
    signalled.has(State.TWO, 40, 10, Evidence.SIGNALLING)
    (event,) = signalled.told(ended(40))
    assert short([event]) == [("expired", State.TWO, None, 30)]
    assert (event.time, event.identified, event.call) == (40, Evidence.SIGNALLING, CALL)
    assert signalled.after(10 + LEASE + 2) == []


def test_one_that_is_gone_from_the_map_ends_with_its_signalling(signalled: Signalled) -> None:
    signalled.call = signalled.found = None
    assert short(signalled.told(ended(40))) == [("expired", State.TWO, None, 30)]


def test_a_call_whose_media_go_on_when_its_signalling_has_ended(signalled: Signalled) -> None:
    """It ends when they do, long before the lease would have, and is that call still."""
    signalled.call = None
    signalled.has(State.TWO, 41, 10, Evidence.RTP)
    assert signalled.told(ended(40.01)) == []
    assert signalled.after(40.5) == []
    signalled.has(State.TWO, 45.8, 10, Evidence.RTP)
    assert signalled.after(41.5) == []
    (event,) = signalled.after(46)
    assert short([event]) == [("expired", State.TWO, None, about(34.8))]
    assert (event.time, event.identified, event.call) == (about(45.8), Evidence.RTP, CALL)
    assert signalled.after(10 + LEASE + 2) == []


def test_a_hold_that_ends_with_its_signalling_waits_for_no_music(signalled: Signalled) -> None:
    hold = record(20, Kind.CHANGED, State.MOH, before=State.TWO, lasted=10,
                  evidence=Evidence.SIGNALLING)  # fmt: skip
    assert signalled.told(hold) == []
    signalled.found = None
    told = signalled.told(ended(20.4, State.MOH))
    assert [(each.event, each.call) for each in told] == [("hold", CALL), ("expired", CALL)]
    assert told[0].ended_first


def test_what_the_media_say_when_signalling_has_ended_is_a_change(signalled: Signalled) -> None:
    """The kernel tells of that first."""
    signalled.call = None
    signalled.has(State.MOH, 41, 40, Evidence.RTP)
    changed = record(40, Kind.CHANGED, State.MOH, before=State.TWO, lasted=30)
    assert signalled.told(changed, ended(40)) == []
    (hold,) = signalled.told(record(40.1, Kind.MUSIC, State.MOH))
    assert (hold.event, hold.identified, hold.call) == ("hold", Evidence.RTP, CALL)


def test_the_lease_may_end_alone(signalled: Signalled) -> None:
    """Who renews it has crashed: nobody tells of the end."""
    (event,) = signalled.after(10 + LEASE + 0.2)
    assert (event.event, event.time, event.call) == ("expired", 10 + LEASE, CALL)


def test_the_end_of_what_nobody_was_told_of_is_none(signalled: Signalled) -> None:
    another = ended(40)._replace(address=OTHER[0], port=OTHER[1])
    assert signalled.told(another) == []


def test_where_the_routes_say_by_which_wan_there_is_none(signalled: Signalled) -> None:
    nowhere = layout.HEARD.pack(bytes(4), struct.pack("!H", 24576), State.TWO, layout.NO_WAN)
    other = record(30, Kind.LEARNED, State.TWO, key=OTHER, evidence=Evidence.SIGNALLING)
    (new,) = signalled.told(other._replace(heard=nowhere))
    assert new.to_json()["interface"] is None


def test_the_next_call_of_an_endpoint_is_another(signalled: Signalled) -> None:
    signalled.found = None
    signalled.told(ended(40))
    signalled.call = SipCall("c3d4@10.10.10.10")
    (new,) = signalled.told(record(41, Kind.LEARNED, State.TWO, evidence=Evidence.SIGNALLING))
    assert new.call == SipCall("c3d4@10.10.10.10")


def test_a_call_is_named_in_its_events() -> None:
    by_sip = HOLD._replace(identified=Evidence.SIGNALLING, call=SipCall("a@b", "100", "+4930123"))
    assert str(by_sip) == (
        "hold    203.0.113.10:20000  MOH at 198.51.100.2:4000 by SIP  after 30.0 s of TWO  "
        "music in 42 ms, 2 dropped  call a@b"
    )
    shown = by_sip.to_json()
    assert [shown[name] for name in ("identified", "call_id", "caller", "called")] == [
        "signalling", "a@b", "100", "+4930123",
    ]  # fmt: skip
    nameless = by_sip._replace(call=SipCall("a@b")).to_json()
    assert (nameless["call_id"], nameless["caller"], nameless["called"]) == ("a@b", None, None)
    expired = by_sip._replace(event="expired", before=State.MOH, after=None)
    assert str(expired) == "expired 203.0.113.10:20000  after 30.0 s of MOH  call a@b"


# UCM's RTP that passes although its endpoint is not heard


def test_a_wan_is_blind_and_sees_again(peers: Peers) -> None:
    nobody = (bytes(4), bytes(2))
    blind, seeing = peers.told(
        record(20, Kind.BLIND, State.MOH, key=nobody, lasted=3.2),
        record(30, Kind.SEEING, State.MOH, key=nobody, lasted=13.2),
    )
    assert str(blind) == (
        "blind   eth1  LEARN SEES NOTHING for 3.2 s, UCM's RTP passes as without moh_ebpf"
    )
    assert str(seeing) == "seeing  eth1  learn sees packets again, after 13.2 s"
    assert seeing.to_json() == {
        "time": 30, "event": "seeing", "address": None, "port": None, "from": None, "to": None,
        "public_address": None, "public_port": None, "interface": "eth1", "lasted": 13.2,
        "identified": None, "call_id": None, "caller": None, "called": None,
    }  # fmt: skip
    assert peers.after(100) == []


@pytest.mark.parametrize("before", [0, State.TWO])
def test_who_is_not_heard_for_the_patience(peers: Peers, before: State | int) -> None:
    (unheard,) = peers.told(
        record(20, Kind.UNHEARD, State.TWO, before=before, lasted=3.02, dropped=151)
    )
    assert str(unheard) == (
        "unheard 203.0.113.10:20000  NOT HEARD in 3.0 s, 151 dropped; UCM's RTP to it passes now"
    )
    shown = unheard.to_json()
    assert (shown["from"], shown["to"]) == ("two" if before else None, None)
    assert (shown["lasted"], shown["dropped_before"]) == (3.02, 151)
    assert shown["public_address"] == ("198.51.100.2" if before else None)
    # That is no state, and has no end of its own.
    assert peers.after(100) == []
