"""The process that reads SIP for `run`, which starts it: what dialogs say goes into the kernel.

A process of its own, because `run` is busy for seconds when it attaches, and because whatever
strangers send is read here. From `run` it gets a line for each attach: then it looks what is
attached, and tells that all it knows; and a question mark now and then, to see whether it lives.
Given ports of SIP as arguments, it hears before anything is attached. What comes by an interface
on neither side is kept for a while: the next attach may be to that.
When there is no more to read, it ends. On its stdout it has a line of JSON, the counts so far, when
they have changed, or when it was asked.
"""

import json
import math
import os
import select
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from moh_ebpf import layout
from moh_ebpf.calls.dialogs import Dialogs
from moh_ebpf.calls.events import SECOND, Key
from moh_ebpf.calls.signalled import Board, Said
from moh_ebpf.calls.transport import Transport
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.capture import Capture, Segment
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.layout import State
from moh_ebpf.maps import MOST_SIGNALLED
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import tell_signalled
from moh_ebpf.registry.record import Role
from moh_ebpf.service.kept import Kept
from moh_ebpf.service.sides import Side, Sides
from moh_ebpf.settings import Settings

# So long the kernel believes what signalling says if nobody renews it, in ns: music outlives a
# crash of ours; a call, whose hold we would not see, not for as long.
_LEASE = {State.MOH: round(600 * SECOND), State.TWO: round(60 * SECOND)}
_RENEW_SECONDS = 20.0
# What is said of an endpoint without media for so long ends: its BYE was missed.
_LONGEST_SILENCE = round(600 * SECOND)
_COUNTS_SECONDS = 1.0
# Packets that are read before anything else gets its turn.
_AT_ONCE = 64
_NOTHING = bytes(layout.HEARD.size)


class Kernel:
    """What is attached: its map `signalled`, and learn's program, by which the kernel is told."""

    def __init__(self, attached: Attached) -> None:
        """Raises OSError; MohError if learn is not attached."""
        learn = [f.program_id for place, f in attached.filters.items() if place.role is Role.LEARN]
        if not learn:
            raise MohError("learn is not attached")
        with ExitStack() as stack:
            self.settings: Settings = attached.record.settings
            self._learn = libbpf.program_fd(learn[0] or 0)
            stack.callback(os.close, self._learn)
            self.maps = attached.maps.copied(stack)
            self.wan, self.lan = attached.record.wan, attached.record.lan
            self._close = stack.pop_all().close

    def close(self) -> None:
        """Let go of maps and program."""
        self._close()

    def put(self, endpoint: Key, said: Said | None, at: int) -> None:
        """This is said of an endpoint since then; None: nothing. Raises OSError."""
        key = layout.ENDPOINT.pack(*endpoint)
        self.maps.put_signalled(key, said and self._packed(key, said, at))
        tell_signalled(self._learn, key)

    def _packed(self, key: bytes, said: Said, at: int) -> bytes | None:
        """A struct signalled; None: nobody knows where its music would come from."""
        address = self._public(key)
        if address is None and said.state is State.MOH:
            return None
        public = address or bytes(4), said.port.to_bytes(2, "big")
        source = said.source or (bytes(4), bytes(2))
        return layout.SIGNALLED.pack(
            layout.HEARD.pack(*public, said.state, layout.NO_WAN),
            layout.ENDPOINT.pack(*source),
            at,
            kernel_ns() + _LEASE[said.state],
            said.dialog,
            *(said.call_id, said.caller, said.called),
        )

    def _public(self, key: bytes) -> bytes | None:
        """The address that the endpoint was told to send to: the only one that there is, or the one
        that it was heard at, or that was told before. None: nobody knows."""
        if len(self.settings.public) == 1:
            return self.settings.public[0].packed
        peer, entry = self._peer(key), self.maps.signalled_at(key)
        words = [peer.get(name, _NOTHING) for name in ("heard", "by_rtcp", "signalled")]
        words += [layout.SIGNALLED.unpack(entry)[0]] if entry else []
        known = {each.packed for each in self.settings.public}
        return next((word[:4] for word in words if word[:4] in known), None)

    def _peer(self, key: bytes) -> dict[str, Any]:
        """Its struct peer by the names of the fields; empty: there is none."""
        value = self.maps.peer(key)
        if value is None:
            return {}
        return layout.by_field(layout.PEER.unpack(value))

    def last_media(self, endpoint: Key) -> int:
        """When the last packet came from it or went there, in ns of CLOCK_MONOTONIC; 0: none."""
        peer, now = self._peer(layout.ENDPOINT.pack(*endpoint)), kernel_ns()
        times = [int(peer.get(name, 0)) for name in ("last_seen", "out_last")]
        # One that was never heard has a time of before the machine's start.
        return max(each if each <= now else 0 for each in times)

    def said(self) -> Iterator[tuple[Key, Said, int]]:
        """What was said before us, since when, and counts still. What does not is removed."""
        now = kernel_ns()
        for endpoint, values in list(self.maps.signalled()):
            heard, source, at, until, dialog, *texts = values
            if until <= now:
                self.maps.put_signalled(layout.ENDPOINT.pack(*endpoint), None)
                continue
            _, port, state, _ = layout.HEARD.unpack(heard)
            call_id, caller, called = (each.rstrip(b"\0") for each in texts)
            known = layout.ENDPOINT.unpack(source) if any(source) else None
            its_port = int.from_bytes(port, "big")
            words = (call_id, caller, called, dialog)
            yield endpoint, Said(State(state), its_port, known, *words), at


