"""What is looked at, and how: the state of the view, changed by keys. Pure.

keys → View → which peers, in which order, on which lines
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Network
from socket import inet_aton
from typing import Any, NamedTuple

from moh_ebpf.calls.peers import Peer, PeerRate
from moh_ebpf.layout import State
from moh_ebpf.show.lines import Column
from moh_ebpf.show.peers import Row

Endpoint = tuple[str, int]

_FAR = 1 << 30  # rows: to an end of any table


@dataclass(frozen=True)
class View:
    """`sort` is a column's title, "" for interest; `typing` an address filter that is being typed.

    `selected` stays with its peer when the rows move; `index` and `top` are the row it was on and
    the first row shown, `page` how many there were, `step` how far to go from there. `seen` are the
    endpoints on the screen, `matching` how many pass the filters.
    """

    sort: str = ""
    reverse: bool = False
    state: State | None = None
    address: str = ""
    typing: str | None = None
    paused: bool = False
    selected: Endpoint | None = None
    index: int = 0
    top: int = 0
    page: int = 1
    step: int = 0
    detail: bool = False
    help: bool = False
    quit: bool = False
    seen: tuple[str, ...] = ()
    matching: int = 0

    @cached_property
    def wanted(self) -> Callable[[Peer], bool]:
        """Whether a peer passes the filters; also one that is being typed."""
        address = address_filter(self.address if self.typing is None else self.typing)
        state = self.state
        if state is None:
            return address
        return lambda peer: peer.state is state and address(peer)

    @property
    def filtered(self) -> bool:
        return self.state is not None or bool(self.address) or bool(self.typing)


def address_filter(text: str) -> Callable[[Peer], bool]:
    """A filter by CIDR, or by how `address:port` begins. What is no CIDR (yet) is its address."""
    if not text:
        return lambda peer: True
    found = network(text)
    if found:
        mask, wanted = int(found.netmask), int(found.network_address)
        return lambda peer: int.from_bytes(inet_aton(peer.address), "big") & mask == wanted
    beginning = text.partition("/")[0]
    if ":" in beginning:
        return lambda peer: peer.endpoint.startswith(beginning)
    return lambda peer: peer.address.startswith(beginning)


def network(text: str) -> IPv4Network | None:
    """`203.0.113.0/24`, or in short `10/8`; None if it is none."""
    address, slash, length = text.partition("/")
    if not slash:
        return None
    parts = address.removesuffix(".").split(".")
    try:
        return IPv4Network(f"{'.'.join(parts + ['0'] * (4 - len(parts)))}/{length}", strict=False)
    except ValueError:
        return None


# Keys


def pressed(view: View, key: str, columns: Sequence[Column]) -> View:
    """The view after a key; the same where the key is none of ours."""
    if view.typing is not None:
        return _typed(view, view.typing, key)
    return ACTIONS.get(key, _nothing)(view, columns)


def _typed(view: View, text: str, key: str) -> View:
    if key == "enter":
        wrong = "/" in text and not network(text)
        return view if wrong else replace(view, address=text, typing=None)
    if key == "escape" or (key == "backspace" and not text):
        return replace(view, typing=None)
    if key == "backspace":
        return replace(view, typing=text[:-1])
    if key == "erase":
        return replace(view, typing="")
    # An address, a port and a prefix have no more; what is pasted may.
    if len(key) == 1 and key in "0123456789.:/" and len(text) < 31:
        return replace(view, typing=text + key)
    return view


Action = Callable[[View, Sequence[Column]], View]


def _nothing(view: View, columns: Sequence[Column]) -> View:
    return view


def _sort(step: int) -> Action:
    def action(view: View, columns: Sequence[Column]) -> View:
        titles = ["", *(column.title for column in columns if column.key)]
        at = titles.index(view.sort) if view.sort in titles else 0
        return replace(view, sort=titles[(at + step) % len(titles)], reverse=False)

    return action


def _set(**changes: Any) -> Action:
    return lambda view, columns: replace(view, **changes)


def _toggle(name: str) -> Action:
    def action(view: View, columns: Sequence[Column]) -> View:
        changes: dict[str, Any] = {name: not getattr(view, name)}
        return replace(view, **changes)

    return action


def _move(step: int) -> Action:
    return lambda view, columns: replace(view, step=view.step + step)


def _turn(pages: int) -> Action:
    return lambda view, columns: replace(view, step=view.step + pages * max(view.page - 1, 1))


def _back(view: View, columns: Sequence[Column]) -> View:
    """What is on top goes first."""
    if view.help:
        return replace(view, help=False)
    if view.detail:
        return replace(view, detail=False)
    if view.filtered:
        return replace(view, state=None, address="")
    return replace(view, selected=None, top=0, index=0)


def _detail(view: View, columns: Sequence[Column]) -> View:
    """Without a selection, of the first row."""
    step = view.step if view.selected or view.detail else max(view.step, 1)
    return replace(view, detail=not view.detail, step=step)


ACTIONS: Mapping[str, Action] = {
    "s": _sort(1),
    ">": _sort(1),
    "<": _sort(-1),
    "S": _sort(-1),
    "r": _toggle("reverse"),
    "i": _set(sort="", reverse=False),
    "m": _set(state=State.MOH),
    "t": _set(state=State.TWO),
    "a": _set(state=None),
    "/": _set(typing="", detail=False),
    "escape": _back,
    "p": _toggle("paused"),
    " ": _toggle("paused"),
    "up": _move(-1),
    "k": _move(-1),
    "down": _move(1),
    "j": _move(1),
    "page up": _turn(-1),
    "page down": _turn(1),
    "home": _move(-_FAR),
    "g": _move(-_FAR),
    "end": _move(_FAR),
    "G": _move(_FAR),
    "enter": _detail,
    "d": _detail,
    "?": _toggle("help"),
    "h": _toggle("help"),
    "q": _set(quit=True),
}


# Rows


class Shown(NamedTuple):
    """The rows that are seen, in detail none; the selected peer's, None without one or if gone."""

    rows: list[Row]
    selected: Row | None


