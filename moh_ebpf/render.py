"""What is shown, as Rich renderables: pure functions from data, which ask no kernel and no clock.

The tables are lines of our own and no rich.table: a line that is written whole can be grepped, a
view made of lines can be cut to the terminal's height, and 65,536 of them cost no minute. What
colour says is said by a word, too.
"""

import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style

from moh_ebpf.layout import COUNTERS, State
from moh_ebpf.peers import Peer, PeerRate, Rates, Snapshot, by_interest

if TYPE_CHECKING:
    from moh_ebpf.doctor import Finding

Description = Mapping[str, Any]  # what `status --json` shows
Line = Sequence[Segment]

PLAIN = Style()
TITLE = Style(bold=True)
DIM = Style(dim=True)
ALARM = Style(color="red", bold=True)
NOTICE = Style(color="yellow")
STATES = {State.MOH: Style(color="magenta", bold=True), State.TWO: Style(color="green")}

# A terminal of fewer rows is small: the watch view leaves out settings, or the lines between.
ROWS_FOR_SETTINGS = 16
ROWS_FOR_SPACES = 20

# Counters that ought not to grow, or not for long.
TROUBLE = ("dropped_", "learn_failed", "passed_unnatted")

EMPTY_SETTINGS = {"lan": "none", "provider": "any global address"}


@dataclass(frozen=True)
class Lines:
    """Lines as they are: neither wrapped nor cut here, nor padded."""

    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield from line
            yield Segment.line()


@dataclass(frozen=True)
class Explained:
    """Lines with a text after each, which a terminal wraps under itself; a pipe gets it whole."""

    lines: Sequence[tuple[Line, Segment]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line, (text, style, _) in self.lines:
            indent = _length(line)
            room = max(options.max_width - indent, 20)
            parts = textwrap.wrap(text, room) if console.is_terminal else [text]
            yield from line
            yield Segment(f"\n{' ' * indent}".join(parts), style)
            yield Segment.line()


def show(renderable: RenderableType, console: Console | None = None) -> None:
    """Print on stdout, with nothing cut: a terminal wraps lines that are too long for it."""
    (console or Console()).print(renderable, crop=False)


# Tables


def _plain(row: Any) -> Style:
    return PLAIN


class Column(NamedTuple):
    """A column of a table: of peers, or of programs. Numbers stand at the `right`."""

    title: str
    text: Callable[[Any], str]
    right: bool = False
    style: Callable[[Any], Style] = _plain
    least: int = 0  # width, so that a live view does not jump


def _table(columns: Sequence[Column], rows: Sequence[Any], width: int | None = None) -> list[Line]:
    """Titles and rows; the last columns are left out where all together exceed the width."""
    titles = [column.title for column in columns]
    texts = [[column.text(row) for column in columns] for row in rows]
    widths = [
        max(column.least, *map(len, cells))
        for column, cells in zip(columns, zip(titles, *texts, strict=True), strict=True)
    ]
    columns = columns[: _fitting(widths, width) if width else None]
    lines = [_aligned(columns, widths, titles, [TITLE] * len(columns))]
    for row, cells in zip(rows, texts, strict=True):
        lines.append(_aligned(columns, widths, cells, [column.style(row) for column in columns]))
    return lines


def _fitting(widths: Sequence[int], width: int) -> int:
    """How many columns fit, two spaces apart; at least one."""
    count = len(widths)
    while count > 1 and sum(widths[:count]) + 2 * (count - 1) > width:
        count -= 1
    return count


def _aligned(
    columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str], styles: Sequence[Style]
) -> Line:
    """The cells as one line, neighbours of one style together."""
    line: list[Segment] = []
    text = ""
    for index, column in enumerate(columns):
        cell = texts[index]
        text += cell.rjust(widths[index]) if column.right else cell.ljust(widths[index])
        if index + 1 == len(columns):
            # Blanks at the end would only spoil a pipe.
            line.append(Segment(text.rstrip(), styles[index]))
        elif styles[index] is styles[index + 1]:
            text += "  "
        else:
            line.append(Segment(text + "  ", styles[index]))
            text = ""
    return line


def _length(line: Line) -> int:
    return sum(segment.cell_length for segment in line)


