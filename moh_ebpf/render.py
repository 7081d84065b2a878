"""What is shown, as Rich renderables: pure functions from data, which ask no kernel and no clock.

The tables are lines of our own and no rich.table: a line that is written whole can be grepped, a
view made of lines can be cut to the terminal's height, and 65,536 of them cost no minute. What
colour says is said by a word, too.
"""

import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from socket import inet_aton
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style

from moh_ebpf import settings
from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import Evidence, State
from moh_ebpf.peers import Peer, PeerRate, by_interest
from moh_ebpf.rtp import Rtp, estimated_mos

if TYPE_CHECKING:
    from moh_ebpf.doctor import Finding

Description = Mapping[str, Any]  # what `status --json` shows
Line = Sequence[Segment]

PLAIN = Style()
TITLE = Style(bold=True)
SORTED = Style(bold=True, underline=True)
DIM = Style(dim=True)
ALARM = Style(color="red", bold=True)
NOTICE = Style(color="yellow")
STATES = {State.MOH: Style(color="magenta", bold=True), State.TWO: Style(color="green")}

# Counters that ought not to grow, or not for long.


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
            indent = length(line)
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
    """A column of a table: of peers, or of anything else. Numbers stand at the `right`.

    `human` is the text for a terminal, where it is not that for a pipe. `key` is what `watch` sorts
    by, the `largest` first where that is what one looks for; without it, it does not. `rated`: the
    key needs the row's rate, which costs a look-up for each.
    """

    title: str
    text: Callable[[Any], str]
    right: bool = False
    style: Callable[[Any], Style] = _plain
    least: int = 0  # width, so that a live view does not jump
    key: Callable[[Any], Any] | None = None
    largest: bool = False
    rated: bool = False
    human: Callable[[Any], str] | None = None


def table(
    columns: Sequence[Column],
    rows: Sequence[Any],
    width: int | None = None,
    *,
    human: bool = False,
    sorted_by: Column | None = None,
) -> list[Line]:
    """Titles and rows; the last columns are left out where all together exceed the width."""
    titles = [column.title for column in columns]
    texts_of = [(human and column.human) or column.text for column in columns]
    texts = [[text(row) for text in texts_of] for row in rows]
    widths = [
        max(column.least, *map(len, cells))
        for column, cells in zip(columns, zip(titles, *texts, strict=True), strict=True)
    ]
    columns = columns[: _fitting(widths, width) if width else None]
    titled = [SORTED if column is sorted_by else TITLE for column in columns]
    lines = [_aligned(columns, widths, titles, titled)]
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


def length(line: Line) -> int:
    return sum(segment.cell_length for segment in line)


def cut(line: Line, width: int) -> Line:
    """The line, with an ellipsis where it is too long."""
    if length(line) <= width:
        return line
    return [*Segment.adjust_line_length(list(line), max(width - 1, 0)), Segment("…")]


# Words


def whole_time(seconds: float) -> str:
    """42s, 3m05s, 1h02m, 2d03h."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"


def fine_time(seconds: float) -> str:
    """0.02s as long as hundredths matter."""
    return f"{seconds:.2f}s" if seconds < 10 else whole_time(seconds)


def rate_text(rate: float) -> str:
    """A decimal only where the rate is small."""
    return f"{rate:.0f}" if rate == 0 or rate >= 9.95 else f"{rate:.1f}"


def _short(number: float) -> str:
    """Three digits and what they count: 999, 1.50k, 12.3M, 123G."""
    units = ["", "k", "M", "G", "T"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        del units[0]
    unit = units[0]
    places = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{places}f}{unit}"


def _packets(number: int) -> str:
    """As they are while one can still read them."""
    return str(number) if number < 100_000 else _short(number)


def _bytes(number: int) -> str:
    """999 B, 1.50 kB, 12.3 MB."""
    text = _short(number)
    digits = text.rstrip("kMGT")
    return f"{digits} {text[len(digits) :]}B"


# Columns of peers


class Row(NamedTuple):
    """A row of a table of peers; no rate where there was no earlier look, or is only one."""

    peer: Peer
    rate: PeerRate | None = None


def _state(row: Row) -> str:
    """MOH or TWO; with a star when known by RTCP, in parentheses when forgotten."""
    text = row.peer.state.name + "*" * (row.peer.identified is Evidence.RTCP)
    return f"({text})" if row.peer.expired else text


def _state_style(row: Row) -> Style:
    return DIM if row.peer.expired else STATES[row.peer.state]


def _peer_style(row: Row) -> Style:
    return DIM if row.peer.expired else PLAIN


def _outbound_style(row: Row) -> Style:
    """On hold, and nothing is sent: that is the dead air we are here to prevent."""
    peer, rate = row
    dead_air = rate and not rate.outbound and peer.state is State.MOH and not peer.expired
    return ALARM if dead_air else _peer_style(row)


def _text(title: str, text: Callable[[Peer], str], key: Callable[[Peer], Any]) -> Column:
    return Column(title, lambda row: text(row.peer), style=_peer_style, key=lambda row: key(row[0]))


def _number(
    title: str,
    number: Callable[[Peer], float],
    text: Callable[[Any], str] = str,
    *,
    human: Callable[[Any], str] | None = None,
    least: int = 0,
    largest: bool = True,
) -> Column:
    """A column of a number of a peer's, and how it is written."""
    return Column(
        title,
        lambda row: text(number(row.peer)),
        right=True,
        style=_peer_style,
        least=least,
        key=lambda row: number(row[0]),
        largest=largest,
        human=human and (lambda row: human(number(row.peer))),
    )


