"""attach and detach: the way into the kernel and out of it, each in one step or not at all."""

import errno
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf import (
    __version__,
    compiler,
    features,
    layout,
    libbpf,
    maps,
    misfits,
    network,
    obstacles,
    registry,
    tc,
)
from moh_ebpf.clock import kernel_ns
from moh_ebpf.compiler import Loaded, Plan
from moh_ebpf.errors import MohError, UsageError
from moh_ebpf.kept import Kept
from moh_ebpf.lock import Notify, exclusive
from moh_ebpf.registry import Attached, Found, Place, Record, Role
from moh_ebpf.settings import MOST_ADDRESSES, Settings
from moh_ebpf.tc import Batch, Filter

# How long detach waits for the kernel to free what it has let go of.
_FREED_WITHIN_SECONDS = 2.0


class NoAddressError(UsageError):
    """There is no public address, given or on a WAN."""


@dataclass(frozen=True)
class Report:
    """What attach did: `places` by role, of which some may have been `replaced`; those `detached`;
    `settings` with `public` filled in."""

    places: list[Place]
    replaced: Collection[Place]
    detached: list[Place]
    settings: Settings
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What `attach --json` shows. With --dry-run, what would be."""
        return {
            "attached": [each.to_json() for each in self.places if each not in self.replaced],
            "replaced": [each.to_json() for each in self.replaced],
            "detached": [each.to_json() for each in self.detached],
            "settings": self.settings.to_json(),
            "warnings": self.warnings,
        }


def attach(settings: Settings, notify: Notify, *, dry_run: bool = False) -> Report:
    """Compile, load and attach; with `dry_run` all but attach.

    Over an attached set it replaces that, without a gap, and the peers stay. Raises MohError with
    everything as it was.
    """
    registry.require_root()
    with exclusive(notify), IPRoute() as ipr, registry.found(ipr) as before:
        plan = make_plan(ipr, settings, {place.ifindex for place in before.filters})
        record = make_record(ipr, plan, before)
        refuse_foreign(ipr, record)
        with closing(_load(plan, record, before.readable)) as loaded:
            report = Report(
                record.places,
                [place for place in record.places if place in before.filters],
                list(_left(record, before)),
                plan.settings,
                [*misfits.exchanged(ipr, plan), *map(str, misfits.found(ipr, plan, record))],
            )
            if dry_run:
                _rehearse(loaded)
                return report
            _carry_clocks(before.readable, loaded, record)
            copied = _carry_over(before.readable, loaded, record, {})
            _apply(ipr, _changes(ipr, record, loaded, before), before.filters)
            with suppress(OSError):  # It is done; what is missed now speaks again in a moment.
                _carry_over(before.readable, loaded, record, copied)
            return report


def put_back(kept: Kept, notify: Notify) -> list[Place]:
    """Attach the kept programs again where somebody has removed their filters; where that was.

    The record that they share is corrected where a clsact qdisc is made, or was made by somebody
    else meanwhile. Raises MohError or OSError with everything as it was: another command is at
    work, or has attached other programs, or the kernel refuses a change.
    """
    with exclusive(notify, waits=False), IPRoute() as ipr:
        filters = registry.find_filters(ipr)
        if not kept.has_all_of(filters):
            raise MohError("other programs were attached meanwhile")
        missing = [place for place in kept.record.places if place not in filters]
        refuse_foreign(ipr, kept.record)
        hooks = tc.ingress_qdiscs(ipr)
        batch = Batch()
        _add_hooks(batch, missing, hooks)
        for place in missing:
            _replace_filter(batch, place, kept.programs[place.role])
        known, before = set(kept.made), kept.record.clsact
        # First what detach must know: whatever stops us then, no qdisc of ours stays.
        kept.write(_made((*kept.record.wan, *kept.record.lan), hooks, known))
        try:
            _apply(ipr, batch, filters)
        except BaseException:
            kept.write(before)
            kept.made = known
            raise
        return missing


def detach(notify: Notify, *, is_kept: bool = False) -> list[Place]:
    """Remove all that is ours in this network namespace; where it was. Twice is fine.

    It returns when the kernel has freed all of it; at once if `is_kept`, because a running service
    holds the programs.
    """
    registry.require_root()
    with exclusive(notify), IPRoute() as ipr:
        found = registry.find_filters(ipr)
        batch = Batch()
        removed = _delete(batch, ipr, found, registry.own_clsact(found))
        errors = batch.send()
        if errors:
            raise MohError("detach: " + "; ".join(map(str, errors)))
        if not is_kept:
            _await_freed([each.program_id for each in found.values()])
        return removed


def make_plan(
    ipr: IPRoute,
    settings: Settings,
    attached_to: Collection[int] = frozenset(),
    links: Mapping[str, Any] | None = None,
) -> Plan:
    """The settings met with this namespace's interfaces. Raises UsageError if they do not fit,
    NoAddressError if a WAN's address is wanted and there is none (yet).

    Interfaces that we are `attached_to` may be down. `links` are those of network.links_by_name(),
    asked for if they are not given.
    """
    links = links or network.links_by_name(ipr)
    settings = network.with_present_names(links, settings)
    if both := set(settings.wan) & set(settings.lan):
        raise UsageError(f"{min(both)} is given as --wan and as --lan, by two names that it has")
    wan = network.interfaces(ipr, links, "--wan", settings.wan, attached_to)
    lan = network.interfaces(ipr, links, "--lan", settings.lan, attached_to)
    # Routes name the bridge or bond, packets enter routing through it: a port's hooks miss them.
    for each in [*lan, *wan] if lan else []:
        if each.master:
            raise UsageError(
                f"{each.name} is a port of {each.master}, and routing sees {each.master} alone; "
                f"name {each.master} instead"
            )
    public = settings.public or tuple(
        dict.fromkeys(address for each in wan for address in each.addresses)
    )
    if len(public) > MOST_ADDRESSES:
        raise UsageError(
            f"--wan {', '.join(settings.wan)}: {len(public)} addresses are too many; "
            "name those that the provider sends to with --public"
        )
    if not public:
        raise NoAddressError(
            f"--wan {', '.join(settings.wan)}: there is no IPv4 address on it; "
            "give the one that the provider sends to with --public"
        )
    return Plan(replace(settings, public=public), wan, lan)


def make_record(ipr: IPRoute, plan: Plan, before: Found) -> Record:
    """What the attachment will leave of itself. Raises MohError if an interface cannot have both
    hooks."""
    hooks = tc.ingress_qdiscs(ipr)
    for obstacle in obstacles.without_egress(plan.wan, hooks):
        raise obstacle
    wan = tuple(each.index for each in plan.wan)
    lan = tuple(each.index for each in plan.lan)
    return Record(
        settings=plan.settings,
        version=__version__,
        wan=wan,
        lan=lan,
        clsact=_made((*wan, *lan), hooks, before.clsact),
    )


def _made(
    ifindexes: Collection[int], hooks: Mapping[int, str], before: Collection[int]
) -> tuple[int, ...]:
    """Those whose clsact is of our making: it was `before`, or it is not there yet."""
    return tuple(i for i in ifindexes if i not in hooks or i in before)


def refuse_foreign(ipr: IPRoute, record: Record) -> None:
    """Raises MohError if one of its places is taken by somebody else's filter."""
    for each in obstacles.taken(ipr, record.places):
        raise each.error


