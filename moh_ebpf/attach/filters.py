"""From places to tc filters and clsact qdiscs, and back: in one batch, or not at all."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress

from pyroute2 import IPRoute

from moh_ebpf.attach.compiler import Loaded
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import tc
from moh_ebpf.kernel.namespace import in_new_namespace
from moh_ebpf.kernel.tc import Batch, Filter
from moh_ebpf.registry import walk
from moh_ebpf.registry.programs import open_program
from moh_ebpf.registry.record import Place, Record, Role
from moh_ebpf.registry.walk import Found


def changes(ipr: IPRoute, record: Record, programs: Mapping[Role, int], before: Found) -> Batch:
    """clsact, learn, enforce, bypass, then what is no longer wanted, in the reverse order."""
    batch = additions(record.places, tc.ingress_qdiscs(ipr), programs)
    unused = before.clsact - {place.ifindex for place in record.places}
    _delete(batch, ipr, left(record, before), unused, also_ours=before.filters)
    return batch


def additions(places: list[Place], hooks: Mapping[int, str], programs: Mapping[Role, int]) -> Batch:
    """A program, by its descriptor, for each place, whether one is there or not; clsact where there
    are no hooks yet. `hooks` are those of tc.ingress_qdiscs()."""
    batch = Batch()
    for ifindex in dict.fromkeys(place.ifindex for place in places):
        if ifindex not in hooks:
            batch.add_clsact(ifindex)
    for place in places:
        _replace_filter(batch, place, programs[place.role])
    return batch


def removal(ipr: IPRoute, places: dict[Place, Filter], made: set[int]) -> tuple[Batch, list[Place]]:
    """Our filters go, then each clsact of `made`, which are those that attach made, where nothing
    but ours is left; and the places in that order."""
    batch = Batch()
    return batch, _delete(batch, ipr, places, made)


def _replace_filter(batch: Batch, place: Place, program: int) -> None:
    batch.replace_filter(place.ifindex, place.role.hook, place.role.program, program)


def left(record: Record, before: Found) -> dict[Place, Filter]:
    """Our filters where no program of the record's comes in their place."""
    kept = {(place.ifindex, place.role.hook) for place in record.places}
    return {
        place: each
        for place, each in before.filters.items()
        if (place.ifindex, place.role.hook) not in kept
    }


def rehearse(loaded: Loaded) -> None:
    """Attach the programs to the loopback interface of a network namespace made for it: qdisc and
    classifier are tried as the programs are."""
    batch = Batch()
    loopback = 1
    batch.add_clsact(loopback)
    for role, fd in loaded.programs.items():
        batch.replace_filter(loopback, role.hook, role.program, fd)
    try:
        errors = in_new_namespace(batch.send)
    except PermissionError:  # a container's root, perhaps: nothing to rehearse in
        return
    if errors:
        raise MohError(f"attach --dry-run: {errors[0]}")


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


def apply(ipr: IPRoute, batch: Batch, before: Mapping[Place, Filter]) -> None:
    """Send the changes. Raises MohError, with the state before restored, if one fails."""
    hooks = tc.ingress_qdiscs(ipr)
    with ExitStack() as stack:
        programs = {}
        for place, each in before.items():
            with suppress(FileNotFoundError):  # somebody has removed it meanwhile
                opened = open_program(each.program_id or 0)
                programs[place] = stack.enter_context(opened)[0]
        try:
            errors = batch.send()
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
