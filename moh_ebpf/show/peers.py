"""The columns of endpoints, and what `peers` shows."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from socket import inet_aton
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from moh_ebpf.calls.peers import Peer, PeerRate, by_interest
from moh_ebpf.calls.rtp import Rtp, estimated_mos
from moh_ebpf.layout import Evidence, State
from moh_ebpf.show.lines import ALARM, DIM, PLAIN, Column, Line, Lines, table
from moh_ebpf.show.words import (
    byte_count,
    fine_time,
    milliseconds,
    packet_count,
    percent,
    rate_text,
    whole_time,
)

STATES = {State.MOH: Style(color="magenta", bold=True), State.TWO: Style(color="green")}

# Behind a state that is not known by RTP.
_MARKS = {Evidence.RTCP: "*", Evidence.SIGNALLING: "+"}


class Row(NamedTuple):
    """A row of a table of peers; no rate where there was no earlier look, or is only one."""

    peer: Peer
    rate: PeerRate | None = None


def _state(row: Row) -> str:
    """MOH or TWO; with a star when known by RTCP, with a plus when known by signalling alone, in
    parentheses when forgotten."""
    text = row.peer.state.name + _MARKS.get(row.peer.identified, "")
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


def _call_id(peer: Peer) -> str:
    return peer.call.call_id if peer.call else "-"


def _by_call(peer: Peer) -> tuple[bool, str]:
    """To sort by; who is in none that is known is last."""
    return peer.call is None, _call_id(peer)


# Of a stream that was not seen, or whose quality is not kept, nothing is known.
_UNKNOWN = -1.0


def _codec(peer: Peer) -> str:
    """That of what it sends; of what is sent to it, where that is another one."""
    names = dict.fromkeys(each.codec for each in (peer.in_rtp, peer.out_rtp) if each)
    return "/".join(names) or "-"


def _loss(stream: Rtp | None) -> float:
    return stream.loss if stream else _UNKNOWN


def _jitter(stream: Rtp | None) -> float:
    return _UNKNOWN if stream is None or stream.jitter is None else stream.jitter


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
WAN = _text("WAN", lambda peer: peer.interface or "-", lambda peer: peer.interface)
IN_PACKETS = _number("IN-PACKETS", lambda peer: peer.in_packets, human=packet_count)
IN_BYTES = _number("IN-BYTES", lambda peer: peer.in_bytes, human=byte_count)
OUT_PACKETS = _number("OUT-PACKETS", lambda peer: peer.out_packets, human=packet_count)
OUT_BYTES = _number("OUT-BYTES", lambda peer: peer.out_bytes, human=byte_count)
CODEC = _text("CODEC", lambda peer: _codec(peer), lambda peer: _codec(peer))
IN_LOSS = _number("IN-LOSS", lambda peer: _loss(peer.in_rtp), percent)
OUT_LOSS = _number("OUT-LOSS", lambda peer: _loss(peer.out_rtp), percent)
IN_JITTER = _number("IN-JITTER", lambda peer: _jitter(peer.in_rtp), milliseconds)
OUT_JITTER = _number("OUT-JITTER", lambda peer: _jitter(peer.out_rtp), milliseconds)
MOS = _number("MOS~", lambda peer: _worst_mos(peer), _mos, largest=False)
LONGEST_GAP = _number("LONGEST-GAP", lambda peer: peer.longest_gap, fine_time)
CALL_ID = _text("CALL-ID", _call_id, _by_call)

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
    CALL_ID,
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
    CALL_ID,
)


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


def peers_table(shown: Collection[Peer]) -> PeersTable:
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
