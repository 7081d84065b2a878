"""From what the kernel tells to events: changes of state, holds with their music, ends.

That an endpoint is forgotten or evicted is no event of the kernel's: nothing happens then. So those
that are known are looked for, when they may have been forgotten.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from socket import inet_ntoa
from typing import NamedTuple

from moh_ebpf import layout
from moh_ebpf.calls import events
from moh_ebpf.calls.events import SECOND, Event, KernelEvent, Key
from moh_ebpf.calls.peers import GOES_ON_SECONDS, SipCall
from moh_ebpf.layout import Evidence, Kind, State

# Endpoints that may have been forgotten are looked for this often at most, in seconds.
_LOOK_SECONDS = 0.2
# Two records of one change are of two CPUs within a tick of their clock, in ns.
_AT_ONCE = 10_000_000
# Endpoints whose end is followed, at most.
_MOST_KNOWN = 20_000
# RTCP may take over from RTP that expired so lately, in ns.
_GRACE = round(GOES_ON_SECONDS * 1e9)


@dataclass
class _Live:
    """A live endpoint: its state since when, and when it may have been forgotten. Times are ns of
    CLOCK_MONOTONIC."""

    state: State
    heard: bytes
    interface: str
    since: int
    due: int
    evidence: Evidence
    call: SipCall | None = None
    queued: int = 0  # its place among those that are due
    from_map: bool = False  # nothing has been told of it yet


class PeerEntry(NamedTuple):
    """What a peer's entry says, times in ns of CLOCK_MONOTONIC.

    Its struct heard; when RTP would have been seen last that expires when this does; when its state
    began; by what it is known; and when that was heard last, if it was no RTP.
    """

    heard: bytes
    last_seen: int
    since: int
    evidence: Evidence = Evidence.RTP
    last_report: int | None = None


def _entry_of(record: KernelEvent) -> PeerEntry:
    return PeerEntry(record.heard, record.time, record.time, Evidence(record.evidence))


# None: it is not there.
Lookup = Callable[[Key], PeerEntry | None]
LookUpCall = Callable[[Key], SipCall | None]


class Tracker:
    """From records to events. `lookup` asks for a peer, all else is pure. `interfaces` are the
    WANs' names by their index. Before an end is told, `renew` is asked whether peers are to be
    looked up elsewhere by now; if so, it has called `go_on`."""

    def __init__(
        self,
        lookup: Lookup,
        timeout_ns: int,
        interfaces: dict[int, str],
        renew: Callable[[], bool] = lambda: False,
        rtcp_timeout_ns: int = 0,
        look_up_call: LookUpCall = lambda key: None,
    ) -> None:
        self._lookup, self._look_up_call, self.interfaces = lookup, look_up_call, interfaces
        self._timeout, self._rtcp_timeout = timeout_ns, rtcp_timeout_ns
        self._renew, self._is_renewed = renew, False
        self._known: dict[Key, _Live] = {}
        # A heap with one entry for each that is known, or more: what is due may have moved since.
        self._due: list[tuple[int, Key]] = []
        self._looked = 0
        # Holds that wait for their music, in the order in which they began.
        self._waiting: dict[Key, tuple[int, Event]] = {}
        # What CLOCK_MONOTONIC's 0 is in ns of the epoch.
        self.epoch = 0

    @property
    def scheduled(self) -> int:
        """How many looks at endpoints are to come: one for each that is known."""
        return len(self._due)

    def go_on(self, timeout_ns: int, rtcp_timeout_ns: int = 0) -> None:
        """What is known stays; the timeouts are others."""
        self._due = []
        for key, known in self._known.items():
            known.due += timeout_ns - self._timeout
            self._queue(key, known)
        self._timeout, self._rtcp_timeout = timeout_ns, rtcp_timeout_ns

    def know(self, key: Key, found: PeerEntry) -> None:
        """An endpoint that was there before the first record: no event, but its end will be one."""
        if key not in self._known:
            self._remember(key, replace(self._found(key, found), from_map=True))

    def give_up(self) -> Iterator[Event]:
        """Nothing follows any more: the holds that wait for their music."""
        waiting, self._waiting = self._waiting, {}
        for _, hold in waiting.values():
            yield hold._replace(ended_first=True)

    def tell(self, record: KernelEvent) -> Iterator[Event]:
        """The events that follow from a record."""
        if record.kind in (Kind.BLIND, Kind.SEEING):
            yield self._of_a_wan(record)
            return
        key = record.address, record.port
        known = self._known.get(key)
        if known and known.from_map and known.since >= record.time:
            known = None  # the map had it before we came to read of it
        if record.kind == Kind.UNHEARD:
            yield self._unheard(key, record)
        elif record.kind == Kind.MUSIC:
            yield from self._music(key, known, record)
        elif record.kind == Kind.LEARNED:
            yield from self._learned(key, known, record)
        elif record.kind == Kind.UNSIGNALLED:
            yield from self._unsignalled(key, known, record)
        else:
            yield from self._changed(key, known, record)

    def due(self, now: int) -> Iterator[Event]:
        """The events that time brings: holds without music, endpoints forgotten or evicted."""
        if now - self._looked < _LOOK_SECONDS * SECOND:
            return
        self._looked, self._is_renewed = now, False
        for key, (since, _) in list(self._waiting.items()):
            if now - since < events.MUSIC_WITHIN_SECONDS * SECOND:
                break
            yield from self._without_music(key)
        while self._due and self._due[0][0] <= now:
            due, key = heapq.heappop(self._due)
            known = self._known.get(key)
            if known is None or known.queued != due:
                continue  # it has another place since
            if known.due <= now:
                yield from self._look_for(key, known, now)
            else:
                self._queue(key, known)

    def next_due(self, now: int) -> float:
        """Seconds until `due` has something to do, or may have; inf if nobody is known."""
        again = (self._looked - now) / SECOND + _LOOK_SECONDS
        if self._waiting:
            return max(0.0, again)
        if not self._due:
            return math.inf
        return max((self._due[0][0] - now) / SECOND, again, 0.0)

    def _of_a_wan(self, record: KernelEvent) -> Event:
        *_, wan = layout.HEARD.unpack(record.heard)
        return Event(
            time=(record.time + self.epoch) / SECOND,
            event=record.kind_name,
            address=None,
            port=None,
            before=None,
            after=None,
            public_address=None,
            public_port=None,
            interface=self.interfaces.get(wan, "(gone)"),
            lasted=record.lasted / SECOND,
        )

    def _unheard(self, key: Key, record: KernelEvent) -> Event:
        address, port, _, wan = layout.HEARD.unpack(record.heard)
        was_heard = bool(record.before)
        return Event(
            time=(record.time + self.epoch) / SECOND,
            event=record.kind_name,
            address=inet_ntoa(key[0]),
            port=int.from_bytes(key[1], "big"),
            before=State(record.before) if was_heard else None,
            after=None,
            public_address=inet_ntoa(address) if was_heard else None,
            public_port=int.from_bytes(port, "big") if was_heard else None,
            interface=self.interfaces.get(wan, "(gone)"),
            lasted=record.lasted / SECOND,
            dropped_before=record.dropped,
        )

    def _learned(self, key: Key, known: _Live | None, record: KernelEvent) -> Iterator[Event]:
        if known and not record.before:  # nobody has looked for it since
            yield from self._end(key, known, "evicted", record.time, None)
        elif known:
            forgotten = self._forgotten(known, record)
            if forgotten > record.time:
                return  # two CPUs have found it forgotten, and both have told
            yield from self._end(key, known, "expired", forgotten, record.lasted)
        self._known.pop(key, None)
        began = record.time if record.before else record.time - record.lasted
        made = self._found(key, _entry_of(record)._replace(since=began))
        self._remember(key, made)
        yield self._event("new", record.time, key, made, None, made.state)
        if made.state is State.MOH:
            hold = self._event("hold", record.time, key, made, None, made.state)
            self._wait_for_music(key, record.time, hold)

    def _forgotten(self, known: _Live, record: KernelEvent) -> int:
        """When it was. It may be known by RTP again, in the same state, without a record."""
        last = known.since + record.lasted
        by_rtcp = last + self._rtcp_timeout
        is_by_rtcp = known.evidence is Evidence.RTCP and by_rtcp <= record.time
        return by_rtcp if is_by_rtcp else last + self._timeout

    def _changed(self, key: Key, known: _Live | None, record: KernelEvent) -> Iterator[Event]:
        made = self._found(key, _entry_of(record))
        if known and known.state is made.state and record.time - known.since < _AT_ONCE:
            return  # two CPUs have seen it, and both have told
        yield from self._without_music(key, record.time)
        self._remember(key, made)
        name = "hold" if made.state is State.MOH else "resume"
        event = self._event(name, record.time, key, made, State(record.before), made.state)
        event = event._replace(lasted=record.lasted / SECOND)
        if made.state is State.MOH:
            self._wait_for_music(key, record.time, event)
        else:
            yield event

    def _unsignalled(self, key: Key, known: _Live | None, record: KernelEvent) -> Iterator[Event]:
        """What its own packets say, if they do, counts from now on. Nothing takes over later."""
        found = self._lookup(key)
        if known is None:
            return
        if found and found.last_seen + self._timeout > record.time:
            self._remember(key, self._found(key, found))
            return
        del self._known[key]
        yield from self._end(key, known, "expired", record.time, record.lasted)

    def _music(self, key: Key, known: _Live | None, record: KernelEvent) -> Iterator[Event]:
        if key in self._waiting:
            since, hold = self._waiting.pop(key)
            # Too late, whoever read late.
            if record.time - since >= events.MUSIC_WITHIN_SECONDS * SECOND:
                yield hold
                return
        elif known and known.state is State.MOH and not known.from_map:
            return  # told already, as one without music
        else:  # its beginning was missed, or it is one of a flood
            made = self._found(key, _entry_of(record))
            hold = self._event("hold", record.time, key, made, None, State.MOH)
        yield hold._replace(time_to_music=record.lasted / SECOND, dropped_before=record.dropped)

    def _wait_for_music(self, key: Key, since: int, hold: Event) -> None:
        """Of an endpoint that is not followed, the music alone will tell."""
        if key in self._known:
            self._waiting[key] = since, hold

    def _without_music(self, key: Key, ended: float = math.inf) -> Iterator[Event]:
        """`ended` is when the hold did, however late that is read."""
        if key in self._waiting:
            since, hold = self._waiting.pop(key)
            yield hold._replace(ended_first=ended - since < events.MUSIC_WITHIN_SECONDS * SECOND)

    def _found(self, key: Key, found: PeerEntry) -> _Live:
        _, _, state, wan = layout.HEARD.unpack(found.heard)
        interface = "" if wan == layout.NO_WAN else self.interfaces.get(wan, "(gone)")
        due = found.last_seen + self._timeout + _GRACE
        call = self._look_up_call(key)
        return _Live(State(state), found.heard, interface, found.since, due, found.evidence, call)

    def _remember(self, key: Key, known: _Live) -> None:
        """Of a flood of endpoints, the end is not followed."""
        before = self._known.get(key)
        if before is None and len(self._known) >= _MOST_KNOWN:
            return
        self._known[key] = known
        if before is None or known.due < before.queued:
            self._queue(key, known)
        else:
            known.queued = before.queued
        if before and known.call is None:
            known.call = before.call  # signalling has ended it, and its media go on

    def _queue(self, key: Key, known: _Live) -> None:
        known.queued = known.due
        heapq.heappush(self._due, (known.due, key))

    def _look_for(self, key: Key, known: _Live, now: int) -> Iterator[Event]:
        found = self._lookup(key)
        if self._has_ended(found, now) and not self._is_renewed:
            self._is_renewed = True
            if self._renew():
                return  # `go_on` has it due again
        if found is None:
            del self._known[key]
            yield from self._end(key, known, "evicted", now, None)
            return
        # What it was at last, even if that record was missed.
        now_known = self._found(key, found)
        known.heard, known.state = now_known.heard, now_known.state
        known.due, known.evidence = now_known.due, now_known.evidence
        known.call = now_known.call or known.call
        if self._has_ended(found, now):
            del self._known[key]
            last = found.last_seen if found.last_report is None else found.last_report
            lasted = max(0, last - found.since)
            yield from self._end(key, known, "expired", known.due - _GRACE, lasted)
        else:
            self._queue(key, known)

    def _has_ended(self, found: PeerEntry | None, now: int) -> bool:
        return found is None or found.last_seen + self._timeout + _GRACE <= now

    def _end(
        self, key: Key, known: _Live, name: str, at: int, lasted: int | None
    ) -> Iterator[Event]:
        yield from self._without_music(key, at)
        event = self._event(name, at, key, known, known.state, None)
        yield event._replace(lasted=None if lasted is None else lasted / SECOND)

    def _event(
        self, name: str, at: int, key: Key, of: _Live, before: State | None, after: State | None
    ) -> Event:
        address, port, *_ = layout.HEARD.unpack(of.heard)
        return Event(
            (at + self.epoch) / SECOND,
            name,
            inet_ntoa(key[0]),
            int.from_bytes(key[1], "big"),
            before,
            after,
            inet_ntoa(address),
            int.from_bytes(port, "big"),
            of.interface,
            identified=of.evidence,
            call=of.call,
        )
