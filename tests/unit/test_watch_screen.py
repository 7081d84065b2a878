"""The view as lines, on terminals of given sizes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from rich.segment import Segment

from moh_ebpf.calls import peers
from moh_ebpf.calls.peers import Peer, PeerRate, Rates, SipCall, Snapshot
from moh_ebpf.calls.rtp import Rtp
from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import Evidence, State
from moh_ebpf.show.lines import Line
from moh_ebpf.show.peers import WATCH_COLUMNS
from moh_ebpf.show.watch.history import History
from moh_ebpf.show.watch.keys import HELP, Decoder
from moh_ebpf.show.watch.screen import Frame, Size, plain_line, screen
from moh_ebpf.show.watch.view import View, pressed
from tests.support.samples import DESCRIPTION, WITHOUT_BYPASS, later, peer, snapshot
from tests.unit.test_show import COLOUR, DIM, GREEN, MAGENTA, RED, line_with, shown

NO_RATES = Rates({}, {})
SIZES = [(width, height) for width in (1, 20, 60, 80, 120, 250) for height in (*range(1, 26), 60)]
AT = datetime(2024, 5, 1, 12, 0, 0, 250000, timezone(timedelta(hours=2)))


def view(
    known: Sequence[Peer],
    width: int = 120,
    height: int = 40,
    description: dict[str, Any] = DESCRIPTION,
    keys: str = "",
    **options: Any,
) -> list[str]:
    """The view's lines, after a second with 50 packets/s each way, and after these keys."""
    before = snapshot(*known, time=100.0, rewritten=1000)
    after = later(before, packets=50, rewritten=50, dropped_unidentified=3)
    rates = peers.rates(before, after)
    return lines_of(description, after, rates, width, height, keys, **options)


def lines_of(
    description: dict[str, Any],
    now: Snapshot,
    rates: Rates,
    width: int = 120,
    height: int = 40,
    keys: str = "",
    events: Sequence[Line] = (),
    has_keys: bool = True,
    **options: Any,
) -> list[str]:
    frame = Frame(AT, description, now, rates, 1.0, events)
    history = History()
    history.add(rates.peers)
    size = Size(width, height, has_keys)
    state, lines = screen(frame, View(), history, size)
    for key in Decoder().feed(keys.encode()):
        state, lines = screen(frame, pressed(state, key, WATCH_COLUMNS), history, size)
    return shown(lines, width=width, height=height, **options).splitlines()


def many(count: int) -> list[Peer]:
    """A third of them in calls, the others on hold."""
    return [
        peer(number, State.MOH if number % 3 else State.TWO, since=number / 10)
        for number in range(count)
    ]


def test_a_large_terminal_shows_everything() -> None:
    spoken = Rtp(7, 8, 200, 1, 0.0123, 0.03)
    played = Rtp(9, 18, 200, 0, 0.0004, 0.02)
    lines = view(
        [
            peer(2, State.TWO, since=125.0, age=0.5),
            peer(1, since=12.0, in_rtp=spoken, out_rtp=played),
        ]
    )
    assert [line.rstrip() for line in lines[:7]] == [
        "1 on hold  1 two-way   packets/s: in 100  out 100" + " " * 63 + "12:00:00",
        "eth1 (learn, enforce)  eth0 (bypass)",
        "port 4000  timeout 1s  UCM 10.10.10.10, 10.10.10.11  public 198.51.100.2",
        "",
        "ENDPOINT           STATE     FOR    AGE   IN/s  OUT/s  PUBLIC              CODEC      "
        "IN-LOSS  OUT-LOSS  IN-JITTER",
        "203.0.113.1:20001  MOH       12s  0.01s     50     50  198.51.100.2:4000   PCMA/G729  "
        "   0.5%      0.0%     12.3ms",
        "203.0.113.2:20002  TWO     2m05s  0.50s     50     50  198.51.100.2:24576  -          "
        "      -         -          -",
    ]
    for name in COUNTERS:
        assert line_with(name, lines)
    assert len(lines) == 40


