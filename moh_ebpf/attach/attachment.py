"""attach and detach: the way into the kernel and out of it, each in one step or not at all."""

import errno
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf import maps
from moh_ebpf.attach import cautions, compiler, filters, obstacles
from moh_ebpf.attach.carry import adopted_maps, carry_clocks, carry_over
from moh_ebpf.attach.compiler import Loaded
from moh_ebpf.attach.held import Held
from moh_ebpf.attach.plan import Plan, made_by_us, make_plan, make_record
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import libbpf, requirements, tc
from moh_ebpf.kernel.lock import Notify, exclusive
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import open_program
from moh_ebpf.registry.record import Place, Record
from moh_ebpf.settings import Settings

# How long detach waits for the kernel to free what it has let go of.
FREED_WITHIN_SECONDS = 2.0


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
                list(filters.left(record, before)),
                plan.settings,
                [*cautions.exchanged(ipr, plan), *map(str, cautions.found(ipr, plan, record))],
            )
            if dry_run:
                filters.rehearse(loaded)
                return report
            carry_clocks(before.readable, loaded, record)
            copied = carry_over(before.readable, loaded, record, {})
            filters.apply(
                ipr, filters.changes(ipr, record, loaded.programs, before), before.filters
            )
            with suppress(OSError):  # It is done; what is missed now speaks again in a moment.
                carry_over(before.readable, loaded, record, copied)
            return report


def put_back(held: Held, notify: Notify) -> list[Place]:
    """Attach the held programs again where somebody has removed their filters; where that was.

    The record that they share is corrected where a clsact qdisc is made, or was made by somebody
    else meanwhile. Raises MohError or OSError with everything as it was: another command is at
    work, or has attached other programs, or the kernel refuses a change.
    """
    with exclusive(notify, waits=False), IPRoute() as ipr:
        found = walk.find_filters(ipr)
        if not held.has_all_of(found):
            raise MohError("other programs were attached meanwhile")
        missing = [place for place in held.record.places if place not in found]
        refuse_foreign(ipr, held.record)
        hooks = tc.ingress_qdiscs(ipr)
        batch = filters.additions(missing, hooks, held.programs)
        known, before = set(held.made), held.record.clsact
        # First what detach must know: whatever stops us then, no qdisc of ours stays.
        held.write(made_by_us((*held.record.wan, *held.record.lan), hooks, known))
        try:
            filters.apply(ipr, batch, found)
        except BaseException:
            held.write(before)
            held.made = known
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
        batch, removed = filters.removal(ipr, found, walk.own_clsact(found))
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
    """The programs compiled and loaded, their maps filled; attached nowhere. They go on with maps
    of what is attached `before`."""
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


def _await_freed(program_ids: list[int | None]) -> None:
    """Wait until the kernel has freed the programs, which it does a moment after a filter's end.

    There is no event for it, so it is asked. Somebody else may hold one, or the kernel not answer:
    then do not insist, for it is detached.
    """
    deadline = time.monotonic() + FREED_WITHIN_SECONDS
    for program_id in program_ids:
        with suppress(OSError):
            while time.monotonic() < deadline:
                with open_program(program_id or 0):
                    pass
                time.sleep(0.002)
