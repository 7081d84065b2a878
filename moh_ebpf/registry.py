"""What is attached: found by walking the kernel, which is the only registry there is.

interface → our filter → program → maps. There is no daemon, no state file and no pin; tc filters
keep the programs, programs keep the maps, and one of the maps keeps the settings.
"""

import json
import math
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf import counters, layout, libbpf, peers, tc
from moh_ebpf.clock import kernel_ns
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.maps import layouts
from moh_ebpf.peers import LONGEST_DEAF_HOLD_SECONDS, SILENT_SECONDS, Peer, Snapshot, Wait, Wan
from moh_ebpf.settings import Settings, from_values
from moh_ebpf.tc import Filter, Hook

_FIRST = struct.pack("=I", 0)

# A peer's struct endpoint and struct peer, unpacked.
_Entry = tuple[tuple[Any, ...], tuple[Any, ...]]


class Role(Enum):
    """What a program does, in the order in which roles are attached."""

    LEARN = "learn"
    ENFORCE = "enforce"
    BYPASS = "bypass"

    def __str__(self) -> str:
        return self.value

    @property
    def program(self) -> str:
        """The name of its program and of its filter."""
        return f"moh_{self.value}"

    @property
    def hook(self) -> Hook:
        """Where it is attached."""
        return Hook.EGRESS if self is Role.ENFORCE else Hook.INGRESS


ROLES = {role.program: role for role in Role}


@dataclass(frozen=True)
class Place:
    """Where a program of a role is, or belongs."""

    ifindex: int
    role: Role

    def to_json(self) -> dict[str, str]:
        """With the interface's present name."""
        return {
            "interface": interface_name(self.ifindex),
            "hook": str(self.role.hook),
            "role": str(self.role),
        }