def test_counters_that_say_something_come_first_and_trouble_before_all() -> None:
    foot = [line for line in view([peer()]) if any(name in line for name in COUNTERS)]
    first = foot[0].split()
    assert first[:3] == ["dropped_unidentified", "3", "+3.0/s"]
    assert foot[1].split()[:3] == ["rewritten", "1050", "+50/s"]
    assert all(word in ("0", *COUNTERS) for line in foot[2:] for word in line.split())
    assert view([peer()])[-1] == "by interest   ? keys   q quit"


def test_a_small_terminal_shows_hold_music_first() -> None:
    lines = view(many(30), 60, 12)
    assert lines[0].startswith("20 on hold  10 two-way   packets/s: in 1500  out 1500")
    assert lines[1] == "ENDPOINT           STATE     FOR    AGE   IN/s  OUT/s"
    assert lines[2] == "203.0.113.1:20001  MOH        0s  0.01s     50     50"
    assert [line.split()[1] for line in lines[2:7]] == ["MOH"] * 5
    assert lines[7] == "… and 25 more"
    assert len(lines) == 12


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("description", [DESCRIPTION, WITHOUT_BYPASS])
def test_the_view_is_never_larger_than_the_terminal(
    count: int, description: dict[str, Any]
) -> None:
    known = many(count)
    for width, height in SIZES:
        # A column more, so that what is too long is seen.
        now = snapshot(*known, rewritten=10**12)
        for keys, events in (("", 9), ("j\n", 9), ("/203", 0), ("?", 0), ("p", 0)):
            frame = Frame(AT, description, now, NO_RATES, 1.0, [[Segment("event " * 20)]] * events)
            state, size = View(), Size(width, height)
            for key in ("", *Decoder().feed(keys.encode())):
                state = pressed(state, key, WATCH_COLUMNS)
                state, drawn = screen(frame, state, History(), size)
            lines = shown(drawn, width=width + 1).splitlines()
            assert len(lines) == height, (width, height, keys)
            assert max(map(len, lines)) <= width, (width, height, keys)


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 12)])
def test_a_thousand_peers_are_cut_and_the_rest_is_counted(width: int, height: int) -> None:
    lines = view(many(1000), width, height)
    states = [line.split()[1] for line in lines if line.startswith("203.0.113.")]
    more = int(line_with(" more", lines).split()[2])
    assert len(lines) == height
    assert set(states) == {"MOH"}
    assert len(states) >= height // 2 - 4
    assert len(states) + more == 1000


@pytest.mark.parametrize("count", range(1, 20))
def test_what_is_shown_and_what_is_not_make_all(count: int) -> None:
    lines = view(many(count), 80, 12)
    rows = sum(line.startswith("203.0.113.") for line in lines)
    more = [line for line in lines if line.endswith(" more")]
    assert rows + sum(int(line.split()[2]) for line in more) == count


def test_without_peers_a_line_helps() -> None:
    for width, height in ((120, 40), (60, 12)):
        text = " ".join(view([], width, height))
        assert "No endpoint is known: within the last 1s, none has sent RTP" in text
        assert "ENDPOINT" not in text
        assert text.startswith("0 on hold  0 two-way")


def test_before_the_second_look_rates_are_not_known() -> None:
    lines = lines_of(DESCRIPTION, snapshot(peer(), rewritten=10), NO_RATES)
    assert "packets/s: …  " in lines[0]
    assert line_with("203.0.113.1:20001", lines).split()[4:6] == ["-", "-"]
    assert "/s" not in line_with("rewritten", lines)


def test_what_is_missing_is_said_even_on_a_small_terminal() -> None:
    for width, height in ((120, 40), (60, 12), (60, 4)):
        lines = view(many(50), width, height, description=WITHOUT_BYPASS)
        assert lines[1].startswith("MISSING: bypass on eth0")


