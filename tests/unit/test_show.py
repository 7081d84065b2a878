"""What is shown of given data, on consoles of given sizes."""

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType

from moh_ebpf.calls.peers import SipCall
from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import Evidence, State
from moh_ebpf.show.lines import show
from moh_ebpf.show.peers import peers_table
from moh_ebpf.show.status import status_view
from moh_ebpf.show.words import short
from tests.support.samples import DESCRIPTION, WITHOUT_BYPASS, peer

COLOUR: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"}
MAGENTA, GREEN, RED, DIM = "35m", "32m", "31m", "\x1b[2m"


def shown(renderable: RenderableType, **options: Any) -> str:
    """What `show` prints on a console with these options; by default a pipe."""
    console = Console(file=io.StringIO(), **options)
    show(renderable, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def line_with(text: str, lines: Sequence[str]) -> str:
    (found,) = [line for line in lines if text in line]
    return found


# peers


def test_peers_into_a_pipe_are_whole_lines() -> None:
    known = [
        peer(1, State.TWO, expired=True, since=100.0, age=61.0),
        peer(2, since=3700.0, in_packets=10**9, in_bytes=2 * 10**11, interface="wan-uplink-0"),
        peer(3, State.TWO, identified=Evidence.SIGNALLING, interface="",
             call=SipCall("a1b2@10.10.10.10", "100", "200")),
    ]  # fmt: skip
    lines = shown(peers_table(known)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "ENDPOINT STATE FOR AGE IN-PACKETS IN-BYTES OUT-PACKETS OUT-BYTES PUBLIC WAN LONGEST-GAP "
        "CALL-ID",
        "203.0.113.2:20002 MOH 1h01m 0.01s 1000000000 200000000000 600 120000 "
        "198.51.100.2:4000 wan-uplink-0 0.04s -",
        "203.0.113.3:20003 TWO+ 12s 0.01s 600 120000 600 120000 198.51.100.2:24576 - 0.04s "
        "a1b2@10.10.10.10",
        "203.0.113.1:20001 (TWO) 1m40s 1m01s 600 120000 600 120000 198.51.100.2:24576 eth1 0.04s -",
    ]
    assert lines == [line.rstrip() for line in lines]


def test_the_columns_are_aligned() -> None:
    call = SipCall("a@b.com")  # as long as its title, because no line ends with blanks
    known = [peer(1, call=call), peer(200, State.TWO, in_bytes=7, call=call)]
    title, *rows = shown(peers_table(known)).splitlines()
    assert len({len(line) for line in (title, *rows)}) == 1
    left, right = title.index("PUBLIC"), title.index("IN-BYTES") + len("IN-BYTES")
    assert all(row[left - 1] == " " and row[left] != " " for row in rows)
    assert all(row[right - 1] != " " and row[right] == " " for row in rows)


def test_peers_on_a_terminal_have_units_and_a_sum() -> None:
    known = [
        peer(1, State.TWO, expired=True, age=61.0),
        peer(2, in_packets=1234567, in_bytes=987654321, out_packets=99999, out_bytes=12345),
        peer(3, State.TWO, in_bytes=999, out_bytes=0),
    ]
    plain = {"width": 200, "force_terminal": True, "color_system": None}
    words = [line.split() for line in shown(peers_table(known), **plain).splitlines()]
    assert words[1][4:10] == ["1.23M", "988", "MB", "99999", "12.3", "kB"]
    assert words[2][4:10] == ["600", "999", "B", "600", "0", "B"]
    assert " ".join(words[-1]) == "1 on hold 1 two-way 1 forgotten"
    coloured = shown(peers_table(known), width=200, **COLOUR).splitlines()
    assert MAGENTA in coloured[1]
    assert GREEN in coloured[2]
    assert coloured[3].startswith(DIM)


def test_three_digits_and_what_they_count() -> None:
    numbers = (0, 999, 1000, 9994, 9996, 99949, 99951, 999499, 999501, 10**9, 5 * 10**15)
    assert [short(number) for number in numbers] == [
        "0", "999", "1.00k", "9.99k", "10.0k", "99.9k", "100k", "999k", "1.00M", "1.00G", "5000T",
    ]  # fmt: skip


def test_peers_on_a_narrow_terminal_lose_nothing() -> None:
    text = shown(peers_table([peer(1)]), width=40, **COLOUR)
    assert "LONGEST-GAP" in text
    assert "0.04s" in text


def test_no_peers_are_a_line_of_titles() -> None:
    (title,) = shown(peers_table([])).splitlines()
    assert title.startswith("ENDPOINT")


# status


def test_status_shows_programs_settings_and_what_counters_count() -> None:
    description = DESCRIPTION | {"counters": dict.fromkeys(COUNTERS, 0) | {"rewritten": 12345}}
    lines = shown(status_view(description)).splitlines()
    words = [line.split() for line in lines]
    assert ["eth1", "egress", "enforce", "id", "22"] in words
    assert ["ucm", "10.10.10.10,", "10.10.10.11"] in words
    assert ["timeout", "1s"] in words
    assert ["sip_ports", "5060"] in words
    assert ["provider", "any", "global", "address"] in words
    assert ["rewritten", "12345", *COUNTERS["rewritten"].meaning.split()] in words
    assert "MISSING" not in "".join(lines)
    assert lines == [line.rstrip() for line in lines]


def test_status_says_what_is_missing_and_what_to_do() -> None:
    lines = shown(status_view(WITHOUT_BYPASS)).splitlines()
    assert ["eth0", "ingress", "bypass", "MISSING"] in [line.split() for line in lines]
    assert line_with("attach again", lines).startswith("MISSING: bypass on eth0;")


def test_status_says_where_learn_sees_nothing() -> None:
    (wan,) = DESCRIPTION["wans"]
    blind = wan | {"failing_open": True, "blind": True, "blind_for": 12.4}
    lines = shown(status_view(DESCRIPTION | {"wans": [blind]})).splitlines()
    assert "learn sees nothing on eth1 for 12 s" in line_with("BLIND", lines)
    is_open = wan | {"failing_open": True}
    lines = shown(status_view(DESCRIPTION | {"wans": [is_open]})).splitlines()
    assert "eth1" in line_with("OPEN", lines)
    assert not [line for line in lines if "BLIND" in line]


def test_counters_that_are_0_are_dimmed() -> None:
    description = DESCRIPTION | {"counters": dict.fromkeys(COUNTERS, 0) | {"rewritten": 1}}
    lines = shown(status_view(description), width=200, **COLOUR).splitlines()
    assert line_with("consumed ", lines).startswith(DIM)
    assert line_with("rewritten ", lines).startswith("rewritten")


def test_a_terminal_wraps_explanations_under_themselves() -> None:
    options = {"width": 80, "force_terminal": True, "color_system": None}
    lines = shown(status_view(DESCRIPTION), **options).splitlines()
    at = lines.index(line_with("learned_moh", lines))
    indent = lines[at].index("endpoints")
    assert max(map(len, lines)) <= 80
    assert lines[at + 1][:indent].isspace()
    assert f"{lines[at][indent:]} {lines[at + 1][indent:]}" == COUNTERS["learned_moh"].meaning


def test_status_of_nothing() -> None:
    assert shown(status_view({"attached": False})) == "not attached\n"