class SipReader:
    """All that is known of SIP, and what the kernel is told. `due`: when it has something to do
    without a packet, by time.monotonic()."""

    def __init__(self) -> None:
        self._transport, self._dialogs = Transport(), Dialogs(MOST_SIGNALLED)
        self._ports: tuple[int, ...] = ()  # what the captures are for
        self._board: Board | None = None
        self._kernel: Kernel | None = None
        self.captures: list[Capture] = []  # to wait for, and then `read`
        self._sides = Sides((), (), ())
        self._kept = Kept()
        self._ucm: set[bytes] = set()
        self._trusted = lru_cache(1024)(self._may_speak)
        self.heard = 0  # packets
        # When each endpoint's lease is to be renewed, in this order, and when it was changed last.
        self._renewals: OrderedDict[Key, float] = OrderedDict()
        self._changed: dict[Key, int] = {}

    @property
    def due(self) -> float:
        if self._kernel is None:
            return math.inf  # nobody is to be told
        return next(iter(self._renewals.values()), math.inf)

    def counts(self) -> dict[str, int]:
        """What became of messages (sums.OUTCOMES), and what is known now."""
        for capture in self.captures:
            if lost := capture.lost():
                self._transport.counts["not_captured"] += lost
        now = {"dialogs": len(self._dialogs), "endpoints": len(self._renewals)}
        return dict(sorted((self._transport.counts | now).items()))

    def close(self) -> None:
        """Hear and tell nothing more."""
        for each in self.captures:
            each.close()
        self.captures, self._ports, self._kept = [], (), Kept()
        if self._kernel:
            self._kernel.close()
        self._kernel = None

    def look(self) -> None:
        """What is attached now? Tell it all that is known. Raises MohError, OSError."""
        try:
            with walk.attached_or_error() as attached:
                kernel = Kernel(attached)
        except NotAttachedError:
            self.close()
            return  # detached meanwhile: until the next line
        if self._kernel:
            self._kernel.close()
        self._kernel = kernel
        self._sides = Sides(kernel.wan, kernel.lan, kernel.settings.ucm)
        self._ucm = {each.packed for each in kernel.settings.ucm}
        self._trusted.cache_clear()
        if self._board is None:
            self._dialogs = Dialogs(MOST_SIGNALLED, keeps_numbers=kernel.settings.show_numbers)
            self._board = Board(kernel.settings)
            for endpoint, said, at in kernel.said():
                self._board.adopt(endpoint, said)
                self._changed[endpoint] = at
        self._board.settings = kernel.settings
        self.listen(kernel.settings.sip_ports)
        for segment in self._kept.take():
            if side := self._sides.of(segment.interface):
                self._take(segment, side)
        for endpoint in self._board:
            self._tell(endpoint)

    def listen(self, ports: tuple[int, ...]) -> None:
        """On these ports. Where it listens already, it goes on: what waits there is not lost.
        Raises OSError."""
        if self._ports == ports:
            return
        before, self.captures = self.captures, []
        self.captures.append(Capture(ports))
        self._ports = ports
        for each in before:
            for _ in range(_AT_ONCE):
                for segment, side in self._taken(each, _AT_ONCE):
                    self._take(segment, side)
            each.close()

    def read(self) -> bool:
        """Take some of what there is, in its order; True: something else is to be waited
        for now, because a proxy of UCM's was found on this machine."""
        # With one, to wait again costs less than to ask again, mostly in vain.
        most = _AT_ONCE if len(self.captures) > 1 else 1
        found = [each for capture in self.captures for each in self._taken(capture, most)]
        if len(found) > 1:
            found.sort(key=lambda each: each[0].time)
        needs_more = False
        for segment, side in found:
            self.heard += 1
            needs_more |= self._take(segment, side) and self._is_to_own_proxy(segment)
        return needs_more and self._hear_own_proxy()

    def _take(self, segment: Segment, side: Side) -> bool:
        """Hear it, if it is to be believed at all. Whatever is in it must not end us."""
        if not self._is_trusted(segment, side):
            return False
        try:
            self._hear(segment, side)
        except Exception:
            self._transport.counts["malformed"] += 1
        return True

    def _taken(self, capture: Capture, most: int) -> Iterator[tuple[Segment, Side]]:
        """What waits there, of our sides. Of what leaves, only the LAN's was not heard before. What
        comes by neither is kept."""
        for _ in range(most):
            try:
                segment = capture.read()
            except OSError:  # an interface is down
                return
            if segment is None:
                return
            side = self._sides.of(segment.interface)
            if side and (side is Side.LAN or not capture.is_outgoing):
                yield segment, side
            elif not side and not capture.is_outgoing:
                self._kept.put(segment)

    def _is_to_own_proxy(self, segment: Segment) -> bool:
        """UCM speaks with a proxy on this machine, whose answers leave, and never come in."""
        return segment.source[0] in self._ucm and self._sides.is_own(segment.destination[0])

    def _hear_own_proxy(self) -> bool:
        """Only then: each packet of the LAN has to pass by this capture, and the order of two
        captures takes a time for each packet."""
        if len(self.captures) > 1:
            return False
        self.captures.append(Capture(self._ports, outgoing=True))
        for each in self.captures:
            each.stamp()
        return True

    def act(self) -> None:
        """Renew leases that are due, some at a time. What is said of an endpoint without media ends
        with its lease: a BYE was missed."""
        for _ in range(_AT_ONCE):
            endpoint, due = next(iter(self._renewals.items()), (None, math.inf))
            if endpoint is None or due > time.monotonic() or not self._kernel or not self._board:
                return
            heard = max(self._kernel.last_media(endpoint), self._changed.get(endpoint, 0))
            if kernel_ns() - heard > _LONGEST_SILENCE:
                self._board.forget(endpoint)
            self._tell(endpoint)

    def _is_trusted(self, segment: Segment, side: Side) -> bool:
        """What comes by a WAN from UCM's address is forged, unless UCM's own packets come by it."""
        if side is Side.LAN:
            return True
        if segment.source[0] in self._ucm:
            return not self._sides.has_lan()
        return self._trusted(segment.source[0])

    def _may_speak(self, address: bytes) -> bool:
        assert self._kernel
        networks = self._kernel.settings.sip_from
        return not networks or any(IPv4Address(address) in each for each in networks)

    def _hear(self, segment: Segment, side: Side) -> None:
        assert self._board
        for message in self._transport.messages(segment):
            try:
                changes = self._dialogs.hear(message, from_ucm=self._is_ucm(segment, side))
            except ValueError:
                self._transport.counts["no_description"] += 1
                continue
            for endpoint in {each for change in changes for each in self._board.hear(change)}:
                self._changed[endpoint] = kernel_ns()
                self._tell(endpoint)

    def _is_ucm(self, segment: Segment, side: Side) -> bool:
        """Is it UCM who speaks, or who speaks for it on the LAN?"""
        if segment.source[0] in self._ucm:
            return True
        return side is Side.LAN and segment.destination[0] not in self._ucm

    def _tell(self, endpoint: Key) -> None:
        assert self._board
        said, at = self._board.said(endpoint), self._changed.get(endpoint, 0)
        self._renewals.pop(endpoint, None)
        if said is None and endpoint not in self._board:
            self._changed.pop(endpoint, None)
        else:
            self._renewals[endpoint] = time.monotonic() + _RENEW_SECONDS
        try:
            if self._kernel:
                self._kernel.put(endpoint, said, at)
        except OSError:
            self._transport.counts["not_told"] += 1