@dataclass(frozen=True)
class Record:
    """What an attachment leaves in its settings map.

    `wan` and `lan` are ifindexes, for interfaces can be renamed; a peer's WAN is an index into
    `wan`. `clsact` are those whose clsact qdisc was made by attach.
    """

    settings: Settings
    version: str
    wan: tuple[int, ...]
    lan: tuple[int, ...]
    clsact: tuple[int, ...]

    @property
    def places(self) -> list[Place]:
        """Where its programs belong, in the order of attaching."""
        return [
            *(Place(ifindex, role) for role in (Role.LEARN, Role.ENFORCE) for ifindex in self.wan),
            *(Place(ifindex, Role.BYPASS) for ifindex in self.lan),
        ]

    def size(self) -> int:
        """How many bytes the map needs for it, whichever clsact qdiscs will be made."""
        return len(replace(self, clsact=(*self.wan, *self.lan)).to_bytes())

    def to_bytes(self) -> bytes:
        """As it lies in the map, but for zeros at the end: JSON."""
        values = {
            "version": self.version,
            "layouts": layouts(self.settings),
            "wan": self.wan,
            "lan": self.lan,
            "clsact": self.clsact,
            "settings": self.settings.to_json(),
        }
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Raises ValueError, KeyError, TypeError or MohError if it is none that we understand."""
        values = json.loads(data.rstrip(b"\0"))
        return cls(
            settings=from_values(values["settings"]),
            version=str(values["version"]),
            wan=tuple(values["wan"]),
            lan=tuple(values["lan"]),
            clsact=tuple(values["clsact"]),
        )


@dataclass(frozen=True)
class Attached:
    """The programs found, and the maps of one of them, which they all share."""

    filters: dict[Place, Filter]
    record: Record
    maps: dict[str, libbpf.Map] = field(repr=False)

    @property
    def missing(self) -> list[Place]:
        """Where a program belongs and is not: somebody removed it, or the interface is gone."""
        return [place for place in self.record.places if place not in self.filters]

    def counters(self) -> dict[str, int]:
        """The counters, summed over the CPUs. Raises OSError."""
        per_cpu = libbpf.lookup_per_cpu(self.maps["counters"], _FIRST)
        values = map(counters.VALUE.unpack, per_cpu)
        sums = dict(zip(counters.COUNTERS, map(sum, zip(*values, strict=True)), strict=True))
        return sums | dict.fromkeys(counters.RETIRED, 0)

    def peers(self) -> Iterator[_Entry]:
        """Each peer's entry of the map. Raises OSError."""
        for keys, values in libbpf.entries(self.maps["peers"]):
            yield from zip(
                layout.ENDPOINT.iter_unpack(keys), layout.PEER.iter_unpack(values), strict=True
            )

    def snapshot(self, forgotten_for: float = math.inf, *, untold: bool = False) -> Snapshot:
        """Peers and counters now, without peers that have been forgotten for so many seconds, and
        without those that readers are not told of, unless `untold`. Raises OSError."""
        now = kernel_ns()
        peers = self._decoded(self.peers(), now, forgotten_for, untold=untold)
        return Snapshot(now * 1e-9, peers, self.counters(), self.wans(now))

    def wans(self, now: int | None = None) -> list[Wan]:
        """What is known of each WAN, in their order. `now`: of CLOCK_MONOTONIC, in ns. Raises
        OSError."""
        now = kernel_ns() if now is None else now
        found = []
        for index, interface in self.wan_names().items():
            times = layout.WAN.unpack(libbpf.lookup(self.maps["wans"], layout.index(index)))
            learned, opened, _, blind = (
                max(0, now - each) * 1e-9 if each else None for each in times
            )
            found.append(Wan(interface, learned, opened, blind))
        return found

    def unheard(self) -> list[Peer]:
        """Peers that have been forgotten, and that UCM still sends to. Raises OSError."""
        now = kernel_ns()
        found = []
        for endpoint, _ in self._waiting(now):
            with suppress(FileNotFoundError):  # most have never been heard
                value = libbpf.lookup(self.maps["peers"], layout.ENDPOINT.pack(*endpoint))
                found.append((endpoint, layout.PEER.unpack(value)))
        return [peer for peer in self._decoded(found, now) if peer.expired]

    def waits(self) -> list[Wait]:
        """The endpoints that UCM sends to now and that are not heard. Raises OSError."""
        now = kernel_ns()
        return [
            Wait(
                socket.inet_ntoa(address),
                int.from_bytes(port, "big"),
                max(0, now - first) * 1e-9,
                dropped,
                bool(passed),
            )
            for (address, port), (first, _, dropped, passed, *_) in self._waiting(now)
        ]

    def _waiting(self, now: int) -> Iterator[_Entry]:
        """Each endpoint with its struct waiting, where UCM has sent media to it of late."""
        for keys, values in libbpf.entries(self.maps["waiting_for"]):
            waits = zip(
                layout.ENDPOINT.iter_unpack(keys), layout.WAITING.iter_unpack(values), strict=True
            )
            for endpoint, wait in waits:
                _, last, _, _, flags, *_ = wait
                if now - last < SILENT_SECONDS * 1e9 and not flags & layout.WAITING_NO_MEDIA:
                    yield endpoint, wait

    def _decoded(
        self,
        entries: Iterable[_Entry],
        now: int,
        forgotten_for: float = math.inf,
        *,
        untold: bool = False,
    ) -> list[Peer]:
        settings = self.record.settings
        return peers.decode(
            entries,
            now=now,
            timeout=settings.timeout,
            rtcp_timeout=settings.rtcp_timeout,
            quality=settings.quality,
            interfaces=self.wan_names(),
            forgotten_for=forgotten_for,
            deaf=self._deaf(now) if settings.timeout > LONGEST_DEAF_HOLD_SECONDS else (),
            untold=untold,
        )

    def _deaf(self, now: int) -> set[int]:
        """The indexes of the WANs where learn has been silent for so long that no hold counts."""
        return {
            index
            for index, wan in enumerate(self.wans(now))
            if wan.learn_age is None or wan.learn_age >= LONGEST_DEAF_HOLD_SECONDS
        }

    def wan_names(self) -> dict[int, str]:
        """The WANs' present names by their index in a peer."""
        return {index: interface_name(ifindex) for index, ifindex in enumerate(self.record.wan)}