def column_of(view: View, columns: Sequence[Column]) -> Column | None:
    return next((column for column in columns if column.title == view.sort), None)


def descending(view: View, columns: Sequence[Column]) -> bool:
    column = column_of(view, columns)
    return view.reverse != bool(column and column.largest)


def settle(
    view: View,
    known: Sequence[Peer],
    rates: Mapping[str, PeerRate],
    columns: Sequence[Column],
    room: int,
) -> tuple[View, Shown]:
    """Move the selection by what was asked, and scroll to it; the rows for `room` lines.

    Where not all fit, a line is left to say how many there are besides.
    Of 65,536 peers no more are sorted than are seen, as long as one stays near the top.
    """
    peers = [peer for peer in known if view.wanted(peer)] if view.filtered else known
    room = max(room if len(peers) <= room else room - 1, 1)
    if view.detail and view.selected and not view.step:
        # Its own peer, whether it passes the filters or not; what is gone may come back.
        there = _find(known, view.selected)
        selected = Row(there, rates.get(there.endpoint)) if there else None
        seen = (there.endpoint,) if there else ()
        return replace(view, seen=seen, matching=len(peers)), Shown([], selected)
    order = _Order(peers, rates, column_of(view, columns), descending(view, columns))
    if not peers or (view.selected is None and view.step <= 0):
        rows = order.first(room)
        view = replace(view, selected=None, step=0, index=0, top=0, page=room, detail=False)
        return _seeing(view, rows, len(peers)), Shown(rows, None)
    index = min(max(_index(view, peers, order) + view.step, 0), len(peers) - 1)
    top = min(max(view.top, index - room + 1), index)
    top = max(min(top, len(peers) - room), 0)
    rows = order.first(top + room)[top:]
    row = rows[index - top]
    chosen = (row.peer.address, row.peer.port)
    view = replace(view, selected=chosen, index=index, top=top, page=room, step=0)
    return _seeing(view, rows, len(peers)), Shown(rows, row)


def _seeing(view: View, rows: Sequence[Row], matching: int) -> View:
    return replace(view, seen=tuple(row.peer.endpoint for row in rows), matching=matching)


def _index(view: View, peers: Sequence[Peer], order: "_Order") -> int:
    """The selected peer's row; where it was, if it is gone; before the first, without one."""
    if view.selected is None:
        return -1
    selected = _find(peers, view.selected)
    return order.position(selected) if selected else view.index


def _find(peers: Sequence[Peer], endpoint: Endpoint) -> Peer | None:
    return next((peer for peer in peers if (peer.address, peer.port) == endpoint), None)


class _Order:
    """Peers in an order. The forgotten are last whichever way; ties go by address."""

    def __init__(
        self,
        peers: Sequence[Peer],
        rates: Mapping[str, PeerRate],
        column: Column | None,
        descending: bool,
    ) -> None:
        self._peers = peers
        self._rates = rates
        self._column = column
        self._descending = descending

    def first(self, most: int) -> list[Row]:
        """A heap is cheaper than a sort only as long as few are wanted."""
        if most * 8 > len(self._peers):
            found = sorted(self._peers, key=self._key, reverse=self._descending)[:most]
        else:
            pick = heapq.nlargest if self._descending else heapq.nsmallest
            found = pick(most, self._peers, key=self._key)
        return [self._row(peer) for peer in found]

    def position(self, peer: Peer) -> int:
        """How many come before it."""
        limit = self._key(peer)
        if self._descending:
            return sum(self._key(other) > limit for other in self._peers)
        return sum(self._key(other) < limit for other in self._peers)

    def _row(self, peer: Peer) -> Row:
        return Row(peer, self._rates.get(peer.endpoint))

    def _key(self, peer: Peer) -> tuple[Any, ...]:
        last = peer.expired != self._descending
        if self._column is None or self._column.key is None:
            return last, peer.state, peer.since, peer.address, peer.port
        row = self._row(peer) if self._column.rated else Row(peer)
        return last, self._column.key(row), peer.address, peer.port