def _cut(line: Line, width: int) -> Line:
    """The line, with an ellipsis where it is too long."""
    if _length(line) <= width:
        return line
    return [*Segment.adjust_line_length(list(line), max(width - 1, 0)), Segment("…")]


# Words


def _whole_time(seconds: float) -> str:
    """42s, 3m05s, 1h02m, 2d03h."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"


def _fine_time(seconds: float) -> str:
    """0.02s as long as hundredths matter."""
    return f"{seconds:.2f}s" if seconds < 10 else _whole_time(seconds)


def _rate(rate: float) -> str:
    """A decimal only where the rate is small."""
    return f"{rate:.0f}" if rate == 0 or rate >= 9.95 else f"{rate:.1f}"


def _state(peer: Peer) -> str:
    """MOH or TWO; in parentheses when forgotten."""
    return f"({peer.state.name})" if peer.expired else peer.state.name


def _state_style(peer: Peer) -> Style:
    return DIM if peer.expired else STATES[peer.state]


def _peer_style(peer: Peer) -> Style:
    return DIM if peer.expired else PLAIN


def _peer_column(
    title: str, text: Callable[[Peer], str], right: bool = False, least: int = 0
) -> Column:
    return Column(title, text, right, _peer_style, least)


ENDPOINT = _peer_column("ENDPOINT", lambda peer: peer.endpoint)
STATE = Column("STATE", _state, style=_state_style)
FOR = _peer_column("FOR", lambda peer: _whole_time(peer.since), right=True, least=6)
AGE = _peer_column("AGE", lambda peer: _fine_time(peer.age), right=True, least=5)
PUBLIC = _peer_column("PUBLIC", lambda peer: peer.public)
WAN = _peer_column("WAN", lambda peer: peer.interface)


# status


def status(description: Description) -> RenderableType:
    """Programs, what is missing, settings, and the counters with what each counts."""
    if not description["attached"]:
        return Lines([[Segment("not attached")]])
    version = Segment(f"attached by moh-ebpf {description['version']}")
    return Group(
        Lines([[version], [], *_programs(description), [], [Segment("SETTINGS", TITLE)]]),
        Explained(_explained_settings(description["settings"])),
        Lines([[], [Segment("COUNTERS", TITLE)]]),
        Explained(_explained_counters(description["counters"])),
    )


PROGRAM_COLUMNS = (
    Column("INTERFACE", lambda program: program["interface"]),
    Column("HOOK", lambda program: program["hook"]),
    Column("ROLE", lambda program: program["role"]),
    Column(
        "PROGRAM",
        lambda program: f"id {program['id']}" if "id" in program else "MISSING",
        style=lambda program: PLAIN if "id" in program else ALARM,
    ),
)


def _programs(description: Description) -> list[Line]:
    lines = _table(PROGRAM_COLUMNS, [*description["programs"], *description["missing"]])
    return lines + _missing(description)


def _missing(description: Description) -> list[Line]:
    """One line, if programs are missing: which, and what to do."""
    places = [f"{place['role']} on {place['interface']}" for place in description["missing"]]
    if not places:
        return []
    return [[Segment(f"MISSING: {', '.join(places)}; attach again to put it back", ALARM)]]


def _explained_settings(settings: Mapping[str, Any]) -> list[tuple[Line, Segment]]:
    names = max(map(len, settings))
    return [
        ([Segment(f"{name:<{names}}  ")], Segment(_setting_text(name, value)))
        for name, value in settings.items()
    ]


def _setting_text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or EMPTY_SETTINGS.get(name, "")
    return f"{value:g}s" if name == "timeout" else str(value)


def _explained_counters(counters: Mapping[str, int]) -> list[tuple[Line, Segment]]:
    names = max(map(len, counters))
    values = max(len(str(value)) for value in counters.values())
    return [
        (
            [Segment(f"{name:<{names}}  {value:>{values}}  ", PLAIN if value else DIM)],
            Segment(COUNTERS.get(name, ""), DIM),
        )
        for name, value in counters.items()
    ]


# peers

PEERS_COLUMNS = (
    ENDPOINT,
    STATE,
    FOR,
    AGE,
    _peer_column("IN-PACKETS", lambda peer: str(peer.in_packets), right=True),
    _peer_column("IN-BYTES", lambda peer: str(peer.in_bytes), right=True),
    _peer_column("OUT-PACKETS", lambda peer: str(peer.out_packets), right=True),
    _peer_column("OUT-BYTES", lambda peer: str(peer.out_bytes), right=True),
    PUBLIC,
    WAN,
    _peer_column("LONGEST-GAP", lambda peer: _fine_time(peer.longest_gap), right=True),
)


def peers(shown: Collection[Peer]) -> Lines:
    """A line for each peer, hold music first, and a line of titles."""
    return Lines(_table(PEERS_COLUMNS, by_interest(shown)))


# watch


def plain_line(
    at: datetime, description: Description, snapshot: Snapshot, rates: Rates, seconds: float
) -> str:
    """An interval's line: packets/s in and out, and how far each counter went in its seconds."""
    total = _total(rates)
    fields = {
        "moh": _count(snapshot, State.MOH),
        "two": _count(snapshot, State.TWO),
        "in": f"{total.inbound:.1f}",
        "out": f"{total.outbound:.1f}",
        **{name: round(rate * seconds) for name, rate in rates.counters.items()},
        "missing": len(description["missing"]),
    }
    values = " ".join(f"{name}={value}" for name, value in fields.items())
    return f"{at.isoformat(timespec='milliseconds')} {values}"