def _load(plan: Plan, record: Record, before: Attached | None) -> Loaded:
    adopt = _adopted(plan, record, before) if before else {}
    with ExitStack() as stack:
        loaded = stack.enter_context(closing(compiler.load(plan, record.size(), adopt)))
        registry.write_record(loaded.maps["settings"], record)
        for row in maps.of(plan.settings):
            for prefix in row.prefixes(plan.settings) if row.prefixes else ():
                key = layout.PREFIX.pack(prefix.prefixlen, prefix.network_address.packed)
                libbpf.update(loaded.maps[row.name], key, b"\1")
        _bind_maps(loaded)
        stack.pop_all()
    return loaded


def _adopted(plan: Plan, record: Record, before: Attached) -> dict[str, int]:
    """The maps that the programs go on with, by name."""
    room = before.maps["peers"].max_entries if "peers" in before.maps else 0
    change = maps.Change(
        before.record.settings,
        plan.settings,
        same_wans=_same_wans(record, before),
        same_room=room == compiler.peers_entries(plan.settings.max_peers),
    )
    return {
        row.name: before.maps[row.name].fd
        for row in maps.of(plan.settings)
        if row.name in before.maps and row.is_adopted(change)
    }


def _bind_maps(loaded: Loaded) -> None:
    """Not each program uses each map, so the kernel must be told that they belong together."""
    try:
        for fd in loaded.programs.values():
            for name, each in loaded.maps.items():
                if maps.ROWS[name].prefixes is None:
                    libbpf.bind_map(fd, each.fd)
    except OSError as error:
        lacks = features.lacking() if error.errno == errno.EINVAL else None
        raise MohError(lacks or str(error)) from error


