"""attach and detach: the way into the kernel and out of it, each in one step or not at all."""

import errno
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf import maps
from moh_ebpf.attach import cautions, compiler, obstacles
from moh_ebpf.attach.carry import adopted_maps, carry_clocks, carry_over
from moh_ebpf.attach.compiler import Loaded
from moh_ebpf.attach.kept import Kept
from moh_ebpf.attach.plan import Plan, made_by_us, make_plan, make_record
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import libbpf, requirements, tc
from moh_ebpf.kernel.lock import Notify, exclusive
from moh_ebpf.kernel.namespace import enter_new_namespace
from moh_ebpf.kernel.tc import Batch, Filter
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import open_program
from moh_ebpf.registry.record import Place, Record, Role
from moh_ebpf.registry.walk import Found
from moh_ebpf.settings import Settings

# How long detach waits for the kernel to free what it has let go of.
_FREED_WITHIN_SECONDS = 2.0


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
    requirements.require_root()
    with exclusive(notify), IPRoute() as ipr, walk.found(ipr) as before:
        plan = make_plan(ipr, settings, {place.ifindex for place in before.filters})
        record = make_record(ipr, plan, before)
        refuse_foreign(ipr, record)
        with closing(load(plan, record, before.readable)) as loaded:
            report = Report(
                record.places,
                [place for place in record.places if place in before.filters],
                list(_left(record, before)),
                plan.settings,
                [*cautions.exchanged(ipr, plan), *map(str, cautions.found(ipr, plan, record))],
            )
            if dry_run:
                _rehearse(loaded)
                return report
            carry_clocks(before.readable, loaded, record)
            copied = carry_over(before.readable, loaded, record, {})
            apply(ipr, _changes(ipr, record, loaded, before), before.filters)
            with suppress(OSError):  # It is done; what is missed now speaks again in a moment.
                carry_over(before.readable, loaded, record, copied)
            return report


def put_back(kept: Kept, notify: Notify) -> list[Place]:
    """Attach the kept programs again where somebody has removed their filters; where that was.

    The record that they share is corrected where a clsact qdisc is made, or was made by somebody
    else meanwhile. Raises MohError or OSError with everything as it was: another command is at
    work, or has attached other programs, or the kernel refuses a change.
    """
    with exclusive(notify, waits=False), IPRoute() as ipr:
        filters = walk.find_filters(ipr)
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
        kept.write(made_by_us((*kept.record.wan, *kept.record.lan), hooks, known))
        try:
            apply(ipr, batch, filters)
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
    requirements.require_root()
    with exclusive(notify), IPRoute() as ipr:
        found = walk.find_filters(ipr)
        batch = Batch()
        removed = _delete(batch, ipr, found, walk.own_clsact(found))
        errors = batch.send()
        if errors:
            raise MohError("detach: " + "; ".join(map(str, errors)))
        if not is_kept:
            _await_freed([each.program_id for each in found.values()])
        return removed


def refuse_foreign(ipr: IPRoute, record: Record) -> None:
    """Raises MohError if one of its places is taken by somebody else's filter."""
    for each in obstacles.taken(ipr, record.places):
        raise each.error


def load(plan: Plan, record: Record, before: Attached | None) -> Loaded:
    adopt = adopted_maps(plan, record, before) if before else {}
    with ExitStack() as stack:
        loaded = stack.enter_context(closing(compiler.load(plan, record.size(), adopt)))
        loaded.maps.put_settings(record.to_bytes())
        for row in maps.of(plan.settings):
            if row.prefixes:
                loaded.maps.put_prefixes(row.name, row.prefixes(plan.settings))
        _bind_maps(loaded)
        stack.pop_all()
    return loaded


def _bind_maps(loaded: Loaded) -> None:
    """Not each program uses each map, so the kernel must be told that they belong together."""
    try:
        for fd in loaded.programs.values():
            for name, each in loaded.maps.opened.items():
                if maps.ROWS[name].prefixes is None:
                    libbpf.bind_map(fd, each.fd)
    except OSError as error:
        lacks = requirements.lacking() if error.errno == errno.EINVAL else None
        raise MohError(lacks or str(error)) from error


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
        enter_new_namespace()
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


def apply(ipr: IPRoute, changes: Batch, before: Mapping[Place, Filter]) -> None:
    """Send the changes. Raises MohError, with the state before restored, if one fails."""
    hooks = tc.ingress_qdiscs(ipr)
    with ExitStack() as stack:
        programs = {}
        for place, each in before.items():
            with suppress(FileNotFoundError):  # somebody has removed it meanwhile
                opened = open_program(each.program_id or 0)
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
    now, hooks_now = walk.find_filters(ipr), tc.ingress_qdiscs(ipr)
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
                with open_program(program_id or 0):
                    pass
                time.sleep(0.002)
