"""attach and detach: the way into the kernel and out of it, each in one step or not at all."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute

from moh_ebpf import __version__, compiler, layout, libbpf, network, registry, tc
from moh_ebpf.compiler import Loaded, Plan
from moh_ebpf.errors import MohError, UsageError
from moh_ebpf.registry import Attached, Place, Record, Role
from moh_ebpf.settings import Settings
from moh_ebpf.tc import Batch, Filter

_OLDEST_KERNEL = (5, 10)
_FIRST = b"\0\0\0\0"

# How long detach waits for the kernel to free what it has let go of.
_FREED_WITHIN_SECONDS = 2.0

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What attach did: `places` by role, `public` addresses, `replaced` if one was there before."""

    places: list[Place]
    public: Sequence[IPv4Address]
    replaced: bool
    warnings: list[str] = field(default_factory=list)


def attach(settings: Settings, notify: Notify, *, dry_run: bool = False) -> Report:
    """Compile, load and attach; with `dry_run` all but attach.

    Over an attached set it replaces that, without a gap, and the peers stay. Raises MohError with
    everything as it was.
    """
    _preflight()
    with exclusive(notify), IPRoute() as ipr, registry.attached(ipr) as before:
        plan = make_plan(ipr, settings)
        record = _record(ipr, plan, before)
        _refuse_foreign(ipr, record)
        loaded = _load(plan, record, before)
        report = Report(record.places, plan.settings.public, before is not None, _warnings(plan))
        if dry_run:
            return report
        started = time.monotonic_ns()
        peers_before = before and _peers_to_carry(before, loaded)
        if before and peers_before:
            _carry_over(peers_before, before.record, loaded, record)
        _apply(ipr, _changes(ipr, record, loaded, before), before)
        if before and peers_before:
            _carry_over(peers_before, before.record, loaded, record, since=started)
        return report


def detach(notify: Notify) -> list[Place]:
    """Remove all that is ours in this network namespace; where it was. Twice is fine."""
    registry.require_root()
    with exclusive(notify), IPRoute() as ipr:
        found = registry.find_filters(ipr)
        made = {ifindex for each in found.values() for ifindex in registry.made_clsact(each)}
        batch = Batch()
        removed = _delete(batch, ipr, found, made)
        errors = batch.send()
        if errors:
            raise MohError("detach: " + "; ".join(map(str, errors)))
        _await_freed([each.program_id for each in found.values()])
        return removed


def make_plan(ipr: IPRoute, settings: Settings) -> Plan:
    """The settings met with this namespace's interfaces. Raises UsageError if they do not fit."""
    wan = network.interfaces(ipr, "--wan", settings.wan)
    lan = network.interfaces(ipr, "--lan", settings.lan)
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
    if not public:
        raise UsageError(
            f"--wan {', '.join(settings.wan)}: there is no IPv4 address on it; "
            "give the one that the provider sends to with --public"
        )
    return Plan(replace(settings, public=public), wan, lan)


def _preflight() -> None:
    registry.require_root()
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < _OLDEST_KERNEL:
        raise MohError(
            f"kernel {release} is too old: moh-ebpf needs Linux "
            f"{'.'.join(map(str, _OLDEST_KERNEL))} or later"
        )


def _record(ipr: IPRoute, plan: Plan, before: Attached | None) -> Record:
    hooks = tc.ingress_qdiscs(ipr)
    for each in plan.wan:
        if hooks.get(each.index) == "ingress":
            raise MohError(
                f"{each.name}: it has an ingress qdisc, which has no egress hook for enforce; "
                f"try: tc qdisc replace dev {each.name} clsact (its filters must be added again)"
            )
    ours = set(before.record.clsact) if before else set()
    wan = tuple(each.index for each in plan.wan)
    lan = tuple(each.index for each in plan.lan)
    return Record(
        settings=plan.settings,
        version=__version__,
        wan=wan,
        lan=lan,
        clsact=tuple(i for i in (*wan, *lan) if i not in hooks or i in ours),
    )


def _refuse_foreign(ipr: IPRoute, record: Record) -> None:
    for place in record.places:
        for each in tc.filters(ipr, place.ifindex):
            if each.hook is not place.role.hook or each.priority != tc.PRIORITY:
                continue
            if registry.role_of(each) is None:
                name = registry.interface_name(place.ifindex)
                raise MohError(
                    f"{name} {each.hook}: there is a {each.kind} filter of somebody else's at "
                    f"priority {tc.PRIORITY}, which is ours; see: "
                    f"tc filter show dev {name} {each.hook}; it must move to another priority"
                )


def _load(plan: Plan, record: Record, before: Attached | None) -> Loaded:
    data = record.to_bytes()
    adopt = {"counters": before.maps["counters"].fd} if before else {}
    if before and _same_peers(plan, record, before):
        adopt["peers"] = before.maps["peers"].fd
    loaded = compiler.load(plan, len(data), adopt)
    libbpf.update(loaded.maps["settings"], _FIRST, data)
    for prefix in plan.settings.provider:
        key = layout.PREFIX.pack(prefix.prefixlen, prefix.network_address.packed)
        libbpf.update(loaded.maps["providers"], key, b"\1")
    for fd in loaded.programs.values():
        # No program reads the settings, so the kernel must be told that they belong together.
        for name in ("settings", "counters", "peers"):
            libbpf.bind_map(fd, loaded.maps[name].fd)
    return loaded


def _same_peers(plan: Plan, record: Record, before: Attached) -> bool:
    """Can the programs go on with the very map? Then not one packet falls between two maps."""
    return (
        before.maps["peers"].max_entries == plan.settings.max_peers
        and record.wan[: len(before.record.wan)] == before.record.wan
    )


