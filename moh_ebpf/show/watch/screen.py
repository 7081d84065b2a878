"""The view as lines, no larger than the terminal: pure.

summary, what is missing, interfaces, settings
peers, or one of them in detail
counters
the last events, where the frame has some
how it is sorted and filtered, or the keys
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Any, NamedTuple

from rich.segment import Segment
from rich.style import Style

from moh_ebpf import settings
from moh_ebpf.calls.peers import PeerRate, Rates, Snapshot
from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import Evidence, State
from moh_ebpf.show.lines import DIM, NOTICE, PLAIN, TITLE, Line, Lines, cut, length, table
from moh_ebpf.show.peers import STATES, WATCH_COLUMNS, Row, count, counts
from moh_ebpf.show.status import Description, troubles
from moh_ebpf.show.watch.history import History, per_cell, sparkline
from moh_ebpf.show.watch.keys import HELP
from moh_ebpf.show.watch.view import Shown, View, column_of, descending, network, settle
from moh_ebpf.show.words import fine_time, rate_text, whole_time

# A terminal of fewer rows is small: it gets neither settings nor, below that, the lines between.
ROWS_FOR_SETTINGS = 16
ROWS_FOR_SPACES = 20
# In fewer, the last line is a peer's, unless it has to say how the view is not the usual one.
ROWS_FOR_FOOT = 8

SELECTED = Style(reverse=True)


class Frame(NamedTuple):
    """One look, and the rates of the `seconds` since the one before; the first has none.

    `events` are the last of them, as lines, the latest last: as many as there may be room for.
    """

    at: datetime
    description: Description
    snapshot: Snapshot
    rates: Rates
    seconds: float
    events: Sequence[Line] = ()


@dataclass(frozen=True)
class Size:
    """Of a terminal, in columns and rows; `keys`: whether there are any, `ascii_only`: no more."""

    width: int
    height: int
    keys: bool = True
    ascii_only: bool = False


def plain_line(frame: Frame) -> str:
    """An interval's line: packets/s in and out, and how far each counter went in its seconds."""
    at, description, snapshot, rates, seconds, _ = frame
    total = _total(rates)
    fields = {
        "moh": count(snapshot.peers, State.MOH),
        "two": count(snapshot.peers, State.TWO),
        "in": f"{total.inbound:.1f}",
        "out": f"{total.outbound:.1f}",
        **{name: round(rate * seconds) for name, rate in rates.counters.items()},
        "missing": len(description["missing"]),
        "blind": sum(wan["blind"] for wan in description["wans"]),
    }
    values = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{at.isoformat(timespec='milliseconds')} {values}"