def _per_second(
    title: str, rate: Callable[[PeerRate], float], style: Callable[[Any], Style] = _peer_style
) -> Column:
    return Column(
        title,
        lambda row: rate_text(rate(row.rate)) if row.rate else "-",
        right=True,
        style=style,
        least=5,
        key=lambda row: rate(row.rate) if row.rate else -1.0,
        largest=True,
        rated=True,
    )


def _numeric(address: str, port: int) -> tuple[bytes, int]:
    """To sort addresses by: 9.0.0.1 comes before 10.0.0.1."""
    return inet_aton(address), port


# Of a stream that was not seen, or whose quality is not kept, nothing is known.
_UNKNOWN = -1.0


def _codec(peer: Peer) -> str:
    """That of what it sends; of what is sent to it, where that is another one."""
    names = dict.fromkeys(each.codec for each in (peer.in_rtp, peer.out_rtp) if each)
    return "/".join(names) or "-"


def _loss(stream: Rtp | None) -> float:
    return stream.loss if stream else _UNKNOWN


def _percent(share: float) -> str:
    return "-" if share < 0 else f"{share:.1%}"


def _jitter(stream: Rtp | None) -> float:
    return _UNKNOWN if stream is None or stream.jitter is None else stream.jitter


def _milliseconds(seconds: float) -> str:
    return "-" if seconds < 0 else f"{seconds * 1e3:.1f}ms"


def _worst_mos(peer: Peer) -> float:
    """The estimate for the worse direction; what has none is last when sorted."""
    known = [estimated_mos(each) for each in (peer.in_rtp, peer.out_rtp) if each]
    return min((each for each in known if each is not None), default=math.inf)


def _mos(score: float) -> str:
    return "-" if score == math.inf else f"{score:.1f}"


ENDPOINT = _text(
    "ENDPOINT", lambda peer: peer.endpoint, lambda peer: _numeric(peer.address, peer.port)
)
STATE = Column("STATE", _state, style=_state_style, key=lambda row: row.peer.state)
FOR = _number("FOR", lambda peer: peer.since, whole_time, least=6, largest=False)
AGE = _number("AGE", lambda peer: peer.age, fine_time, least=5, largest=False)
IN_RATE = _per_second("IN/s", lambda rate: rate.inbound)
OUT_RATE = _per_second("OUT/s", lambda rate: rate.outbound, _outbound_style)
PUBLIC = _text(
    "PUBLIC",
    lambda peer: peer.public,
    lambda peer: _numeric(peer.public_address, peer.public_port),
)
WAN = _text("WAN", lambda peer: peer.interface, lambda peer: peer.interface)
IN_PACKETS = _number("IN-PACKETS", lambda peer: peer.in_packets, human=_packets)
IN_BYTES = _number("IN-BYTES", lambda peer: peer.in_bytes, human=_bytes)
OUT_PACKETS = _number("OUT-PACKETS", lambda peer: peer.out_packets, human=_packets)
OUT_BYTES = _number("OUT-BYTES", lambda peer: peer.out_bytes, human=_bytes)
CODEC = _text("CODEC", lambda peer: _codec(peer), lambda peer: _codec(peer))
IN_LOSS = _number("IN-LOSS", lambda peer: _loss(peer.in_rtp), _percent)
OUT_LOSS = _number("OUT-LOSS", lambda peer: _loss(peer.out_rtp), _percent)
IN_JITTER = _number("IN-JITTER", lambda peer: _jitter(peer.in_rtp), _milliseconds)
OUT_JITTER = _number("OUT-JITTER", lambda peer: _jitter(peer.out_rtp), _milliseconds)
MOS = _number("MOS~", lambda peer: _worst_mos(peer), _mos, largest=False)
LONGEST_GAP = _number("LONGEST-GAP", lambda peer: peer.longest_gap, fine_time)