def watch(
    description: Description, snapshot: Snapshot, rates: Rates, width: int, height: int
) -> Lines:
    """The view, no larger than the terminal: header, peers, and at its foot the counters.

    The less room, the less of all but hold music: the peers have at least half of it.
    """
    space: list[Line] = [[]] if height >= ROWS_FOR_SPACES else []
    header = [*_header(description, snapshot, rates, height), *space]
    room = height - len(header) - len(space)
    spare = room - max(len(snapshot.peers), 1) - 1
    counters = _counters(snapshot.counters, rates.counters, width, max(spare, height // 4))
    room = max(room - len(counters), 0)
    table = _watched_peers(description, snapshot.peers, rates.peers, width, room)
    filled = [*table, *([[]] * (room - len(table)))]
    lines = [*header, *filled, *space, *counters]
    return Lines([_cut(line, width) for line in lines[:height]])


def _count(snapshot: Snapshot, state: State) -> int:
    return sum(peer.state is state and not peer.expired for peer in snapshot.peers)


def _total(rates: Rates) -> PeerRate:
    inbound = sum(rate.inbound for rate in rates.peers.values())
    return PeerRate(inbound, sum(rate.outbound for rate in rates.peers.values()))


def _header(description: Description, snapshot: Snapshot, rates: Rates, height: int) -> list[Line]:
    lines = [_summary(snapshot, rates), *_missing(description)]
    if height >= ROWS_FOR_SETTINGS:
        lines += [_interfaces(description), _settings(description["settings"])]
    return lines


def _summary(snapshot: Snapshot, rates: Rates) -> Line:
    total = _total(rates)
    packets = f"in {total.inbound:.0f}  out {total.outbound:.0f}" if rates.counters else "…"
    return [
        Segment(f"{_count(snapshot, State.MOH)} on hold", STATES[State.MOH]),
        Segment("  "),
        Segment(f"{_count(snapshot, State.TWO)} two-way", STATES[State.TWO]),
        Segment("   packets/s: "),
        Segment(packets, TITLE),
    ]


def _interfaces(description: Description) -> Line:
    """`eth1 (learn, enforce)  eth0 (bypass)`"""
    roles: dict[str, list[str]] = {}
    for program in description["programs"]:
        roles.setdefault(program["interface"], []).append(program["role"])
    return [Segment("  ".join(f"{name} ({', '.join(each)})" for name, each in roles.items()))]


def _settings(settings: Mapping[str, Any]) -> Line:
    """What may be long, and be cut, last."""
    text = {name: _setting_text(name, value) for name, value in settings.items()}
    return [
        Segment(
            f"port {text['port']}  timeout {text['timeout']}  "
            f"UCM {text['ucm']}  public {text['public']}"
        )
    ]


def _watched_peers(
    description: Description,
    known: Sequence[Peer],
    rates: Mapping[str, PeerRate],
    width: int,
    room: int,
) -> list[Line]:
    """The table of peers in so many lines, the last of which tells how many are not shown."""
    if not known:
        return _nobody(description["settings"], width)
    fitting = len(known) if len(known) < room else max(room - 2, 0)
    lines = _table(_watch_columns(rates), by_interest(known, fitting), width)
    more = len(known) - fitting
    if more:
        lines.append([Segment(f"… and {more} more", DIM)])
    return lines[:room]


def _nobody(settings: Mapping[str, Any], width: int) -> list[Line]:
    text = (
        "No endpoint is known: within the last "
        f"{_setting_text('timeout', settings['timeout'])}, none has sent RTP to a public "
        "address. A call shows here with the provider's first packet."
    )
    return [[Segment(part)] for part in textwrap.wrap(text, max(width, 20))]


def _watch_columns(rates: Mapping[str, PeerRate]) -> tuple[Column, ...]:
    """The most important first: a narrow terminal shows no more than fit."""

    def inbound(peer: Peer) -> str:
        rate = rates.get(peer.endpoint)
        return _rate(rate.inbound) if rate else "-"

    def outbound(peer: Peer) -> str:
        rate = rates.get(peer.endpoint)
        return _rate(rate.outbound) if rate else "-"

    def outbound_style(peer: Peer) -> Style:
        """On hold, and nothing is sent: that is the dead air we are here to prevent."""
        rate = rates.get(peer.endpoint)
        dead_air = rate and not rate.outbound and peer.state is State.MOH and not peer.expired
        return ALARM if dead_air else _peer_style(peer)

    return (
        ENDPOINT,
        STATE,
        FOR,
        AGE,
        _peer_column("IN/s", inbound, right=True, least=5),
        Column("OUT/s", outbound, right=True, style=outbound_style, least=5),
        PUBLIC,
        WAN,
    )


def _counters(
    counters: Mapping[str, int], rates: Mapping[str, float], width: int, room: int
) -> list[Line]:
    """The counters in columns downwards, as many as there is room for."""
    cells = _counter_cells(counters, rates)
    across = max((width + 3) // (_length(cells[0]) + 3), 1)
    rows = min(-(-len(cells) // across), room)
    if rows < 1:
        return []
    columns = [cells[start : start + rows] for start in range(0, rows * across, rows)]
    return [_joined([cell for cell in row if cell is not None]) for row in zip_longest(*columns)]


def _counter_cells(counters: Mapping[str, int], rates: Mapping[str, float]) -> list[Line]:
    """A cell for each counter, those that are not 0 first, and of them those that mean trouble."""

    def order(name: str) -> tuple[bool, bool]:
        return not counters[name], not name.startswith(TROUBLE)

    names = max(map(len, counters))
    values = max(7, *(len(str(value)) for value in counters.values()))
    return [
        [
            Segment(f"{name:<{names}} {counters[name]:>{values}}", None if counters[name] else DIM),
            _growth(name, rates.get(name, 0.0)),
        ]
        for name in sorted(counters, key=order)
    ]


def _growth(name: str, rate: float) -> Segment:
    text = f"+{_rate(rate)}/s" if rate else ""
    return Segment(f" {text:<8}", NOTICE if name.startswith(TROUBLE) else PLAIN)


def _joined(cells: Sequence[Line]) -> Line:
    line: list[Segment] = []
    for cell in cells:
        line += [*([Segment("   ")] if line else []), *cell]
    return line


# doctor

LEVELS = {"ok": DIM, "note": PLAIN, "warning": NOTICE, "error": ALARM}


def findings(found: Collection["Finding"]) -> Explained:
    """A line for each; under one that is not well, its evidence and what to try."""
    names = max((len(each.check) for each in found), default=0)
    lines: list[tuple[Line, Segment]] = []
    for each in found:
        level = str(each.level)
        head = [Segment(f"{level:<8} {each.check:<{names}} ", LEVELS[level])]
        lines.append((head, Segment(each.found)))
        for word, text in (("seen", each.evidence), ("try", each.remedy)):
            if text:
                lines.append(([Segment(f"{'':<{names + 9}} {word}: ")], Segment(text, DIM)))
    return Explained(lines)
