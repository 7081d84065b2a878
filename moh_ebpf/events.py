"""What happened: changes of state as the programs tell them, for any number of readers.

The kernel's ring buffer has one consumer's position, but any process may map its pages. Each reader
here keeps a position of its own, and moves the kernel's half a ring behind what was written last:
there is room for what comes, whoever reads, and the last events stay for a reader that comes later.
A reader that falls behind by more than the ring learns how many events it has missed, for all
records are of one size; while nobody makes room, the kernel counts those that it could not write.
(kernel: Documentation/bpf/ringbuf.rst)

That an endpoint is forgotten or evicted is no event of the kernel's: nothing happens then. The
reader looks for those that it knows of, when they may have been forgotten.
"""

import heapq
import math
import mmap
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from socket import inet_ntoa
from typing import Any, NamedTuple

from moh_ebpf import layout, libbpf, peers, registry
from moh_ebpf.clock import kernel_ns
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.layout import Evidence, Kind, State
from moh_ebpf.registry import Attached
from moh_ebpf.settings import Settings

_HEADER = 8  # bytes before each record: its length, and which page it is in
_RECORD = _HEADER + layout.EVENT.size
_BUSY = 1 << 31  # in the length: not written yet
_SECOND = 1e9  # ns

# How long a hold waits for its music, so that its event can tell when it came.
MUSIC_WITHIN_SECONDS = 1.0
# Endpoints that may have been forgotten are looked for this often at most, in seconds.
_LOOK_SECONDS = 0.2
# Two records of one change are of two CPUs within a tick of their clock, in ns.
_AT_ONCE = 10_000_000
# Endpoints whose end is followed, at most.
_MOST_KNOWN = 20_000
# RTCP may take over from RTP that expired so lately, in ns.
_GRACE = round(peers.GOES_ON_SECONDS * 1e9)
# Is it still attached, and are these its maps? In seconds.
_CHECK_SECONDS = 1.0

Key = tuple[bytes, bytes]  # struct endpoint: address and port, network byte order


class Record(NamedTuple):
    """A struct event, unpacked; times are ns of CLOCK_MONOTONIC."""

    time: int
    heard: bytes
    lasted: int
    dropped: int
    address: bytes
    port: bytes
    kind: int
    before: int
    evidence: int = Evidence.RTP

    @property
    def kind_name(self) -> str:
        return Kind(self.kind).name.lower()


class Event(NamedTuple):
    """What happened to an endpoint; `time` in seconds of the epoch, times that lasted in seconds.

    `event` is new, hold, resume, expired, evicted or unheard; or, of a WAN, blind or seeing: then
    there is no endpoint, and `lasted` is how long learn had been silent there. `before` and `after`
    are states, None: not known. `lasted` is how long the state before did. On a hold,
    `time_to_music` is the time from UCM's first packet that was dropped to the first one that was
    sent on, 0 if none was dropped, and `dropped_before` counts them; both are None if no music came
    within a second, or none before the hold `ended_first`. Unheard is an endpoint that UCM has sent
    to for the whole of the patience, which `lasted`; UCM's RTP to it passes from then on.
    `identified` says by what an endpoint is known, or was; None: it is not.
    """

    time: float
    event: str
    address: str | None
    port: int | None
    before: State | None
    after: State | None
    public_address: str | None
    public_port: int | None
    interface: str
    lasted: float | None = None
    time_to_music: float | None = None
    dropped_before: int | None = None
    ended_first: bool = False
    identified: Evidence | None = None

    def to_json(self) -> dict[str, Any]:
        """A line of `events --json`."""
        shown: dict[str, Any] = {
            "time": round(self.time, 6),
            "event": self.event,
            "address": self.address,
            "port": self.port,
            "from": _name(self.before),
            "to": _name(self.after),
            "public_address": self.public_address,
            "public_port": self.public_port,
            "interface": self.interface,
            "lasted": _rounded(self.lasted),
            "identified": self.identified.name.lower() if self.identified else None,
        }
        if self.event == "hold":
            shown["time_to_music"] = _rounded(self.time_to_music)
        if self.event in ("hold", "unheard"):
            shown["dropped_before"] = self.dropped_before
        return shown

    def __str__(self) -> str:
        """A line of `events`, without its time."""
        if self.event in _OF_A_WAN:
            return f"{self.event:<7} {self.interface}  {_OF_A_WAN[self.event].format(self.lasted)}"
        end = f"{self.event:<7} {self.address}:{self.port}"
        if self.after:
            by = " by RTCP" if self.identified is Evidence.RTCP else ""
            end += f"  {self.after.name} at {self.public_address}:{self.public_port}{by}"
        if self.before and self.lasted is not None and self.event != "unheard":
            end += f"  after {self.lasted:.1f} s of {self.before.name}"
        if self.event == "unheard":
            return (
                f"{end}  NOT HEARD in {self.lasted:.1f} s, {self.dropped_before} dropped; "
                "UCM's RTP to it passes now"
            )
        if self.event != "hold":
            return end
        if self.ended_first:
            return f"{end}  no music before it ended"
        if self.time_to_music is None:
            return f"{end}  NO MUSIC within {MUSIC_WITHIN_SECONDS:g} s"
        return f"{end}  music in {self.time_to_music * 1e3:.0f} ms, {self.dropped_before} dropped"