# The most important first: a narrow terminal shows no more than fit, and sorts by all the same.
WATCH_COLUMNS = (
    ENDPOINT,
    STATE,
    FOR,
    AGE,
    IN_RATE,
    OUT_RATE,
    PUBLIC,
    CODEC,
    IN_LOSS,
    OUT_LOSS,
    IN_JITTER,
    OUT_JITTER,
    MOS,
    WAN,
    LONGEST_GAP,
    IN_PACKETS,
    OUT_PACKETS,
)

PEERS_COLUMNS = (
    ENDPOINT,
    STATE,
    FOR,
    AGE,
    IN_PACKETS,
    IN_BYTES,
    OUT_PACKETS,
    OUT_BYTES,
    PUBLIC,
    WAN,
    LONGEST_GAP,
)


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
    lines = table(PROGRAM_COLUMNS, [*description["programs"], *description["missing"]])
    return lines + troubles(description) + _earlier(description)


def _earlier(description: Description) -> list[Line]:
    """A line for each filter or program that runs before ours."""
    lines: list[Line] = []
    for each in description["earlier"]:
        at = "" if each["priority"] is None else f" at priority {each['priority']}"
        text = (
            f"BEFORE {each['role']} on {each['interface']} {each['hook']}: "
            f"{each['kind']} {each['name']}{at}"
        )
        lines.append([Segment(text, NOTICE)])
    return lines


def troubles(description: Description) -> list[Line]:
    """One line for what is missing, and one for each WAN where UCM's RTP passes unheard."""
    return [*_missing(description), *_open_wans(description)]


def _open_wans(description: Description) -> list[Line]:
    lines: list[Line] = []
    for wan in description["wans"]:
        name = wan["interface"]
        if wan["blind"]:
            text = (
                f"BLIND: learn sees nothing on {name} for {wan['blind_for']:.0f} s, and UCM's RTP "
                "passes as without moh_ebpf; see: moh-ebpf doctor"
            )
            lines.append([Segment(text, ALARM)])
        elif wan["failing_open"]:
            text = (
                f"OPEN: UCM's RTP passes on {name} to endpoints that are not heard; "
                "see: moh-ebpf doctor"
            )
            lines.append([Segment(text, NOTICE)])
    return lines


def _missing(description: Description) -> list[Line]:
    places = [f"{place['role']} on {place['interface']}" for place in description["missing"]]
    if not places:
        return []
    return [[Segment(f"MISSING: {', '.join(places)}; attach again to put it back", ALARM)]]


def _explained_settings(shown: Mapping[str, Any]) -> list[tuple[Line, Segment]]:
    names = max(map(len, shown))
    return [
        ([Segment(f"{name:<{names}}  ")], Segment(settings.text(name, value)))
        for name, value in shown.items()
    ]


def _explained_counters(counters: Mapping[str, int]) -> list[tuple[Line, Segment]]:
    names = max(map(len, COUNTERS))
    values = max(len(str(value)) for value in counters.values())

    def line(name: str) -> Line:
        value = counters[name]
        return [Segment(f"{name:<{names}}  {value:>{values}}  ", PLAIN if value else DIM)]

    return [(line(name), Segment(each.meaning, DIM)) for name, each in COUNTERS.items()]


# peers


@dataclass(frozen=True)
class PeersTable:
    """A line for each peer, hold music first, and a line of titles.

    A pipe gets numbers to reckon with; a terminal those with units, and a line that sums up.
    """

    shown: Collection[Peer]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        human = console.is_terminal
        rows = [Row(peer) for peer in by_interest(self.shown)]
        yield Lines(table(PEERS_COLUMNS, rows, human=human))
        if human:
            yield Lines([[], counts(self.shown)])


def peers(shown: Collection[Peer]) -> PeersTable:
    return PeersTable(shown)


def counts(shown: Collection[Peer]) -> Line:
    """`2 on hold  1 two-way`, and how many are forgotten."""
    forgotten = sum(peer.expired for peer in shown)
    return [
        Segment(f"{count(shown, State.MOH)} on hold", STATES[State.MOH]),
        Segment("  "),
        Segment(f"{count(shown, State.TWO)} two-way", STATES[State.TWO]),
        *([Segment(f"  {forgotten} forgotten", DIM)] if forgotten else []),
    ]


def count(known: Collection[Peer], state: State) -> int:
    """How many are in the state, and not forgotten."""
    return sum(peer.state is state and not peer.expired for peer in known)


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