def test_who_is_known_by_rtcp_has_a_star() -> None:
    by_rtcp = peer(1, identified=Evidence.RTCP)
    expired = peer(2, expired=True, age=16.0, identified=Evidence.RTCP)
    lines = view([by_rtcp, expired])
    assert [line.split()[1] for line in lines[5:7]] == ["MOH*", "(MOH*)"]


def test_who_is_known_by_signalling_alone_has_a_plus() -> None:
    by_sip = peer(1, identified=Evidence.SIGNALLING)
    expired = peer(2, State.TWO, expired=True, identified=Evidence.SIGNALLING)
    in_agreement = peer(3, State.TWO, call=CALL)
    lines = view([by_sip, expired, in_agreement])
    assert [line.split()[1] for line in lines[5:8]] == ["MOH+", "TWO", "(TWO+)"]


CALL = SipCall("80f2a1b2-1234567-1a2b3-a0a0a0a@10.10.10.10", "100", "+4930123")


def test_the_call_is_the_first_column_to_be_left_out() -> None:
    known = [peer(1, call=CALL), peer(2)]
    titles, named, nameless = view(known, 250)[4:7]
    assert titles.split()[-1] == "CALL-ID"
    assert (named.split()[-1], nameless.split()[-1]) == (CALL.call_id, "-")
    needed = len(named.rstrip())
    assert "CALL-ID" in view(known, needed)[4]
    narrower = view(known, needed - 1)[4].split()
    assert narrower == titles.split()[:-1]


def test_one_can_sort_by_the_call() -> None:
    """Who is in none that is known is last."""
    known = [peer(1), peer(2, call=SipCall("b@ucm")), peer(3, call=SipCall("a@ucm"))]
    lines = view(known, keys="s" * len(WATCH_COLUMNS))
    assert "by CALL-ID, smallest first" in lines[-1]
    assert [line.split(":")[0][-1] for line in lines[5:8]] == ["3", "2", "1"]


def test_the_forgotten_are_last_in_parentheses_and_not_counted() -> None:
    forgotten = peer(1, expired=True, age=3.0)
    lines = view([forgotten, peer(2, State.TWO)])
    assert lines[0].startswith("0 on hold  1 two-way")
    assert [line.split()[1] for line in lines[5:7]] == ["TWO", "(MOH)"]
    assert DIM in line_with("(MOH)", view([forgotten], **COLOUR))


def test_states_have_colours_and_read_well_without() -> None:
    known = [peer(1), peer(2, State.TWO)]
    coloured = view(known, **COLOUR)
    assert MAGENTA in line_with("MOH", coloured)
    assert GREEN in line_with("TWO", coloured)
    assert "\x1b" not in "".join(view(known))


def test_no_color_is_respected() -> None:
    text = "\n".join(view([peer(1), peer(2, State.TWO)], **COLOUR, _environ={"NO_COLOR": "1"}))
    assert "MOH" in text
    assert "TWO" in text
    assert not any(colour in text for colour in (MAGENTA, GREEN, RED))


@pytest.mark.parametrize(
    ("changes", "alarmed"),
    [
        ({}, True),
        ({"state": State.TWO}, False),
        ({"expired": True}, False),
        ({"out_packets": 601}, False),
    ],
)
def test_hold_music_that_nobody_sends_is_an_alarm(changes: dict[str, Any], alarmed: bool) -> None:
    before = snapshot(peer(1))
    after = snapshot(peer(1, **{"in_packets": 650} | changes), time=101.0)
    lines = lines_of(DESCRIPTION, after, peers.rates(before, after), **COLOUR)
    assert (RED in line_with("203.0.113.1:20001", lines)) is alarmed


# Keys


def test_what_it_is_sorted_by_is_marked_and_said() -> None:
    lines = view(many(5), keys="ss", **COLOUR)
    assert "\x1b[1;4mSTATE" in line_with("ENDPOINT", lines)
    assert "by STATE, smallest first" in lines[-1]
    assert "by interest, reversed" in view(many(5), keys="r")[-1]


