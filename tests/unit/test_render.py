"""What is shown of given data, on consoles of given sizes."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from rich.console import Console, RenderableType

from moh_ebpf import peers, render
from moh_ebpf.layout import COUNTERS, State
from moh_ebpf.peers import Peer, Rates, Snapshot
from tests.support.samples import DESCRIPTION, WITHOUT_BYPASS, later, peer, snapshot

NO_RATES = Rates({}, {})
SIZES = [(width, height) for width in (1, 20, 60, 80, 120, 250) for height in (*range(1, 26), 60)]

COLOUR = {"force_terminal": True, "color_system": "truecolor"}
MAGENTA, GREEN, RED, DIM = "35m", "32m", "31m", "\x1b[2m"


def shown(renderable: RenderableType, **options: Any) -> str:
    """What `show` prints on a console with these options; by default a pipe."""
    console = Console(file=io.StringIO(), **options)
    render.show(renderable, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def view(
    known: Sequence[Peer],
    width: int = 120,
    height: int = 40,
    description: dict[str, Any] = DESCRIPTION,
    **options: Any,
) -> list[str]:
    """The watch view's lines, after a second with 50 packets/s each way."""
    before = snapshot(*known, time=100.0, rewritten=1000)
    after = later(before, packets=50, rewritten=50, dropped_unidentified=3)
    return lines_of(description, after, peers.rates(before, after), width, height, **options)


def lines_of(
    description: dict[str, Any],
    now: Snapshot,
    rates: Rates,
    width: int = 120,
    height: int = 40,
    **options: Any,
) -> list[str]:
    renderable = render.watch(description, now, rates, width, height)
    return shown(renderable, width=width, height=height, **options).splitlines()


def line_with(text: str, lines: Sequence[str]) -> str:
    (found,) = [line for line in lines if text in line]
    return found


def many(count: int) -> list[Peer]:
    """A third of them in calls, the others on hold."""
    return [
        peer(number, State.MOH if number % 3 else State.TWO, since=number / 10)
        for number in range(count)
    ]


# watch


def test_a_large_terminal_shows_everything() -> None:
    lines = view([peer(2, State.TWO, since=125.0, age=0.5), peer(1, since=12.0)])
    assert [line.rstrip() for line in lines[:7]] == [
        "1 on hold  1 two-way   packets/s: in 100  out 100",
        "eth1 (learn, enforce)  eth0 (bypass)",
        "port 4000  timeout 1s  UCM 10.10.10.10, 10.10.10.11  public 198.51.100.2",
        "",
        "ENDPOINT           STATE     FOR    AGE   IN/s  OUT/s  PUBLIC              WAN",
        "203.0.113.1:20001  MOH       12s  0.01s     50     50  198.51.100.2:4000   eth1",
        "203.0.113.2:20002  TWO     2m05s  0.50s     50     50  198.51.100.2:24576  eth1",
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


def test_a_small_terminal_shows_hold_music_first() -> None:
    lines = view(many(30), 60, 12)
    assert lines[0].startswith("20 on hold  10 two-way   packets/s: in 1500  out 1500")
    assert lines[1] == "ENDPOINT           STATE     FOR    AGE   IN/s  OUT/s"
    assert lines[2] == "203.0.113.1:20001  MOH        0s  0.01s     50     50"
    assert [line.split()[1] for line in lines[2:8]] == ["MOH"] * 6
    assert lines[8] == "… and 24 more"
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
        renderable = render.watch(description, now, NO_RATES, width, height)
        lines = shown(renderable, width=width + 1).splitlines()
        assert len(lines) == height, (width, height)
        assert max(map(len, lines)) <= width, (width, height)


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 12)])
def test_a_thousand_peers_are_cut_and_the_rest_is_counted(width: int, height: int) -> None:
    lines = view(many(1000), width, height)
    states = [line.split()[1] for line in lines if line.startswith("203.0.113.")]
    more = int(line_with(" more", lines).split()[2])
    assert len(lines) == height
    assert set(states) == {"MOH"}
    assert len(states) >= height // 2 - 3
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
    assert lines[0].strip().endswith("packets/s: …")
    assert line_with("203.0.113.1:20001", lines).split()[4:6] == ["-", "-"]
    assert "/s" not in line_with("rewritten", lines)


def test_what_is_missing_is_said_even_on_a_small_terminal() -> None:
    for width, height in ((120, 40), (60, 12), (60, 4)):
        lines = view(many(50), width, height, description=WITHOUT_BYPASS)
        assert lines[1].startswith("MISSING: bypass on eth0")


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


def test_a_picture_can_be_made_of_it() -> None:
    console = Console(file=io.StringIO(), record=True, width=100, height=24, force_terminal=True)
    console.print(render.watch(DESCRIPTION, snapshot(peer()), NO_RATES, 100, 24))
    assert "203.0.113.1:20001" in console.export_svg(title="moh-ebpf watch")


# A line for each interval