# The name of an interface that is there no more.
GONE = "(gone)"


def interface_name(ifindex: int) -> str:
    """An interface's present name; GONE if there is none any more."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return GONE


def find_filters(ipr: IPRoute) -> dict[Place, Filter]:
    """Our filters in this network namespace."""
    while True:
        # A program that is freed before we have looked at it was replaced or detached: look again.
        with suppress(FileNotFoundError):
            return {
                Place(ifindex, role): each
                for ifindex in tc.ingress_qdiscs(ipr)
                for each in tc.filters(ipr, ifindex)
                if (role := _own_role(each))
            }


def role_of(each: Filter) -> Role | None:
    """The role of a filter if it is ours: at our priority and handle, by our name, with a program
    of that name, at the role's own hook."""
    try:
        return _own_role(each)
    except FileNotFoundError:
        return None


def _own_role(each: Filter) -> Role | None:
    """Raises FileNotFoundError if its program is gone."""
    role = ROLES.get(each.name or "")
    if not role or (each.priority, each.handle) != (tc.PRIORITY, tc.HANDLE):
        return None
    if each.hook is not role.hook or each.program_id is None:
        return None
    with open_program(each.program_id) as (_, program):
        return role if program.name == role.program else None


@contextmanager
def open_program(program_id: int) -> Iterator[tuple[int, libbpf.Program]]:
    """A program's file descriptor, and what the kernel says of it. Raises OSError."""
    fd = libbpf.program_fd(program_id)
    try:
        yield fd, libbpf.program_info(fd)
    finally:
        os.close(fd)


def tcx_names(ifindex: int, hook: Hook) -> list[str]:
    """The names of the TCX programs at an interface's hook, which run before its filters."""
    kind = libbpf.TCX_INGRESS if hook is Hook.INGRESS else libbpf.TCX_EGRESS
    names = []
    for program_id in libbpf.tcx_programs(ifindex, kind):
        with suppress(FileNotFoundError), open_program(program_id) as (_, program):
            names.append(program.name or f"with id {program_id}")
    return names


@dataclass(frozen=True)
class Found:
    """Our filters, and the ifindexes whose clsact is ours (own_clsact). `attached` is None where
    there are no filters, and where they are of a version whose maps cannot all be read.
    `readable` is what an attach can go on with: of another version, the maps of the same layout."""

    filters: dict[Place, Filter]
    clsact: set[int]
    attached: Attached | None
    readable: Attached | None


@contextmanager
def found(ipr: IPRoute) -> Iterator[Found]:
    """What of ours there is in this network namespace, its maps open. Raises OSError."""
    filters, maps = _find(ipr)
    try:
        record, layouts_then = _record(maps)
        attached = readable = None
        if record:
            changed = dict(layouts(record.settings).items() ^ layouts_then.items())
            same = {name: each for name, each in maps.items() if name not in changed}
            readable = Attached(filters, record, same)
            attached = None if changed else readable
        yield Found(filters, own_clsact(filters), attached, readable)
    finally:
        _close(maps)


def _find(ipr: IPRoute) -> tuple[dict[Place, Filter], dict[str, libbpf.Map]]:
    """Our filters, and the maps of one of them."""
    while filters := find_filters(ipr):
        # Replaced or detached since we found it: look again.
        with suppress(FileNotFoundError):
            return filters, _open_maps(next(iter(filters.values())))
    return {}, {}