def test_a_filter_says_how_many_pass_it() -> None:
    lines = view(many(9), keys="m/203.0.113.4\n")
    assert "only MOH, 203.0.113.4: 1 of 9" in lines[-1]
    assert sum(line.startswith("203.0.113.") for line in lines) == 1
    assert "None of 9 endpoints passes the filter; Esc drops it." in view(many(9), keys="/9\n")


def test_an_address_that_is_typed_is_on_the_last_line_of_any_terminal() -> None:
    for height in (40, 12, 3):
        assert view(many(9), height=height, keys="/203.0")[-1].startswith("/203.0 ")
    assert "no network (yet)" in view(many(9), keys="/203.0.113.0/")[-1]


def test_a_pause_is_said_also_on_a_narrow_terminal() -> None:
    assert view(many(3), keys="p")[0].endswith("PAUSED 12:00:00")
    assert view(many(3), 30, 12, keys="p")[0].startswith("PAUSED 12:00:00")


def test_the_selected_row_is_marked_over_its_width() -> None:
    (line,) = [line for line in view([peer()], 80, keys="j", **COLOUR) if "203.0.113.1:" in line]
    assert "\x1b[7m" in line
    assert len(view([peer()], 80, keys="j")[5]) == 80


def test_all_keys_are_told_and_peers_stay_in_view() -> None:
    lines = view(many(9), 80, 24, keys="?")
    text = " ".join(lines)
    for names, meaning in HELP:
        assert f"{names} {meaning}" in text
    assert line_with("203.0.113.1:20001", lines)


def test_without_keys_none_are_told() -> None:
    assert "quit" not in " ".join(view(many(3), has_keys=False))


def test_more_above_are_counted() -> None:
    lines = view(many(30), 80, 12, keys="G")
    assert lines[6].startswith("203.0.113.27:20027")
    assert lines[7] == "… and 25 more, 25 of them above"


# Detail


def test_detail_has_rates_and_all_that_json_has() -> None:
    held = peer(1, since=12.0, call=CALL)
    for width in (120, 80, 60):
        lines = view([held], width, 40, keys="\n")
        text = " ".join(" ".join(lines).split())
        assert "203.0.113.1:20001 on hold for 12s" in text
        assert "IN/s 50 █ highest 50 OUT/s 50 █ highest 50" in text
        for name, value in held.to_json().items():
            if not isinstance(value, dict | float | bool):
                assert f"{name.replace('_', ' ')} {value}".lower() in text.lower()
        assert "longest gap 0.04s" in text
        assert "packets 650 650" in text
        assert "INBOUND OUTBOUND" in text
        assert "learned_moh" not in text


def test_detail_shows_what_json_will_have_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    more = peer().to_json()
    more["codec"] = None
    more["inbound"]["rtp"] = {"lost": 3, "jitter_ms": 1.5}
    monkeypatch.setattr(Peer, "to_json", lambda self: more | {"inbound": dict(more["inbound"])})
    text = " ".join(" ".join(view([peer()], 80, 40, keys="\n")).split())
    assert "codec -" in text
    assert "rtp lost 3 -" in text
    assert "rtp jitter ms 1.5 -" in text


@pytest.mark.parametrize(("call", "call_id"), [(SipCall("a@ucm"), "a@ucm"), (None, "-")])
def test_detail_has_no_numbers_where_nobody_asked_for_them(
    call: SipCall | None, call_id: str
) -> None:
    text = "\n".join(view([peer(1, call=call)], 80, 40, keys="\n"))
    assert f"call id         {call_id} " in text
    assert "caller" not in text
    assert "called" not in text


def test_in_detail_a_long_call_id_moves_nothing_aside() -> None:
    stream = Rtp(7, 8, 200, 1, 0.0123, 0.03)
    held = [peer(1, call=each, in_rtp=stream) for each in (SipCall("a@ucm"), CALL)]
    short, long = (view([each], 120, 40, keys="\n") for each in held)
    (top,) = [number for number, line in enumerate(short) if "INBOUND" in line]
    aside = [[line[35:] for line in lines[top : top + 12]] for lines in (short, long)]
    assert aside[0] == aside[1]
    assert len(list(filter(None, aside[0]))) > 8  # as far as the Call-ID, and beyond
    assert line_with(CALL.call_id, long).split() == ["call", "id", CALL.call_id]