def _same_wans(record: Record, before: Attached) -> bool:
    """Does each WAN keep its index? Then the programs can go on with the very maps, and not one
    packet falls between two of them."""
    return record.wan[: len(before.record.wan)] == before.record.wan


def _without(before: Attached | None, loaded: Loaded, name: str) -> Attached | None:
    """The attachment before, if it has such a map and the programs do not go on with it."""
    if before is None or name not in before.maps:
        return None
    return None if before.maps[name].id == loaded.maps[name].id else before


def _carry_clocks(before: Attached | None, loaded: Loaded, record: Record) -> None:
    """Copy what is known of each WAN to its new index, if that is another map: a hold must not end
    because learn has not spoken to the new programs yet."""
    before = _without(before, loaded, "wans")
    if before is None:
        return
    for index, ifindex in enumerate(before.record.wan):
        if ifindex in record.wan:
            value = libbpf.lookup(before.maps["wans"], layout.index(index))
            libbpf.update(loaded.maps["wans"], layout.index(record.wan.index(ifindex)), value)


def _carry_over(
    before: Attached | None, loaded: Loaded, record: Record, copied: dict[bytes, bytes]
) -> dict[bytes, bytes]:
    """Copy live peers into the new map, and return them as they were copied. Called before the
    programs are swapped, and after, with what was `copied`, for what was learned meanwhile: what
    the new programs have heard since is later, and stays."""
    new = loaded.maps["peers"]
    before = _without(before, loaded, "peers")
    if before is None:
        return {}
    live_since = kernel_ns() - round(before.record.settings.timeout * 1e9)
    carried = {}
    for (address, port), (heard, last_seen, *rest) in before.peers():
        key = layout.ENDPOINT.pack(address, port)
        moved = _move_to(heard, before.record, record)
        if moved is None or last_seen < live_since:
            continue
        peer = dict(zip(layout.PEER_FIELDS, (moved, last_seen, *rest), strict=True))
        # Its next hop is looked up anew, and what RTCP said is to be said again.
        peer |= {"hop_checked": 0, "hop_dst": 0, "hop_src": 0, "by_rtcp": bytes(layout.HEARD.size)}
        value = carried[key] = layout.PEER.pack(*peer.values())
        if _heard(value) == _heard(copied.get(key)):
            continue
        if _heard(_lookup(new, key)) == _heard(copied.get(key)):
            libbpf.update(new, key, value)
    return carried


def _heard(peer: bytes | None) -> bytes | None:
    """What learn has stored last, and when: the first two words of a struct peer."""
    return peer and peer[: 2 * layout.HEARD.size]


def _move_to(heard: bytes, old: Record, new: Record) -> bytes | None:
    """The same word with the WAN's index in the new record; None if that WAN is no longer one."""
    address, port, state, wan = layout.HEARD.unpack(heard)
    if wan >= len(old.wan) or old.wan[wan] not in new.wan:
        return None
    return layout.HEARD.pack(address, port, state, new.wan.index(old.wan[wan]))


def _lookup(bpf_map: libbpf.Map, key: bytes) -> bytes | None:
    """The value of a key; None if there is none. Raises OSError."""
    try:
        return libbpf.lookup(bpf_map, key)
    except FileNotFoundError:
        return None


def _changes(ipr: IPRoute, record: Record, loaded: Loaded, before: Found) -> Batch:
    """clsact, learn, enforce, bypass, then what is no longer wanted, in the reverse order."""
    batch = Batch()
    _add_hooks(batch, record.places, tc.ingress_qdiscs(ipr))
    for place in record.places:
        _replace_filter(batch, place, loaded.programs[place.role])
    unused = before.clsact - {place.ifindex for place in record.places}
    _delete(batch, ipr, _left(record, before), unused, also_ours=before.filters)
    return batch