# Events of a WAN, in words, with how long learn was silent.
_OF_A_WAN = {
    "blind": "LEARN SEES NOTHING for {:.1f} s, UCM's RTP passes as without moh_ebpf",
    "seeing": "learn sees packets again, after {:.1f} s",
}


@dataclass(frozen=True)
class Lost:
    """So many records of the ring were overwritten before this reader came to read them."""

    time: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """A line of `events --json`."""
        return {"time": round(self.time, 6), "event": "lost", "count": self.count}

    def __str__(self) -> str:
        return f"lost    {self.count} events came faster than they were read"


def _name(state: State | None) -> str | None:
    return state.name.lower() if state else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def line(event: Event | Lost) -> str:
    """With the local time, as `events` prints it."""
    at = datetime.fromtimestamp(event.time).astimezone()
    return f"{at.isoformat(sep=' ', timespec='milliseconds')[:23]}  {event}"


class Ring:
    """A ring buffer's records: from now on; with `history`, from the oldest that is there; or
    `since` a position that another reader of it has left `at`."""

    def __init__(
        self, ring: libbpf.Map, *, history: bool = False, since: int | None = None
    ) -> None:
        page = mmap.PAGESIZE
        self._size = ring.max_entries
        with ExitStack() as stack:
            # Of these pages, the first alone may be written to: the consumer's position.
            self._consumer = stack.enter_context(
                mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            )
            # The producer's position, then the ring, twice, so that no record has to be cut.
            self._data = stack.enter_context(
                mmap.mmap(
                    ring.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
                )
            )
            self._poll = stack.enter_context(select.epoll())
            self._poll.register(ring.fd, select.EPOLLIN | select.EPOLLET)
            self._close = stack.pop_all().close
        # It is full where nobody has made room since; then the kernel has told of what it could not
        # write.
        self.was_full = self._written() - self._consumed() > self._size - 2 * _RECORD
        self.at = self._consumed() if history else self._written()
        if since is not None:
            self.at = since
        self._more = False
        # After a read there is room for so many records at least: half a ring, cut to whole ones.
        self.room = self._size // 2 // _RECORD - 1
        self._make_room()

    def close(self) -> None:
        """Let go of the pages."""
        self._close()

    def fileno(self) -> int:
        """To wait for: readable when there may be new records. `wait` makes it quiet again."""
        return self._poll.fileno()

    @property
    def more(self) -> bool:
        """The last read has left records: it does not wait for them to end."""
        return self._more

    def wait(self, seconds: float) -> None:
        """Until there may be new records, or the time is over."""
        self._poll.poll(0.0 if self._more else max(0.0, seconds))

    def read(self) -> tuple[list[Record], int]:
        """New records, a ring full of them at most, and how many were missed."""
        records, missed = [], 0
        self._more = True
        for _ in range(self._size // _RECORD):
            ahead = self._written() - self.at
            if ahead <= 0:
                self._more = False
                break
            if ahead > self._size:
                skipped = (ahead - self._size // 2) // _RECORD
                self.at += skipped * _RECORD
                missed += skipped
                continue
            begin = mmap.PAGESIZE + self.at % self._size
            length = int.from_bytes(self._data[begin : begin + 4], "little")
            record = self._data[begin + _HEADER : begin + _RECORD]
            if self._written() - self.at > self._size:
                continue  # overwritten meanwhile, perhaps
            if length & _BUSY:
                self._more = False  # its writer will wake us
                break
            records.append(Record._make(layout.EVENT.unpack(record)))
            self.at += _RECORD
        self._make_room()
        return records, missed

    def _written(self) -> int:
        return int.from_bytes(self._data[:8], "little")

    def _consumed(self) -> int:
        return int.from_bytes(self._consumer[:8], "little")

    def _make_room(self) -> None:
        """Another reader may be ahead of us: then it has. One that was while we wrote is put back
        by that; so look again."""
        while (behind := self._half_behind()) > self._consumed():
            self._consumer[:8] = behind.to_bytes(8, "little")

    def _half_behind(self) -> int:
        return (self._written() - self._size // 2) // _RECORD * _RECORD


@dataclass
class _Known:
    """A live endpoint: its state since when, and when it may have been forgotten. Times are ns of
    CLOCK_MONOTONIC."""

    state: State
    heard: bytes
    interface: str
    since: int
    due: int
    evidence: Evidence
    from_map: bool = False  # nothing has been told of it yet


class Found(NamedTuple):
    """What a peer's entry says, times in ns of CLOCK_MONOTONIC.

    Its struct heard; when RTP would have been seen last that expires when this does; when its state
    began; by what it is known; and when that was heard last, if it was no RTP.
    """

    heard: bytes
    last_seen: int
    since: int
    evidence: Evidence = Evidence.RTP
    last_report: int | None = None


def _found_in(record: Record) -> Found:
    return Found(record.heard, record.time, record.time, Evidence(record.evidence))


# None: it is not there.
Lookup = Callable[[Key], Found | None]


class Story:
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
    ) -> None:
        self._lookup, self.interfaces = lookup, interfaces
        self._timeout, self._rtcp_timeout = timeout_ns, rtcp_timeout_ns
        self._renew, self._is_renewed = renew, False
        self._known: dict[Key, _Known] = {}
        # A heap with one entry for each that is known; what is due may have moved on since.
        self._due: list[tuple[int, Key]] = []
        self._looked = 0
        # Holds that wait for their music, in the order in which they began.
        self._waiting: dict[Key, tuple[int, Event]] = {}
        # What CLOCK_MONOTONIC's 0 is in ns of the epoch.
        self.epoch = 0

    def go_on(self, timeout_ns: int, rtcp_timeout_ns: int = 0) -> None:
        """What is known stays; the timeouts are others."""
        for known in self._known.values():
            known.due += timeout_ns - self._timeout
        self._due = [(known.due, key) for key, known in self._known.items()]
        heapq.heapify(self._due)
        self._timeout, self._rtcp_timeout = timeout_ns, rtcp_timeout_ns

    def know(self, key: Key, found: Found) -> None:
        """An endpoint that was there before the first record: no event, but its end will be one."""
        if key not in self._known:
            self._remember(key, replace(self._found(found), from_map=True))

    def give_up(self) -> Iterator[Event]:
        """Nothing follows any more: the holds that wait for their music."""
        waiting, self._waiting = self._waiting, {}
        for _, hold in waiting.values():
            yield hold._replace(ended_first=True)

    def tell(self, record: Record) -> Iterator[Event]:
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
        else:
            yield from self._changed(key, known, record)

    def due(self, now: int) -> Iterator[Event]:
        """The events that time brings: holds without music, endpoints forgotten or evicted."""
        if now - self._looked < _LOOK_SECONDS * _SECOND:
            return
        self._looked, self._is_renewed = now, False
        for key, (since, _) in list(self._waiting.items()):
            if now - since < MUSIC_WITHIN_SECONDS * _SECOND:
                break
            yield from self._without_music(key)
        while self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            known = self._known[key]
            if known.due <= now:
                yield from self._look_for(key, known, now)
            else:
                heapq.heappush(self._due, (known.due, key))

    def next_due(self, now: int) -> float:
        """Seconds until `due` has something to do, or may have; inf if nobody is known."""
        again = (self._looked - now) / _SECOND + _LOOK_SECONDS
        if self._waiting:
            return max(0.0, again)
        if not self._due:
            return math.inf
        return max((self._due[0][0] - now) / _SECOND, again, 0.0)

    def _of_a_wan(self, record: Record) -> Event:
        *_, wan = layout.HEARD.unpack(record.heard)
        return Event(
            time=(record.time + self.epoch) / _SECOND,
            event=record.kind_name,
            address=None,
            port=None,
            before=None,
            after=None,
            public_address=None,
            public_port=None,
            interface=self.interfaces.get(wan, "(gone)"),
            lasted=record.lasted / _SECOND,
        )

    def _unheard(self, key: Key, record: Record) -> Event:
        address, port, _, wan = layout.HEARD.unpack(record.heard)
        was_heard = bool(record.before)
        return Event(
            time=(record.time + self.epoch) / _SECOND,
            event=record.kind_name,
            address=inet_ntoa(key[0]),
            port=int.from_bytes(key[1], "big"),
            before=State(record.before) if was_heard else None,
            after=None,
            public_address=inet_ntoa(address) if was_heard else None,
            public_port=int.from_bytes(port, "big") if was_heard else None,
            interface=self.interfaces.get(wan, "(gone)"),
            lasted=record.lasted / _SECOND,
            dropped_before=record.dropped,
        )

    def _learned(self, key: Key, known: _Known | None, record: Record) -> Iterator[Event]:
        if known and not record.before:  # nobody has looked for it since
            yield from self._end(key, known, "evicted", record.time, None)
        elif known:
            forgotten = self._forgotten(known, record)
            if forgotten > record.time:
                return  # two CPUs have found it forgotten, and both have told
            yield from self._end(key, known, "expired", forgotten, record.lasted)
        began = record.time if record.before else record.time - record.lasted
        made = self._found(_found_in(record)._replace(since=began))
        self._remember(key, made)
        yield self._event("new", record.time, key, made, None, made.state)
        if made.state is State.MOH:
            hold = self._event("hold", record.time, key, made, None, made.state)
            self._wait_for_music(key, record.time, hold)

    def _forgotten(self, known: _Known, record: Record) -> int:
        """When it was. It may be known by RTP again, in the same state, without a record."""
        last = known.since + record.lasted
        by_rtcp = last + self._rtcp_timeout
        is_by_rtcp = known.evidence is Evidence.RTCP and by_rtcp <= record.time
        return by_rtcp if is_by_rtcp else last + self._timeout

    def _changed(self, key: Key, known: _Known | None, record: Record) -> Iterator[Event]:
        made = self._found(_found_in(record))
        if known and known.state is made.state and record.time - known.since < _AT_ONCE:
            return  # two CPUs have seen it, and both have told
        yield from self._without_music(key, record.time)
        self._remember(key, made)
        name = "hold" if made.state is State.MOH else "resume"
        event = self._event(name, record.time, key, made, State(record.before), made.state)
        event = event._replace(lasted=record.lasted / _SECOND)
        if made.state is State.MOH:
            self._wait_for_music(key, record.time, event)
        else:
            yield event

    def _music(self, key: Key, known: _Known | None, record: Record) -> Iterator[Event]:
        if key in self._waiting:
            since, hold = self._waiting.pop(key)
            if record.time - since >= MUSIC_WITHIN_SECONDS * _SECOND:  # too late, whoever read late
                yield hold
                return
        elif known and known.state is State.MOH and not known.from_map:
            return  # told already, as one without music
        else:  # its beginning was missed, or it is one of a flood
            made = self._found(_found_in(record))
            hold = self._event("hold", record.time, key, made, None, State.MOH)
        yield hold._replace(time_to_music=record.lasted / _SECOND, dropped_before=record.dropped)

    def _wait_for_music(self, key: Key, since: int, hold: Event) -> None:
        """Of an endpoint that is not followed, the music alone will tell."""
        if key in self._known:
            self._waiting[key] = since, hold

    def _without_music(self, key: Key, ended: float = math.inf) -> Iterator[Event]:
        """`ended` is when the hold did, however late that is read."""
        if key in self._waiting:
            since, hold = self._waiting.pop(key)
            yield hold._replace(ended_first=ended - since < MUSIC_WITHIN_SECONDS * _SECOND)

    def _found(self, found: Found) -> _Known:
        _, _, state, wan = layout.HEARD.unpack(found.heard)
        interface = self.interfaces.get(wan, "(gone)")
        due = found.last_seen + self._timeout + _GRACE
        return _Known(State(state), found.heard, interface, found.since, due, found.evidence)

    def _remember(self, key: Key, known: _Known) -> None:
        """Of a flood of endpoints, the end is not followed."""
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                return
            heapq.heappush(self._due, (known.due, key))
        self._known[key] = known

    def _look_for(self, key: Key, known: _Known, now: int) -> Iterator[Event]:
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
        now_known = self._found(found)
        known.heard, known.state = now_known.heard, now_known.state
        known.due, known.evidence = now_known.due, now_known.evidence
        if self._has_ended(found, now):
            del self._known[key]
            last = found.last_seen if found.last_report is None else found.last_report
            lasted = max(0, last - found.since)
            yield from self._end(key, known, "expired", known.due - _GRACE, lasted)
        else:
            heapq.heappush(self._due, (known.due, key))

    def _has_ended(self, found: Found | None, now: int) -> bool:
        return found is None or found.last_seen + self._timeout + _GRACE <= now

    def _end(
        self, key: Key, known: _Known, name: str, at: int, lasted: int | None
    ) -> Iterator[Event]:
        yield from self._without_music(key, at)
        event = self._event(name, at, key, known, known.state, None)
        yield event._replace(lasted=None if lasted is None else lasted / _SECOND)

    def _event(
        self, name: str, at: int, key: Key, of: _Known, before: State | None, after: State | None
    ) -> Event:
        address, port, *_ = layout.HEARD.unpack(of.heard)
        return Event(
            (at + self.epoch) / _SECOND,
            name,
            inet_ntoa(key[0]),
            int.from_bytes(key[1], "big"),
            before,
            after,
            inet_ntoa(address),
            int.from_bytes(port, "big"),
            of.interface,
            identified=of.evidence,
        )


class Reader:
    """The events of what is attached, from now on or, with `history`, with those that the ring has
    kept. It goes on over a replacement, and over a detach and attach that it does not notice.

    `after` is where another reader has `left` the events: of the same ring, none is read twice.

    Raises NotAttachedError where nothing is attached, now or when a read finds so: it looks each
    second, or, without `checks`, when told to by `expect_change`. Raises OSError.
    """

    _ring: Ring
    _maps: "_Maps"
    _story: Story
    _joins: bool  # whom the map has, besides those of the ring, is to be looked up
    _attached: "_Identity"

    def __init__(
        self, *, history: bool = False, checks: bool = True, after: "Left | None" = None
    ) -> None:
        self._close: Callable[[], None] = lambda: None
        self._checks = checks
        with registry.attached_or_error() as attached:
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
        return min(self._story.next_due(kernel_ns()), to_check)

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
                events += [*self._told(), *self._story.give_up()]
                if not events:
                    raise
                return events  # what has happened comes first
            except (MohError, OSError):
                if not events:
                    raise
                return events
        events += self._story.due(kernel_ns())
        return events

    def _told(self) -> list[Event | Lost]:
        # Whoever is held up between the two clocks has too little: the most is the best.
        self._story.epoch = max(time.time_ns() - kernel_ns() for _ in range(3))
        records, missed = self._ring.read()
        if records:  # an interface may have been renamed
            self._story.interfaces = self._maps.attached.wan_names()
        events: list[Event | Lost] = [Lost(time.time(), missed)] if missed else []
        for record in records:
            events += self._story.tell(record)
        if len(records) >= self._ring.room and (unwritten := self._maps.unwritten()):
            events.append(Lost(time.time(), unwritten))
        if self._joins and not self._ring.more:
            self._joins = False
            self._know_all()
        return events

    def _open(self, attached: Attached, history: bool, after: "Left | None" = None) -> None:
        if "events" not in attached.maps:
            raise MohError(
                "the attached programs tell of no events; `moh-ebpf attach` replaces them"
            )
        with ExitStack() as stack:
            same = after is not None and after.ring == attached.maps["events"].id
            since = after.at if after and same else None
            ring = Ring(attached.maps["events"], history=history, since=since)
            stack.callback(ring.close)
            maps = stack.enter_context(_Maps(attached))
            if history and ring.was_full:  # nobody has told of those that had no room
                maps.unwritten_before = 0
            settings, names = attached.record.settings, attached.wan_names()
            story = Story(
                *(maps.look_up, _timeout(settings), names, self._renew, _rtcp_timeout(settings))
            )
            before, self._close = self._close, stack.pop_all().close
        before()
        self._ring, self._maps, self._story, self._joins = ring, maps, story, True
        self._attached = _Identity.of(attached)

    def _plan_check(self) -> None:
        self._check_at = time.monotonic() + _CHECK_SECONDS if self._checks else math.inf

    def _know_all(self) -> None:
        now, timeout = kernel_ns(), _timeout(self._maps.attached.record.settings)
        for key, values in self._maps.attached.peers():
            found = self._maps.found(values)
            if found and now - found.last_seen < timeout:
                self._story.know(key, found)

    def _check(self, events: list[Event | Lost]) -> None:
        """Is it attached still, with these maps? Else go on with the new ones; what the old ones
        had to the last is added to `events`. Until that has worked, it is to be done."""
        self.expect_change()
        try:
            with registry.attached_or_error() as attached:
                if _Identity.of(attached).ring == self._attached.ring:
                    self._go_on_with(attached)
                else:
                    events += [*self._told(), *self._story.give_up()]
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
        self._story.go_on(_timeout(settings), _rtcp_timeout(settings))
        self._attached = now
        return True

    def _renew(self) -> bool:
        """Before an end is told: was what is attached replaced since the last check? At other times
        than a check's, an error is for the next one."""
        try:
            with registry.attached_or_error() as attached:
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
        ring = maps["events"].id if "events" in maps else -1
        return cls(ring, maps["peers"].id, record.settings.timeout, record.wan)


class _Maps:
    """The maps of peers and of counters, for a look at one of each."""

    def __init__(self, attached: Attached) -> None:
        self._close: Callable[[], None] = lambda: None
        self.replace(attached)

    def __enter__(self) -> "_Maps":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def replace(self, attached: Attached) -> None:
        """From now on, those of what is attached."""
        self._close()
        with ExitStack() as stack:
            maps = {
                name: replace(attached.maps[name], fd=_copied(attached.maps[name].fd, stack))
                for name in ("peers", "counters")
            }
            self.attached = replace(attached, maps=maps)
            self._close = stack.pop_all().close
        self.unwritten_before = self.attached.counters()["events_unread"]

    def look_up(self, key: Key) -> Found | None:
        """What a peer's entry says; None: it is not there, or nobody was told of it."""
        with suppress(FileNotFoundError):
            value = libbpf.lookup(self.attached.maps["peers"], layout.ENDPOINT.pack(*key))
            return self.found(layout.PEER.unpack(value))
        return None

    def found(self, values: tuple[Any, ...]) -> Found | None:
        """The same, of an unpacked struct peer."""
        heard, last_seen, since, told, _, _, _, by_rtcp, rtcp_at, *_ = values
        settings = self.attached.record.settings
        timeout = _timeout(settings)
        heard, until, evidence = peers.known(
            *(heard, last_seen, by_rtcp, rtcp_at),
            now=kernel_ns(),
            timeout=timeout,
            rtcp_timeout=_rtcp_timeout(settings),
        )
        last_report = rtcp_at if evidence is Evidence.RTCP else None
        return Found(heard, until - timeout, since, evidence, last_report) if told else None

    def unwritten(self) -> int:
        """How many events had no room in the ring since this was asked."""
        before, self.unwritten_before = (
            self.unwritten_before,
            self.attached.counters()["events_unread"],
        )
        return self.unwritten_before - before


def _copied(fd: int, stack: ExitStack) -> int:
    """One that stays open as long as the stack."""
    copy = os.dup(fd)
    stack.callback(os.close, copy)
    return copy


def _timeout(settings: Settings) -> int:
    """In ns."""
    return round(settings.timeout * _SECOND)


def _rtcp_timeout(settings: Settings) -> int:
    """In ns; 0: RTCP says nothing."""
    return round(settings.rtcp_timeout * _SECOND)


def follow(
    shown: Callable[[Event | Lost], str], seconds: float = math.inf, *, history: bool = False
) -> None:
    """Print each event as a line until Ctrl-C, for so many seconds, or until nobody reads them.

    With `history`, what the ring has kept comes first, however short the time. Raises
    NotAttachedError, also when what is followed is detached.
    """
    try:
        with Reader(history=history) as reader:
            left, end = seconds, time.monotonic() + seconds
            while True:
                for event in reader.read(max(0.0, left)):
                    print(shown(event))
                sys.stdout.flush()
                if (left := end - time.monotonic()) <= 0:
                    return
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer would fail again, noisily, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