def test_an_interval_is_a_line() -> None:
    before = snapshot(peer(1), peer(2, State.TWO), peer(3, expired=True), rewritten=7)
    after = later(before, packets=25, seconds=2.0, rewritten=50, dropped_unidentified=1)
    at = datetime(2024, 5, 1, 12, 0, 0, 250000, timezone(timedelta(hours=2)))
    line = render.plain_line(at, DESCRIPTION, after, peers.rates(before, after), 2.0)
    assert line == (
        "2024-05-01T12:00:00.250+02:00 moh=1 two=1 in=37.5 out=37.5 learned_moh=0 learned_two=0 "
        "moh_to_two=0 two_to_moh=0 learn_failed=0 consumed=0 rewritten=50 bypassed=0 passed_two=0 "
        "passed_unnatted=0 dropped_unidentified=1 dropped_too_big=0 dropped_no_route=0 "
        "dropped_failed=0 left_to_stack=0 fragments=0 rtp_in_expected=0 rtp_in_lost=0 "
        "rtp_in_late=0 rtp_out_expected=0 rtp_out_lost=0 rtp_out_late=0 sip_flipped=0 "
        "sip_restored=0 sip_split=0 events_unread=0 missing=0"
    )


def test_a_line_tells_how_many_programs_are_missing() -> None:
    before = snapshot()
    rates = peers.rates(before, later(before, packets=0))
    at = datetime(2024, 5, 1, tzinfo=UTC)
    assert render.plain_line(at, WITHOUT_BYPASS, before, rates, 1.0).endswith(" missing=1")


# peers


def test_peers_into_a_pipe_are_whole_lines() -> None:
    known = [
        peer(1, State.TWO, expired=True, since=100.0, age=61.0),
        peer(2, since=3700.0, in_packets=10**9, in_bytes=2 * 10**11, interface="wan-uplink-0"),
    ]
    lines = shown(render.peers(known)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "ENDPOINT STATE FOR AGE IN-PACKETS IN-BYTES OUT-PACKETS OUT-BYTES PUBLIC WAN LONGEST-GAP",
        "203.0.113.2:20002 MOH 1h01m 0.01s 1000000000 200000000000 600 120000 "
        "198.51.100.2:4000 wan-uplink-0 0.04s",
        "203.0.113.1:20001 (TWO) 1m40s 1m01s 600 120000 600 120000 198.51.100.2:24576 eth1 0.04s",
    ]
    assert lines == [line.rstrip() for line in lines]


def test_the_columns_are_aligned() -> None:
    title, *rows = shown(render.peers([peer(1), peer(200, State.TWO, in_bytes=7)])).splitlines()
    assert len({len(line) for line in (title, *rows)}) == 1
    left, right = title.index("PUBLIC"), title.index("IN-BYTES") + len("IN-BYTES")
    assert all(row[left - 1] == " " and row[left] != " " for row in rows)
    assert all(row[right - 1] != " " and row[right] == " " for row in rows)


def test_peers_on_a_narrow_terminal_lose_nothing() -> None:
    text = shown(render.peers([peer(1)]), width=40, **COLOUR)
    assert "LONGEST-GAP" in text
    assert "0.04s" in text


def test_no_peers_are_a_line_of_titles() -> None:
    (title,) = shown(render.peers([])).splitlines()
    assert title.startswith("ENDPOINT")


# status


def test_status_shows_programs_settings_and_what_counters_count() -> None:
    description = DESCRIPTION | {"counters": dict.fromkeys(COUNTERS, 0) | {"rewritten": 12345}}
    lines = shown(render.status(description)).splitlines()
    words = [line.split() for line in lines]
    assert ["eth1", "egress", "enforce", "id", "22"] in words
    assert ["ucm", "10.10.10.10,", "10.10.10.11"] in words
    assert ["timeout", "1s"] in words
    assert ["provider", "any", "global", "address"] in words
    assert ["rewritten", "12345", *COUNTERS["rewritten"].split()] in words
    assert "MISSING" not in "".join(lines)
    assert lines == [line.rstrip() for line in lines]


def test_status_says_what_is_missing_and_what_to_do() -> None:
    lines = shown(render.status(WITHOUT_BYPASS)).splitlines()
    assert ["eth0", "ingress", "bypass", "MISSING"] in [line.split() for line in lines]
    assert line_with("attach again", lines).startswith("MISSING: bypass on eth0;")


def test_counters_that_are_0_are_dimmed() -> None:
    description = DESCRIPTION | {"counters": dict.fromkeys(COUNTERS, 0) | {"rewritten": 1}}
    lines = shown(render.status(description), width=200, **COLOUR).splitlines()
    assert line_with("consumed ", lines).startswith(DIM)
    assert line_with("rewritten ", lines).startswith("rewritten")


def test_a_terminal_wraps_explanations_under_themselves() -> None:
    options = {"width": 80, "force_terminal": True, "color_system": None}
    lines = shown(render.status(DESCRIPTION), **options).splitlines()
    at = lines.index(line_with("learned_moh", lines))
    indent = lines[at].index("endpoints")
    assert max(map(len, lines)) <= 80
    assert lines[at + 1][:indent].isspace()
    assert f"{lines[at][indent:]} {lines[at + 1][indent:]}" == COUNTERS["learned_moh"]


def test_status_of_nothing() -> None:
    assert shown(render.status({"attached": False})) == "not attached\n"
