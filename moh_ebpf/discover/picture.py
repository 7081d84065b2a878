"""Who is who on a firewall: UCM and the provider, LAN and WAN, by what was seen. Pure.

A provider's endpoint has one address on both sides of a NAT. So RTP to it comes in by the LAN, and
RTP from it by the WAN. Whatever is nobody's own and is reached by the default route is outside, and
so is any global address; UCM is who speaks with it from inside.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address

from moh_ebpf.calls.dialogs import Dialogs, Key, SessionChange
from moh_ebpf.calls.sdp import audio
from moh_ebpf.calls.signalled import is_global
from moh_ebpf.calls.sip import Message
from moh_ebpf.calls.transport import Transport
from moh_ebpf.discover.seen import Captured, End, Flow, Sighting, Surroundings, Traffic
from moh_ebpf.settings import DEFAULTS

# UCM's mark of hold music and announcements, since 8.5; and who it says that it is.
_MUSIC_MARK = b"a=x-cisco-media:umoh"
_PHANTOM_PORTS = range(DEFAULTS["port"], DEFAULTS["port"] + 6)
_MOST_DIALOGS = 20_000


@dataclass(frozen=True)
class Told:
    """A message of SIP, and the packet that it came in."""

    heard: Captured
    message: Message


@dataclass(frozen=True)
class Described:
    """UCM's description of a hold: the address and port of its music, that are phantoms, and the
    interface that it came in by."""

    end: End
    is_marked: bool
    interface: int


@dataclass(frozen=True)
class Hold:
    """By SIP: of which endpoint, from when to when, in seconds since the beginning. `is_over`: the
    call went on."""

    endpoint: End
    begin: float
    end: float
    is_over: bool


class Picture:
    """From all that was seen."""

    def __init__(self, seen: Sighting) -> None:
        self.seen, self.host = seen, seen.host
        self.flows = _once(seen.flows, seen.host)
        self._indexes = {name: index for index, name in seen.host.names.items()}

    @cached_property
    def streams(self) -> list[Flow]:
        """RTP that is some, and not only looks so."""
        return [each for each in self.flows if each.is_stream]

    # Who is outside.

    def is_own(self, address: IPv4Address) -> bool:
        return address in self.host.own

    def is_outside(self, address: IPv4Address) -> bool:
        """Is it the provider's, or whose? With a trunk of private addresses that is no default
        route, nobody looks so; then it is who is not where UCM is."""
        if self._looks_outside(address):
            return True
        way = self.host.ways.get(address)
        return (
            bool(self._described_by)
            and not self._somebody_looks_outside
            and not self.is_own(address)
            and way is not None
            and way not in self._described_by
        )

    def _looks_outside(self, address: IPv4Address) -> bool:
        by_route = self._is_outside_by_route(address)
        return by_route and self.host.ways.get(address) not in self._described_by

    def _is_outside_by_route(self, address: IPv4Address) -> bool:
        if self.is_own(address) or address in self._translated:
            return False
        way, is_direct = self.host.ways.get(address), address in self.host.direct
        is_by_default = way is not None and way == self.host.default
        if is_global(address):
            return is_by_default or not is_direct
        return is_by_default and not is_direct

    def _is_by_route(self, address: IPv4Address, interface: int) -> bool:
        """Did a packet come in by the interface that leads back to its source? Else it is forged,
        for all that we know."""
        way = self.host.ways.get(address)
        return way is not None and interface in (way, self.host.again.get(way))

    @cached_property
    def _translated(self) -> set[IPv4Address]:
        """No address of an interface, and this machine's all the same: packets to it come in by the
        very way that leads there, so they are not forwarded as they are; and nothing ever comes
        from it."""
        incoming = [each for each in self.streams if not each.is_outgoing]
        speak = {each.source.address for each in incoming}
        return {
            each.destination.address
            for each in incoming
            if self.host.ways.get(each.destination.address) == each.interface
        } - speak

    @cached_property
    def _somebody_looks_outside(self) -> bool:
        ends = [end for each in self.flows for end in (each.source, each.destination)]
        return any(self._looks_outside(each) for each in {end.address for end in ends})

    @cached_property
    def to_provider(self) -> list[Flow]:
        """RTP that comes in from inside, for outside."""
        return [
            each
            for each in self.streams
            if not each.is_outgoing
            and self.is_outside(each.destination.address)
            and not self.is_outside(each.source.address)
            and self._is_by_route(each.source.address, each.interface)
        ]

    @cached_property
    def from_provider(self) -> list[Flow]:
        """RTP that comes in from outside."""
        return [
            each
            for each in self.streams
            if not each.is_outgoing
            and self.is_outside(each.source.address)
            and not self.is_outside(each.destination.address)
        ]

    @cached_property
    def from_here(self) -> list[Flow]:
        """RTP of this machine's own, for whom nothing from inside came in: UCM is on it."""
        forwarded = {each.destination for each in self.to_provider}
        return [
            each
            for each in self.streams
            if each.is_outgoing
            and self.is_own(each.source.address)
            and self.is_outside(each.destination.address)
            and each.destination not in forwarded
        ]

    # SIP, which names UCM and its music.

    @cached_property
    def told(self) -> list[Told]:
        """All messages, in their order, as each was first seen."""
        found, transport = [], Transport()
        for heard in sorted(self.seen.heard, key=lambda each: each.time):
            if self._interface_of(heard) in self.host.again:
                continue
            found += [Told(heard, each) for each in transport.messages(heard.segment)]
        return found

    @cached_property
    def described(self) -> list[Described]:
        """UCM's holds, by their descriptions as they came in. Behind a provider, there may be
        another UCM."""
        found = []
        for each in self.told:
            sdp, source = each.message.sdp, IPv4Address(each.heard.segment.source[0])
            if sdp is None or each.heard.is_outgoing or self._is_outside_by_route(source):
                continue
            if not self._is_by_route(source, self._interface_of(each.heard)):
                continue
            is_marked = _MUSIC_MARK in sdp.lower()
            for place in _places(sdp):
                if place.port in _PHANTOM_PORTS or is_marked:
                    interface = self._interface_of(each.heard)
                    found.append(Described(place, is_marked, interface))
        return found

    @cached_property
    def _described_by(self) -> set[int]:
        return {each.interface for each in self.described}

    def _interface_of(self, heard: Captured) -> int:
        return self._indexes.get(heard.segment.interface, 0)

    # What follows from it.

    @cached_property
    def phantom_port(self) -> int:
        """The first phantom port: UCM's own word, or Cisco's default."""
        ports = Counter(each.end.port for each in self.described)
        return ports.most_common(1)[0][0] if ports else int(DEFAULTS["port"])

    @cached_property
    def held(self) -> list[Flow]:
        """RTP from the provider to the phantom port: it is on hold."""
        return [each for each in self.from_provider if each.destination.port == self.phantom_port]

    @cached_property
    def music(self) -> list[Flow]:
        """RTP from inside that begins with a hold: to endpoints that send to the phantom port
        meanwhile, or that SIP names."""
        times = [(each.source, each.first, each.last) for each in self.held]
        told = [(each.endpoint, each.begin, each.end) for each in self.holds]
        return [
            each
            for each in self.to_provider
            if any(
                each.destination == end and each.last >= begin and over >= each.first
                for end, begin, over in times
            )
            or any(
                each.destination == end and begin <= each.first <= over for end, begin, over in told
            )
        ]

    @cached_property
    def lans(self) -> list[int]:
        """By which UCM's packets come in: ifindexes, the busiest first. None where that is the
        WAN."""
        return [each for each in self._from_inside if each not in self.wans]

    @cached_property
    def wans(self) -> list[int]:
        """By which the provider's packets come in; else by which the routes lead to it."""
        found = Counter(each.interface for each in self.from_provider)
        if not found:
            ways = [self.host.ways.get(each.address) for each in self.provider_ends]
            found.update(each for each in ways if each is not None)
        by_count = [index for index, _ in found.most_common()]
        return [each for each in by_count if each not in self._from_inside] or by_count

    @cached_property
    def _from_inside(self) -> list[int]:
        found = Counter(each.interface for each in self.to_provider)
        found.update(self._described_by)
        return [index for index, _ in found.most_common()]

    @cached_property
    def provider_ends(self) -> list[End]:
        """The provider's endpoints, heard or sent to."""
        ends = [each.source for each in self.from_provider]
        ends += [each.destination for each in self.to_provider + self.from_here]
        return list(dict.fromkeys(ends))

    @cached_property
    def sip_of_provider(self) -> list[IPv4Address]:
        """Who speaks SIP from outside."""
        return sorted(
            {
                each.source.address
                for each in self.flows
                if each.traffic is Traffic.SIP
                and not each.is_outgoing
                and self.is_outside(each.source.address)
            }
        )

    @cached_property
    def holds(self) -> list[Hold]:
        """Those that SIP tells of."""
        running: dict[Key, tuple[End, float]] = {}
        found = []
        for time, (key, session, _) in self._changes():
            is_hold = session is not None and session.ucm.port == self.phantom_port
            before = running.get(key)
            if before and not is_hold:
                del running[key]
                found.append(Hold(*before, time, session is not None))
            if session and is_hold and not before and session.provider.address:
                end = End(session.provider.address, session.provider.port)
                running[key] = end, time
        return found + [Hold(*before, self.seen.seconds, False) for before in running.values()]

    def _changes(self) -> Iterator[tuple[float, SessionChange]]:
        """What the dialogs agree on, and when, in seconds since the beginning."""
        known = {each.source.address.packed for each in self.to_provider + self.from_here}
        dialogs = Dialogs(_MOST_DIALOGS)
        for each in self.told:
            from_ucm = self._is_from_ucm(each.heard, known)
            if from_ucm is None:
                continue
            try:
                changes = dialogs.hear(each.message, from_ucm=from_ucm)
            except ValueError:
                continue  # its description is none
            yield from ((each.heard.time, change) for change in changes)

    def _is_from_ucm(self, heard: Captured, ucm: set[bytes]) -> bool | None:
        """Or who speaks for it; None: a copy of what was heard on its way in."""
        interface = self._interface_of(heard)
        if interface not in self.lans:
            return None if heard.is_outgoing else heard.segment.source[0] in ucm
        if heard.is_outgoing:  # of a proxy on this machine
            is_own = IPv4Address(heard.segment.source[0]) in self.host.own
            return False if is_own else None
        return heard.segment.source[0] in ucm or heard.segment.destination[0] not in ucm


def _once(flows: Sequence[Flow], host: Surroundings) -> list[Flow]:
    """Without what was seen on another interface as well (Surroundings.again)."""

    def key(flow: Flow, interface: int) -> tuple[object, ...]:
        return interface, flow.is_outgoing, flow.traffic, flow.source, flow.destination

    there = {key(each, each.interface) for each in flows}
    return [
        each
        for each in flows
        if each.interface not in host.again or key(each, host.again[each.interface]) not in there
    ]


def _places(sdp: bytes) -> list[End]:
    try:
        found = audio(sdp)
    except ValueError:
        return []
    return [End(each.address, each.port) for each in found if each and each.address]