def test_detail_of_the_forgotten_says_so() -> None:
    lines = view([peer(1, expired=True, age=3.0)], keys="\n")
    assert line_with("203.0.113.1:20001  forgotten; last heard 3s ago", lines)
    unheard = peer(1, expired=True, age=3.0, identified=Evidence.SIGNALLING)
    said = "203.0.113.1:20001  forgotten; its signalling has ended, and it was never heard"
    assert line_with(said, view([unheard], keys="\n"))


def test_detail_of_who_is_gone_keeps_its_history() -> None:
    history = History()
    history.add({"203.0.113.1:20001": PeerRate(50.0, 25.0)})
    history.add({})
    frame = Frame(AT, DESCRIPTION, snapshot(peer(2)), NO_RATES, 1.0)
    gone = View(selected=("203.0.113.1", 20001), detail=True)
    _, drawn = screen(frame, gone, history, Size(100, 30))
    lines = shown(drawn).splitlines()
    assert line_with("203.0.113.1:20001  forgotten; the next packet brings it back", lines)
    assert line_with("OUT/s      -  █   highest 25", lines)


# The last events


@pytest.mark.parametrize(("height", "told"), [(40, 5), (24, 3), (12, 1), (6, 0)])
def test_the_last_events_have_room_below_the_counters(height: int, told: int) -> None:
    events = [[Segment(f"event {number}")] for number in range(5)]
    before = snapshot(*many(3))
    now = later(before, packets=50)
    for keys in ("", "j\n"):
        lines = lines_of(
            DESCRIPTION, now, peers.rates(before, now), 120, height, keys, events=events
        )
        assert [line for line in lines if line.startswith("event")] == [
            f"event {number}" for number in range(5 - told, 5)
        ]
        assert ("LAST EVENTS" in lines) is bool(told)
        assert "203.0.113.1:20001" in " ".join(lines)


# A line for each interval


def test_an_interval_is_a_line() -> None:
    before = snapshot(peer(1), peer(2, State.TWO), peer(3, expired=True), rewritten=7)
    after = later(before, packets=25, seconds=2.0, rewritten=50, dropped_unidentified=1)
    at = datetime(2024, 5, 1, 12, 0, 0, 250000, timezone(timedelta(hours=2)))
    line = plain_line(Frame(at, DESCRIPTION, after, peers.rates(before, after), 2.0))
    assert line == (
        "2024-05-01T12:00:00.250+02:00 moh=1 two=1 in=37.5 out=37.5 learned_moh=0 learned_two=0 "
        "moh_to_two=0 two_to_moh=0 learn_failed=0 consumed=0 rewritten=50 bypassed=0 passed_two=0 "
        "passed_unnatted=0 dropped_unidentified=1 dropped_too_big=0 dropped_failed=0 "
        "left_to_stack=0 routed_elsewhere=0 passed_blind=0 passed_unheard=0 "
        "passed_no_rtp=0 passed_anothers=0 held_back=0 fragments=0 "
        "rtp_in_expected=0 rtp_in_lost=0 rtp_in_late=0 rtp_out_expected=0 rtp_out_lost=0 "
        "rtp_out_late=0 sip_flipped=0 sip_restored=0 sip_split=0 "
        "sip_undirected=0 events_unread=0 missing=0 blind=0"
    )


def test_a_line_tells_how_many_programs_are_missing() -> None:
    before = snapshot()
    rates = peers.rates(before, later(before, packets=0))
    at = datetime(2024, 5, 1, tzinfo=UTC)
    line = plain_line(Frame(at, WITHOUT_BYPASS, before, rates, 1.0))
    assert line.endswith(" missing=1 blind=0")
