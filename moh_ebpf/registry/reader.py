"""The events of what is attached, over replacement and new rings."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from moh_ebpf import layout
from moh_ebpf.calls import peers
from moh_ebpf.calls.events import SECOND, Event, Key, Lost
from moh_ebpf.calls.peers import SipCall
from moh_ebpf.calls.tracker import PeerEntry, Tracker
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.layout import Evidence
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.ring import Ring
from moh_ebpf.settings import Settings

# Is it still attached, and are these its maps? In seconds.
_CHECK_SECONDS = 1.0


class Reader:
    """The events of what is attached, from now on or, with `history`, with those that the ring has
    kept. It goes on over a replacement, and over a detach and attach that it does not notice.

    `after` is where another reader has `left` the events: of the same ring, none is read twice.

    Raises NotAttachedError where nothing is attached, now or when a read finds so: it looks each
    second, or, without `checks`, when told to by `expect_change`. Raises OSError.
    """

    _ring: Ring
    _maps: "_Look"
    _tracker: Tracker
    _joins: bool  # whom the map has, besides those of the ring, is to be looked up
    _attached: "_Identity"

    def __init__(
        self, *, history: bool = False, checks: bool = True, after: "Left | None" = None
    ) -> None:
        self._close: Callable[[], None] = lambda: None
        self._checks = checks
        with walk.attached_or_error() as attached:
            self._open(attached, history, after)
        self._plan_check()

    @property
    def left(self) -> "Left":
        """Where it is now."""
        return Left(self._attached.ring, self._ring.at)

    def close(self) -> None:
        """Let go of the maps."""
        self._close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """To wait for, beside others; then `read`, after which it may be another."""
        return self._ring.fileno()

    def due(self) -> float:
        """Seconds after which to `read` even if nothing has come."""
        if self._ring.more:
            return 0.0
        to_check = max(0.0, self._check_at - time.monotonic())
        return min(self._tracker.next_due(kernel_ns()), to_check)

    def expect_change(self) -> None:
        """The next read is to look whether it is attached still, as what."""
        self._check_at = 0.0

    def read(self, wait: float = 0.0) -> list[Event | Lost]:
        """What has happened by now; waits up to so many seconds for something to.

        If it raises, nothing that has happened is lost: the next read has it.
        """
        self._ring.wait(min(wait, self.due()))
        events = self._told()
        if time.monotonic() >= self._check_at:
            try:
                self._check(events)
            except NotAttachedError:
                events += [*self._told(), *self._tracker.give_up()]
                if not events:
                    raise
                return events  # what has happened comes first
            except (MohError, OSError):
                if not events:
                    raise
                return events
        events += self._tracker.due(kernel_ns())
        return events

    def _told(self) -> list[Event | Lost]:
        # Whoever is held up between the two clocks has too little: the most is the best.
        self._tracker.epoch = max(time.time_ns() - kernel_ns() for _ in range(3))
        records, missed = self._ring.read()
        if records:  # an interface may have been renamed
            self._tracker.interfaces = self._maps.attached.wan_names()
        events: list[Event | Lost] = [Lost(time.time(), missed)] if missed else []
        for record in records:
            events += self._tracker.tell(record)
        if len(records) >= self._ring.room and (unwritten := self._maps.unwritten()):
            events.append(Lost(time.time(), unwritten))
        if self._joins and not self._ring.more:
            self._joins = False
            self._know_all()
        return events

    def _open(self, attached: Attached, history: bool, after: "Left | None" = None) -> None:
        events = attached.maps.events
        if events is None:
            raise MohError(
                "the attached programs tell of no events; `moh-ebpf attach` replaces them"
            )
        with ExitStack() as stack:
            same = after is not None and after.ring == events.id
            since = after.at if after and same else None
            ring = Ring(events, history=history, since=since)
            stack.callback(ring.close)
            maps = stack.enter_context(_Look(attached))
            if history and ring.was_full:  # nobody has told of those that had no room
                maps.unwritten_before = 0
            settings, names = attached.record.settings, attached.wan_names()
            tracker = Tracker(
                *(maps.look_up, _timeout(settings), names, self._renew, _rtcp_timeout(settings)),
                maps.look_up_call,
            )
            before, self._close = self._close, stack.pop_all().close
        before()
        self._ring, self._maps, self._tracker, self._joins = ring, maps, tracker, True
        self._attached = _Identity.of(attached)

    def _plan_check(self) -> None:
        self._check_at = time.monotonic() + _CHECK_SECONDS if self._checks else math.inf

    def _know_all(self) -> None:
        now, timeout = kernel_ns(), _timeout(self._maps.attached.record.settings)
        for key, values in self._maps.attached.maps.peers():
            found = self._maps.found(values)
            if found and now - found.last_seen < timeout:
                self._tracker.know(key, found)

    def _check(self, events: list[Event | Lost]) -> None:
        """Is it attached still, with these maps? Else go on with the new ones; what the old ones
        had to the last is added to `events`. Until that has worked, it is to be done."""
        self.expect_change()
        try:
            with walk.attached_or_error() as attached:
                if _Identity.of(attached).ring == self._attached.ring:
                    self._go_on_with(attached)
                else:
                    events += [*self._told(), *self._tracker.give_up()]
                    # Whatever is in a ring that was made since is news.
                    self._open(attached, history=True)
        except NotAttachedError:
            raise NotAttachedError(
                "detached meanwhile: nothing happens any more; attach with: moh-ebpf attach"
            ) from None
        self._plan_check()

    def _go_on_with(self, attached: Attached) -> bool:
        """True if its peers are in another map, or its settings others."""
        now = _Identity.of(attached)
        if now == self._attached:
            return False
        self._maps.replace(attached)
        settings = attached.record.settings
        self._tracker.go_on(_timeout(settings), _rtcp_timeout(settings))
        self._attached = now
        return True

    def _renew(self) -> bool:
        """Before an end is told: was what is attached replaced since the last check? At other times
        than a check's, an error is for the next one."""
        try:
            with walk.attached_or_error() as attached:
                same_ring = _Identity.of(attached).ring == self._attached.ring
                return same_ring and self._go_on_with(attached)
        except (MohError, OSError):
            self.expect_change()
            return False