def screen(frame: Frame, view: View, history: History, size: Size) -> tuple[View, Lines]:
    """The lines, and the view as it is with them: where the selection went, what is scrolled to.

    The less room, the less of all else: the peers have about half of it.
    """
    space: list[Line] = [[]] if size.height >= ROWS_FOR_SPACES else []
    header = [*_header(frame, view, size), *space]
    foot = _foot(frame, view, size)
    room = max(size.height - len(header) - len(foot), 0)
    below = _events(frame.events, room // 4, space)
    if not view.detail:
        spare = room - len(below) - len(space) - max(len(frame.snapshot.peers), 1) - 1
        most = max(spare, size.height // 4)
        counters = _counters(frame.snapshot.counters, frame.rates.counters, size.width, most)
        below = [*space, *counters, *below]
    room = max(room - len(below), 0)
    view, main = _main(frame, view, history, size, room)
    foot = _foot(frame, view, size)  # Of as many lines; it says how many peers match.
    filled = [*main, *([[]] * (room - len(main)))]
    lines = [*header, *filled, *below, *foot]
    return view, Lines([cut(line, size.width) for line in lines[: size.height]])


def _total(rates: Rates) -> PeerRate:
    inbound = sum(rate.inbound for rate in rates.peers.values())
    return PeerRate(inbound, sum(rate.outbound for rate in rates.peers.values()))


# Header


def _header(frame: Frame, view: View, size: Size) -> list[Line]:
    lines = [_summary(frame, view, size.width), *troubles(frame.description)]
    if size.height >= ROWS_FOR_SETTINGS:
        lines += [_interfaces(frame.description), _settings(frame.description["settings"])]
    return lines


def _summary(frame: Frame, view: View, width: int) -> Line:
    """How many calls there are and what goes by; at the right, when that was."""
    total = _total(frame.rates)
    packets = f"in {total.inbound:.0f}  out {total.outbound:.0f}" if frame.rates.counters else "…"
    line = [*counts(frame.snapshot.peers), Segment("   packets/s: "), Segment(packets, TITLE)]
    clock = _clock(frame, view)
    room = width - length(line) - length(clock)
    if room < 2:
        return [*clock, Segment("  "), *line] if view.paused else line
    return [*line, Segment(" " * room), *clock]


def _clock(frame: Frame, view: View) -> Line:
    time = f"{frame.at:%H:%M:%S}"
    return [Segment(f"PAUSED {time}", NOTICE)] if view.paused else [Segment(time, DIM)]


def _interfaces(description: Description) -> Line:
    """`eth1 (learn, enforce)  eth0 (bypass)`"""
    roles: dict[str, list[str]] = {}
    for program in description["programs"]:
        roles.setdefault(program["interface"], []).append(program["role"])
    return [Segment("  ".join(f"{name} ({', '.join(each)})" for name, each in roles.items()))]


def _settings(shown: Mapping[str, Any]) -> Line:
    """What may be long, and be cut, last."""
    text = {name: settings.text(name, value) for name, value in shown.items()}
    return [
        Segment(
            f"port {text['port']}  timeout {text['timeout']}  "
            f"UCM {text['ucm']}  public {text['public']}"
        )
    ]


# Foot


def _foot(frame: Frame, view: View, size: Size) -> list[Line]:
    """The last lines: the keys, an address that is being typed, or what one sees of all."""
    if view.typing is not None:
        return [_prompt(view.typing)]
    if not size.keys:
        return []
    if view.help:
        return _help(size.width)[: max(size.height - 2, 0)]
    usual = not view.sort and not view.reverse and not view.filtered
    if size.height < ROWS_FOR_FOOT and usual:
        return []
    return [_looked_at(frame, view)]


def _prompt(typing: str) -> Line:
    wrong = "/" in typing and not network(typing)
    hint = "no network (yet)" if wrong else "Enter: keep, Esc: drop"
    return [
        Segment(f"/{typing}", TITLE),
        Segment(" ", SELECTED),
        Segment(f"  {hint}", NOTICE if wrong else DIM),
    ]


def _help(width: int) -> list[Line]:
    """The keys, as many to a line as fit."""
    lines: list[Line] = [[]]
    for names, meaning in HELP:
        entry = [Segment(names, TITLE), Segment(f" {meaning}")]
        if lines[-1] and length(lines[-1]) + 3 + length(entry) > width:
            lines.append([])
        lines[-1] = _joined([lines[-1], entry])
    return lines


def _looked_at(frame: Frame, view: View) -> Line:
    """`by OUT/s, largest first   only MOH, 203.0.113.   3 of 40   ? keys   q quit`"""
    parts: list[Line] = [[Segment(_sorting(view), PLAIN if view.sort or view.reverse else DIM)]]
    if view.filtered:
        filters = [view.state.name] if view.state else []
        filters += [view.address] if view.address else []
        text = f"only {', '.join(filters)}: {view.matching} of {len(frame.snapshot.peers)}"
        parts.append([Segment(text, NOTICE)])
    back = "Esc back   " if view.detail or view.filtered else ""
    parts.append([Segment(f"{back}? keys   q quit", DIM)])
    return _joined(parts)


def _sorting(view: View) -> str:
    if not view.sort:
        return "by interest, reversed" if view.reverse else "by interest"
    order = "largest" if descending(view, WATCH_COLUMNS) else "smallest"
    return f"by {view.sort}, {order} first"


def _events(events: Sequence[Line], most: int, space: Sequence[Line]) -> list[Line]:
    """A title, and the last events in `most` lines with it; nothing where there are none."""
    if not events or most < 2:
        return []
    return [*space, [Segment("LAST EVENTS", TITLE)], *events[-(most - 1) :]]


# Peers


def _main(
    frame: Frame, view: View, history: History, size: Size, room: int
) -> tuple[View, list[Line]]:
    known, rates = frame.snapshot.peers, frame.rates.peers
    # Above them is a line for the titles.
    view, shown = settle(view, known, rates, WATCH_COLUMNS, room - 1)
    if view.detail:
        return view, _detail(frame, view, shown.selected, history, size)[:room]
    if not shown.rows:
        return view, _nobody(frame, view, size.width)[:room]
    return view, _peers(view, shown, size.width)[:room]


def _peers(view: View, shown: Shown, width: int) -> list[Line]:
    column = column_of(view, WATCH_COLUMNS)
    titles, *lines = table(WATCH_COLUMNS, shown.rows, width, sorted_by=column)
    if shown.selected:
        at = shown.rows.index(shown.selected)
        lines[at] = _selected(lines[at], width)
    more = view.matching - len(shown.rows)
    if more > 0:
        above = f", {view.top} of them above" if view.top else ""
        lines.append([Segment(f"… and {more} more{above}", DIM)])
    return [titles, *lines]


def _selected(line: Line, width: int) -> Line:
    """Marked over the whole width."""
    marked = [Segment(text, (style or PLAIN) + SELECTED) for text, style, _ in line]
    return [*marked, Segment(" " * max(width - length(line), 0), SELECTED)]


def _nobody(frame: Frame, view: View, width: int) -> list[Line]:
    if frame.snapshot.peers:
        text = f"None of {len(frame.snapshot.peers)} endpoints passes the filter; Esc drops it."
    else:
        timeout = settings.text("timeout", frame.description["settings"]["timeout"])
        text = (
            f"No endpoint is known: within the last {timeout}, none has sent RTP to a public "
            "address. A call shows here with the provider's first packet; with its SIP, where "
            "moh-ebpf run reads that."
        )
    return [[Segment(part)] for part in textwrap.wrap(text, max(width, 20))]


# Detail


def _detail(frame: Frame, view: View, row: Row | None, history: History, size: Size) -> list[Line]:
    """One peer: its rates over the last looks, and all that JSON has of it."""
    assert view.selected
    endpoint = f"{view.selected[0]}:{view.selected[1]}"
    head: list[Line] = [_named(endpoint, row), [], *_rates(frame, endpoint, row, history, size), []]
    return [*head, *(_fields(row, size.width) if row else [])]


def _named(endpoint: str, row: Row | None) -> Line:
    if row is None:
        return [
            Segment(endpoint, TITLE),
            Segment("  forgotten; the next packet brings it back", DIM),
        ]
    peer = row.peer
    words = {State.MOH: "on hold", State.TWO: "in a two-way call"}
    if peer.expired and peer.identified is Evidence.SIGNALLING:
        text, style = "forgotten; its signalling has ended, and it was never heard", DIM
    elif peer.expired:
        text, style = f"forgotten; last heard {whole_time(peer.age)} ago", DIM
    else:
        text, style = f"{words[peer.state]} for {whole_time(peer.since)}", STATES[peer.state]
    return [Segment(endpoint, TITLE), Segment("  "), Segment(text, style)]


def _rates(
    frame: Frame, endpoint: str, row: Row | None, history: History, size: Size
) -> list[Line]:
    """A line of blocks for each direction, the rate now before it and the highest behind."""
    inbound, outbound = history.of(endpoint)
    rate = row.rate if row else None
    room = max(size.width - len("OUT/s  99999    highest 99999"), 8)
    lines: list[Line] = []
    for name, now, values in (
        ("IN/s", rate and rate.inbound, inbound),
        ("OUT/s", rate and rate.outbound, outbound),
    ):
        blocks = sparkline(values, room, history.looks, ascii_only=size.ascii_only)
        known = [value for value in values if value >= 0]
        lines.append(
            [
                Segment(f"{name:<6}", TITLE),
                Segment(f"{'-' if now is None else rate_text(now):>6}  "),
                Segment(blocks, STATES[row.peer.state] if row and not row.peer.expired else DIM),
                Segment(f"  highest {rate_text(max(known))}" if known else "", DIM),
            ]
        )
    shared = per_cell(len(inbound), room)
    each = f"; a block is {_span(shared * history.interval)}" if shared > 1 else ""
    span = _span(len(inbound) * history.interval)
    lines.append([Segment(f"{'':<14}the last {span}{each}; _ is none", DIM)])
    return lines


def _span(seconds: float) -> str:
    return f"{seconds:.3g}s" if seconds < 60 else whole_time(seconds)


# Columns of the detail's fields: name and value; name, in and out.
_NAME, _VALUE, _WAY_NAME, _WAY = 16, 16, 18, 12


# Kept with show_numbers alone: without it, nothing is to be said of them.
_ASKED_FOR = ("caller", "called")


def _fields(row: Row, width: int) -> list[Line]:
    """What `peers --json` has, whatever that is: names and values; in and out side by side, and
    below them what has no room there."""
    fields = row.peer.to_json()
    ways = [dict(_flat(fields.pop(name))) for name in ("inbound", "outbound")]
    named = [
        (name, _value(name, value))
        for name, value in _flat(fields)
        if value is not None or name not in _ASKED_FOR
    ]
    single = [_named_value(name, text) for name, text in named if len(text) <= _VALUE]
    long = [_named_value(name, text) for name, text in named if len(text) > _VALUE]
    double: list[Line] = [
        [Segment(f"{'':<{_WAY_NAME}}{'INBOUND':>{_WAY}}{'OUTBOUND':>{_WAY}}", TITLE)]
    ]
    for name in dict.fromkeys([*ways[0], *ways[1]]):
        values = (_value(name, way.get(name)) for way in ways)
        text = "".join(f"{value:>{_WAY}}" for value in values)
        double.append([Segment(f"{name:<{_WAY_NAME}}", DIM), Segment(text)])
    if width < _NAME + _VALUE + 3 + _WAY_NAME + 2 * _WAY:
        return [*double, [], *single, *long]
    blank: Line = [Segment(" " * (_NAME + _VALUE))]
    beside = [_joined([one or blank, other or []]) for one, other in zip_longest(single, double)]
    return [*beside, *long]


def _named_value(name: str, text: str) -> Line:
    return [Segment(f"{name:<{_NAME}}", DIM), Segment(f"{text:<{_VALUE}}")]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values; of an object in it, its name before those of its own."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), value


def _value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("age", "since", "longest gap"):
        return fine_time(value)
    return value.upper() if name == "state" else str(value)


# Counters


def _counters(
    counters: Mapping[str, int], rates: Mapping[str, float], width: int, room: int
) -> list[Line]:
    """The counters in columns downwards, as many as there is room for."""
    cells = _counter_cells(counters, rates)
    across = max((width + 3) // (length(cells[0]) + 3), 1)
    rows = min(-(-len(cells) // across), room)
    if rows < 1:
        return []
    return _downwards(cells, rows, across)


def _downwards(cells: Sequence[Line], rows: int, across: int) -> list[Line]:
    """Cells of one width in so many columns, read downwards."""
    columns = [cells[start : start + rows] for start in range(0, rows * across, rows)]
    return [_joined([cell for cell in row if cell is not None]) for row in zip_longest(*columns)]


def _counter_cells(counters: Mapping[str, int], rates: Mapping[str, float]) -> list[Line]:
    """A cell for each counter, those that are not 0 first, and of them those that mean trouble."""

    def order(name: str) -> tuple[bool, bool]:
        return not counters[name], not COUNTERS[name].is_trouble

    names = max(map(len, COUNTERS))
    values = max(7, *(len(str(value)) for value in counters.values()))
    return [
        [
            Segment(f"{name:<{names}} {counters[name]:>{values}}", None if counters[name] else DIM),
            _growth(name, rates.get(name, 0.0)),
        ]
        for name in sorted(COUNTERS, key=order)
    ]


def _growth(name: str, rate: float) -> Segment:
    text = f"+{rate_text(rate)}/s" if rate else ""
    return Segment(f" {text:<8}", NOTICE if COUNTERS[name].is_trouble else PLAIN)


def _joined(cells: Sequence[Line]) -> Line:
    line: list[Segment] = []
    for cell in cells:
        line += [*([Segment("   ")] if line else []), *cell]
    return line