@contextmanager
def attached_or_error() -> Iterator[Attached]:
    """What is attached, for commands that only read. Raises NotAttachedError where nothing is."""
    require_root()
    with IPRoute() as ipr, found(ipr) as present:
        if not present.filters:
            raise NotAttachedError(
                "not attached in this network namespace; attach with: moh-ebpf attach"
            )
        if present.attached is None:
            raise MohError(
                "the attached programs are of another version of moh-ebpf, which this one cannot "
                "read; `moh-ebpf attach` replaces them, `moh-ebpf detach` removes them"
            )
        yield present.attached


def _open_maps(each: Filter) -> dict[str, libbpf.Map]:
    """The maps of a filter's program by name. Raises FileNotFoundError if it is gone."""
    with open_program(each.program_id or 0) as (_, program):
        return _opened(program)


def _opened(program: libbpf.Program) -> dict[str, libbpf.Map]:
    opened: dict[str, libbpf.Map] = {}
    try:
        for map_id in program.map_ids:
            opened_one = libbpf.open_map(map_id)
            opened[opened_one.name] = opened_one
    except OSError:
        _close(opened)
        raise
    return opened


@contextmanager
def maps_of(program: int) -> Iterator[dict[str, libbpf.Map]]:
    """The maps of an open program by name. Raises OSError."""
    maps = _opened(libbpf.program_info(program))
    try:
        yield maps
    finally:
        _close(maps)


def write_record(settings: libbpf.Map, record: Record) -> None:
    """Write the record into a settings map. Raises MohError if it does not fit, OSError."""
    data = record.to_bytes()
    if len(data) > settings.value_size:
        raise MohError("the attachment's record has no room for that; attach anew")
    libbpf.update(settings, _FIRST, data.ljust(settings.value_size, b"\0"))


def _close(maps: dict[str, libbpf.Map]) -> None:
    for each in maps.values():
        os.close(each.fd)


def own_clsact(filters: dict[Place, Filter]) -> set[int]:
    """The ifindexes whose clsact attach made, and where a filter of ours stands still: without one,
    the interface may be another by now, and its clsact somebody else's. Raises OSError."""
    made = {ifindex for each in filters.values() for ifindex in _made_clsact(each)}
    return made & {place.ifindex for place in filters}


def _made_clsact(each: Filter) -> set[int]:
    """The ifindexes whose clsact attach made, as the filter's own record has it.

    For detach, which must work on programs of any version: a record that is not understood has
    none. Raises OSError.
    """
    maps: dict[str, libbpf.Map] = {}
    try:
        maps = _open_maps(each)
        values = json.loads(libbpf.lookup(maps["settings"], _FIRST).rstrip(b"\0"))
        return set(map(int, values["clsact"]))
    except (FileNotFoundError, KeyError, ValueError, TypeError):
        return set()
    finally:
        _close(maps)


def _record(maps: dict[str, libbpf.Map]) -> tuple[Record | None, dict[str, str]]:
    """The record in the maps, and the layouts that it names; None if it is not understood."""
    try:
        data = libbpf.lookup(maps["settings"], _FIRST)
        return Record.from_bytes(data), dict(json.loads(data.rstrip(b"\0"))["layouts"])
    except (KeyError, ValueError, TypeError, MohError):
        return None, {}


def require_root() -> None:
    """Raises MohError unless we are root."""
    if os.geteuid() != 0:
        raise MohError("this needs root, to read and attach BPF programs", "sudo moh-ebpf …")


def describe(found: Attached | None) -> dict[str, Any]:
    """What `status --json` shows: plain JSON types."""
    if found is None:
        return {
            "attached": False,
            "settings": {},
            "programs": [],
            "missing": [],
            "wans": [],
            "counters": {},
        }

    return {
        "attached": True,
        "version": found.record.version,
        "settings": found.record.settings.to_json(),
        "programs": [
            each.to_json() | {"id": found.filters[each].program_id}
            for each in found.record.places
            if each in found.filters
        ],
        "missing": [each.to_json() for each in found.missing],
        "wans": [each.to_json() for each in found.wans()],
        "counters": found.counters(),
    }