class Left(NamedTuple):
    """A ring's map id, and a position in it."""

    ring: int
    at: int


class _Identity(NamedTuple):
    """What a reader has read of what is attached: the same as long as it may go on without a
    look."""

    ring: int
    peers: int
    timeout: float
    wan: tuple[int, ...]

    @classmethod
    def of(cls, attached: Attached) -> "_Identity":
        maps, record = attached.maps, attached.record
        ring = maps.events.id if maps.events else -1
        return cls(ring, maps.peers_id, record.settings.timeout, record.wan)


class _Look:
    """The maps of peers and of counters, for a look at one of each."""

    def __init__(self, attached: Attached) -> None:
        self._close: Callable[[], None] = lambda: None
        self.replace(attached)

    def __enter__(self) -> "_Look":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def replace(self, attached: Attached) -> None:
        """From now on, those of what is attached."""
        self._close()
        with ExitStack() as stack:
            self.attached = replace(attached, maps=attached.maps.copied(stack))
            self._close = stack.pop_all().close
        self.unwritten_before = self.attached.counters()["events_unread"]

    def look_up(self, key: Key) -> PeerEntry | None:
        """What a peer's entry says; None: it is not there, or nobody was told of it."""
        value = self.attached.maps.peer(layout.ENDPOINT.pack(*key))
        return self.found(layout.PEER.unpack(value)) if value else None

    def look_up_call(self, key: Key) -> SipCall | None:
        """The call that signalling names an endpoint in; None: it does not."""
        return self.attached.call_at(layout.ENDPOINT.pack(*key))

    def found(self, values: tuple[Any, ...]) -> PeerEntry | None:
        """The same, of an unpacked struct peer."""
        heard, last_seen, since, told, said, _, said_until, *rest = values
        _, _, _, _, _, by_rtcp, rtcp_at, *_ = rest
        settings = self.attached.record.settings
        timeout = _timeout(settings)
        if not settings.signalling:
            said = bytes(layout.HEARD.size)
        heard, at, until, evidence = peers.known(
            *(heard, last_seen, said, said_until, by_rtcp, rtcp_at),
            now=kernel_ns(),
            timeout=timeout,
            rtcp_timeout=_rtcp_timeout(settings),
        )
        if not heard[layout.HEARD_STATE]:
            return None  # nothing is known of it (yet)
        last_report = None if evidence is Evidence.RTP else at or until
        return PeerEntry(heard, until - timeout, since, evidence, last_report) if told else None

    def unwritten(self) -> int:
        """How many events had no room in the ring since this was asked."""
        before, self.unwritten_before = (
            self.unwritten_before,
            self.attached.counters()["events_unread"],
        )
        return self.unwritten_before - before


def _timeout(settings: Settings) -> int:
    """In ns."""
    return round(settings.timeout * SECOND)


def _rtcp_timeout(settings: Settings) -> int:
    """In ns; 0: RTCP says nothing."""
    return round(settings.rtcp_timeout * SECOND)