def _add_hooks(batch: Batch, places: list[Place], hooks: Mapping[int, str]) -> None:
    for ifindex in dict.fromkeys(place.ifindex for place in places):
        if ifindex not in hooks:
            batch.add_clsact(ifindex)


def _replace_filter(batch: Batch, place: Place, program: int) -> None:
    batch.replace_filter(place.ifindex, place.role.hook, place.role.program, program)


def _left(record: Record, before: Found) -> dict[Place, Filter]:
    """Our filters where no program of the record's comes in their place."""
    kept = {(place.ifindex, place.role.hook) for place in record.places}
    return {
        place: each
        for place, each in before.filters.items()
        if (place.ifindex, place.role.hook) not in kept
    }


def _rehearse(loaded: Loaded) -> None:
    """Attach the programs to the loopback interface of a network namespace made for it, which goes
    with the thread that made it: qdisc and classifier are tried as the programs are."""
    batch = Batch()
    loopback = 1
    batch.add_clsact(loopback)
    for role, fd in loaded.programs.items():
        batch.replace_filter(loopback, role.hook, role.program, fd)
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        errors = elsewhere.submit(_send_in_new_namespace, batch).result()
    if errors:
        raise MohError(f"attach --dry-run: {errors[0]}")


def _send_in_new_namespace(batch: Batch) -> list[MohError]:
    try:
        network.enter_new_namespace()
    except PermissionError:  # a container's root, perhaps: nothing to rehearse in
        return []
    return batch.send()


def _delete(
    batch: Batch,
    ipr: IPRoute,
    places: dict[Place, Filter],
    made: set[int],
    also_ours: dict[Place, Filter] | None = None,
) -> list[Place]:
    """Delete our filters in the reverse order of attaching, then each clsact of `made`, which are
    those that attach made, where nothing but ours is left. Returns the places in that order."""
    roles = list(Role)
    in_order = sorted(places, key=lambda place: roles.index(place.role), reverse=True)
    for place in in_order:
        batch.delete_filter(place.ifindex, place.role.hook)
    ours = {*places.values(), *(also_ours or {}).values()}
    hooks = tc.ingress_qdiscs(ipr)
    for ifindex in made:
        if hooks.get(ifindex) == "clsact" and set(tc.filters(ipr, ifindex)) <= ours:
            batch.delete_clsact(ifindex)
    return in_order


def _apply(ipr: IPRoute, changes: Batch, before: Mapping[Place, Filter]) -> None:
    """Send the changes. Raises MohError, with the state before restored, if one fails."""
    hooks = tc.ingress_qdiscs(ipr)
    with ExitStack() as stack:
        programs = {}
        for place, each in before.items():
            with suppress(FileNotFoundError):  # somebody has removed it meanwhile
                opened = registry.open_program(each.program_id or 0)
                programs[place] = stack.enter_context(opened)[0]
        try:
            errors = changes.send()
        except BaseException:
            _restore(ipr, programs, hooks)
            raise
        if errors:
            _restore(ipr, programs, hooks)
            raise MohError(f"attach: {errors[0]}; all is as it was before")


def _restore(ipr: IPRoute, programs: dict[Place, int], hooks: dict[int, str]) -> None:
    now, hooks_now = registry.find_filters(ipr), tc.ingress_qdiscs(ipr)
    batch = Batch()
    new_hooks = hooks_now.keys() - hooks.keys()
    for ifindex in {place.ifindex for place in programs} - hooks_now.keys():
        batch.add_clsact(ifindex)
    had = {(place.ifindex, place.role.hook) for place in programs}
    added = {
        place: each for place, each in now.items() if (place.ifindex, place.role.hook) not in had
    }
    for place, fd in programs.items():
        _replace_filter(batch, place, fd)
    _delete(batch, ipr, added, new_hooks)
    batch.send()


def _await_freed(program_ids: list[int | None]) -> None:
    """Wait until the kernel has freed the programs, which it does a moment after a filter's end.

    There is no event for it, so it is asked. Somebody else may hold one, or the kernel not answer:
    then do not insist, for it is detached.
    """
    deadline = time.monotonic() + _FREED_WITHIN_SECONDS
    for program_id in program_ids:
        with suppress(OSError):
            while time.monotonic() < deadline:
                with registry.open_program(program_id or 0):
                    pass
                time.sleep(0.002)