def main() -> None:
    """Until stdin ends. Exit status 1 with a line on stderr if SIP cannot be read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with closing(SipReader()) as reader:
        try:
            reader.listen(tuple(map(int, sys.argv[1:])))
            _serve(reader)
        except (MohError, OSError, NetlinkError) as error:
            sys.exit(str(error))


def _serve(reader: SipReader) -> None:
    told, tell_at = 0, math.inf
    stdin = sys.stdin.fileno()
    while True:
        # selectors does the same in more Python, which each message would pay for.
        with select.epoll() as poll:
            for each in (stdin, *(capture.fileno() for capture in reader.captures)):
                poll.register(each, select.EPOLLIN)
            now, is_asked = time.monotonic(), False
            while not is_asked:
                due = min(reader.due, tell_at)
                ready = poll.poll(max(0.0, due - now) if due < math.inf else None)
                now = time.monotonic()
                is_asked = any(fd == stdin for fd, _ in ready)
                if any(fd != stdin for fd, _ in ready) and reader.read():
                    break
                if now >= due:
                    reader.act()
                    if now >= tell_at:
                        print(json.dumps(reader.counts()), flush=True)
                        told, tell_at = reader.heard, math.inf
                if reader.heard != told and tell_at == math.inf:
                    tell_at = now + _COUNTS_SECONDS
        if not is_asked:
            continue
        asked = os.read(stdin, 4096)
        if not asked:
            return
        if b"\n" in asked:
            reader.look()
        tell_at = 0.0  # that it reads


if __name__ == "__main__":
    main()
