"""What is attached: found by walking the kernel, which is the only registry there is.

interface → our filter → program → maps. There is no daemon, no state file and no pin; tc filters
keep the programs, programs keep the maps, and one of the maps keeps the settings.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pyroute2 import IPRoute

from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.kernel import requirements, tc
from moh_ebpf.kernel.tc import HANDLE, PRIORITY, Filter
from moh_ebpf.maps import layouts
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.contents import Maps
from moh_ebpf.registry.programs import open_maps, open_program
from moh_ebpf.registry.record import ROLES, Place, Role, read_record


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
    if not role or (each.priority, each.handle) != (PRIORITY, HANDLE):
        return None
    if each.hook is not role.hook or each.program_id is None:
        return None
    with open_program(each.program_id) as (_, program):
        return role if program.name == role.program else None


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
        record, layouts_then = read_record(maps)
        attached = readable = None
        if record:
            changed = dict(layouts(record.settings).items() ^ layouts_then.items())
            readable = Attached(filters, record, maps.without(changed))
            attached = None if changed else readable
        yield Found(filters, own_clsact(filters), attached, readable)
    finally:
        maps.close()


def _find(ipr: IPRoute) -> tuple[dict[Place, Filter], Maps]:
    """Our filters, and the maps of one of them."""
    while filters := find_filters(ipr):
        # Replaced or detached since we found it: look again.
        with suppress(FileNotFoundError):
            return filters, open_maps(next(iter(filters.values())))
    return {}, Maps({})


@contextmanager
def attached_or_error() -> Iterator[Attached]:
    """What is attached, for commands that only read. Raises NotAttachedError where nothing is."""
    requirements.require_root()
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
    maps = Maps({})
    try:
        maps = open_maps(each)
        values = json.loads(maps.settings().rstrip(b"\0"))
        return set(map(int, values["clsact"]))
    except (FileNotFoundError, KeyError, ValueError, TypeError):
        return set()
    finally:
        maps.close()