def _peers_to_carry(before: Attached, loaded: Loaded) -> libbpf.Map | None:
    old = before.maps["peers"]
    return None if old.id == loaded.maps["peers"].id else old


def _carry_over(
    old: libbpf.Map, old_record: Record, loaded: Loaded, record: Record, since: int = 0
) -> None:
    """Copy peers seen after `since` (ns) into the new map, where it has nothing later of them.

    Called before the programs are swapped, and after for what was learned meanwhile.
    """
    new = loaded.maps["peers"]
    for keys, values, _ in libbpf.entries(old):
        for (key,), (value,) in zip(
            _chunks(keys, old.key_size), _chunks(values, old.value_size), strict=True
        ):
            heard, last_seen, *rest = layout.PEER.unpack(value)
            moved = _move_to(heard, old_record, record)
            if moved is None or last_seen < since or _is_later(new, key, last_seen):
                continue
            # Its next hop is looked up anew.
            fields = (moved, last_seen, *rest[:-3], 0, 0, 0)
            libbpf.update(new, key, layout.PEER.pack(*fields))


def _chunks(data: bytes, size: int) -> Iterator[tuple[bytes]]:
    return ((data[start : start + size],) for start in range(0, len(data), size))


def _move_to(heard: bytes, old: Record, new: Record) -> bytes | None:
    """The same word with the WAN's index in the new record; None if that WAN is no longer one."""
    address, port, state, wan = layout.HEARD.unpack(heard)
    if wan >= len(old.wan) or old.wan[wan] not in new.wan:
        return None
    return layout.HEARD.pack(address, port, state, new.wan.index(old.wan[wan]))


def _is_later(peers: libbpf.Map, key: bytes, last_seen: int) -> bool:
    try:
        return bool(layout.PEER.unpack(libbpf.lookup(peers, key))[1] >= last_seen)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def _changes(ipr: IPRoute, record: Record, loaded: Loaded, before: Attached | None) -> Batch:
    """clsact, learn, enforce, bypass, then what is no longer wanted, in the reverse order."""
    batch = Batch()
    hooks = tc.ingress_qdiscs(ipr)
    for ifindex in dict.fromkeys(place.ifindex for place in record.places):
        if ifindex not in hooks:
            batch.add_clsact(ifindex)
    for place in record.places:
        role = place.role
        batch.replace_filter(place.ifindex, role.hook, role.program, loaded.programs[role])
    if before:
        kept = {(place.ifindex, place.role.hook) for place in record.places}
        left = {
            place: each
            for place, each in before.filters.items()
            if (place.ifindex, place.role.hook) not in kept
        }
        unused = set(before.record.clsact) - {place.ifindex for place in record.places}
        _delete(batch, ipr, left, unused, also_ours=before.filters)
    return batch


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


def _apply(ipr: IPRoute, changes: Batch, before: Attached | None) -> None:
    """Send the changes. Raises MohError, with the state before restored, if one fails."""
    hooks = tc.ingress_qdiscs(ipr)
    with ExitStack() as stack:
        programs = {
            place: stack.enter_context(registry.open_program(each.program_id or 0))[0]
            for place, each in (before.filters if before else {}).items()
        }
        errors = changes.send()
        if errors:
            _restore(ipr, programs, hooks)
            raise MohError(f"attach: {errors[0]}; all is as it was before")


def _restore(ipr: IPRoute, programs: dict[Place, int], hooks: dict[int, str]) -> None:
    now = registry.find_filters(ipr)
    batch = Batch()
    new_hooks = {ifindex for ifindex in tc.ingress_qdiscs(ipr) if ifindex not in hooks}
    had = {(place.ifindex, place.role.hook) for place in programs}
    added = {
        place: each for place, each in now.items() if (place.ifindex, place.role.hook) not in had
    }
    for place, fd in programs.items():
        batch.replace_filter(place.ifindex, place.role.hook, place.role.program, fd)
    _delete(batch, ipr, added, new_hooks)
    batch.send()


def _await_freed(program_ids: list[int | None]) -> None:
    """Wait until the kernel has freed the programs, which it does a moment after a filter's end.

    There is no event for it, so it is asked. Somebody else may hold one: then do not insist.
    """
    deadline = time.monotonic() + _FREED_WITHIN_SECONDS
    for program_id in program_ids:
        with suppress(FileNotFoundError):
            while time.monotonic() < deadline:
                with registry.open_program(program_id or 0):
                    pass
                time.sleep(0.002)


def _warnings(plan: Plan) -> list[str]:
    """Attached without a LAN on a firewall that NATs, enforce would never see UCM's packets."""
    if plan.lan or set(plan.settings.ucm) <= set(plan.settings.public):
        return []
    rule = network.source_nat()
    if rule is None:
        return []
    return [
        f"this firewall rewrites source addresses ({rule}); UCM's packets reach the WAN no longer "
        "as UCM's, and enforce will not see them. Name the interface they come in by: --lan IF"
    ]


@contextmanager
def exclusive(notify: Notify) -> Iterator[None]:
    """One command at a time changes this network namespace; the next one says so and waits.

    The lock is on the namespace itself (flock on /proc/self/ns/net): no file of ours, and the
    kernel lets go of it with the process, however that ends.
    """
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"waiting for another moh-ebpf{_holder(os.fstat(fd).st_ino)} to finish")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _holder(inode: int) -> str:
    """The process that holds the lock, from /proc/locks (proc_locks(5))."""
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return f" (process {fields[4]})"
    return ""
