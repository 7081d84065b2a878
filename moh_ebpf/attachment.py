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
from moh_ebpf.registry import Attached, Found, Place, Record, Role
from moh_ebpf.settings import MOST_ADDRESSES, Settings
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
    with exclusive(notify), IPRoute() as ipr, registry.found(ipr) as before:
        plan = make_plan(ipr, settings)
        record = _record(ipr, plan, before)
        _refuse_foreign(ipr, record)
        loaded = _load(plan, record, before.attached)
        report = Report(
            record.places, plan.settings.public, bool(before.filters), _warnings(ipr, plan, record)
        )
        if dry_run:
            return report
        started = time.monotonic_ns()
        _carry_over(before.attached, loaded, record)
        _apply(ipr, _changes(ipr, record, loaded, before), before)
        with suppress(OSError):  # It is done; what is missed now speaks again in a moment.
            _carry_over(before.attached, loaded, record, since=started)
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
    if len(public) > MOST_ADDRESSES:
        raise UsageError(
            f"--wan {', '.join(settings.wan)}: {len(public)} addresses are too many; "
            "name those that the provider sends to with --public"
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


def _record(ipr: IPRoute, plan: Plan, before: Found) -> Record:
    hooks = tc.ingress_qdiscs(ipr)
    for each in plan.wan:
        if hooks.get(each.index) == "ingress":
            raise MohError(
                f"{each.name}: it has an ingress qdisc, which has no egress hook for enforce; "
                f"try: tc qdisc replace dev {each.name} clsact (its filters must be added again)"
            )
    wan = tuple(each.index for each in plan.wan)
    lan = tuple(each.index for each in plan.lan)
    return Record(
        settings=plan.settings,
        version=__version__,
        wan=wan,
        lan=lan,
        clsact=tuple(i for i in (*wan, *lan) if i not in hooks or i in before.clsact),
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


def _carry_over(
    before: Attached | None, loaded: Loaded, record: Record, since: int | None = None
) -> None:
    """Copy live peers, seen after `since` (ns), into the new map where it has nothing later of
    them. Called before the programs are swapped, and after for what was learned meanwhile."""
    new = loaded.maps["peers"]
    if before is None or before.maps["peers"].id == new.id:
        return
    if since is None:
        since = time.monotonic_ns() - round(before.record.settings.timeout * 1e9)
    for (address, port), (heard, last_seen, *rest) in before.peers():
        key = layout.ENDPOINT.pack(address, port)
        moved = _move_to(heard, before.record, record)
        if moved is None or last_seen < since or _last_seen(new, key) >= last_seen:
            continue
        peer = dict(zip(layout.PEER_FIELDS, (moved, last_seen, *rest), strict=True))
        # Its next hop is looked up anew.
        peer |= {"hop_checked": 0, "hop_dst": 0, "hop_src": 0}
        libbpf.update(new, key, layout.PEER.pack(*peer.values()))


def _move_to(heard: bytes, old: Record, new: Record) -> bytes | None:
    """The same word with the WAN's index in the new record; None if that WAN is no longer one."""
    address, port, state, wan = layout.HEARD.unpack(heard)
    if wan >= len(old.wan) or old.wan[wan] not in new.wan:
        return None
    return layout.HEARD.pack(address, port, state, new.wan.index(old.wan[wan]))


def _last_seen(peers: libbpf.Map, key: bytes) -> int:
    """When a peer was seen last, in ns; 0 if it is not known."""
    try:
        peer = layout.PEER.unpack(libbpf.lookup(peers, key))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0
    return int(peer[layout.PEER_FIELDS.index("last_seen")])


def _changes(ipr: IPRoute, record: Record, loaded: Loaded, before: Found) -> Batch:
    """clsact, learn, enforce, bypass, then what is no longer wanted, in the reverse order."""
    batch = Batch()
    hooks = tc.ingress_qdiscs(ipr)
    for ifindex in dict.fromkeys(place.ifindex for place in record.places):
        if ifindex not in hooks:
            batch.add_clsact(ifindex)
    for place in record.places:
        role = place.role
        batch.replace_filter(place.ifindex, role.hook, role.program, loaded.programs[role])
    kept = {(place.ifindex, place.role.hook) for place in record.places}
    left = {
        place: each
        for place, each in before.filters.items()
        if (place.ifindex, place.role.hook) not in kept
    }
    unused = before.clsact - {place.ifindex for place in record.places}
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


def _apply(ipr: IPRoute, changes: Batch, before: Found) -> None:
    """Send the changes. Raises MohError, with the state before restored, if one fails."""
    hooks = tc.ingress_qdiscs(ipr)
    with ExitStack() as stack:
        programs = {
            place: stack.enter_context(registry.open_program(each.program_id or 0))[0]
            for place, each in before.filters.items()
        }
        try:
            errors = changes.send()
        except BaseException:
            _restore(ipr, programs, hooks)
            raise
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


def _warnings(ipr: IPRoute, plan: Plan, record: Record) -> list[str]:
    return [*_warn_of_nat(plan), *_warn_of_filters(ipr, record), *_warn_of_macvlans(ipr, plan)]


def _warn_of_nat(plan: Plan) -> list[str]:
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


def _warn_of_filters(ipr: IPRoute, record: Record) -> list[str]:
    """A filter before ours that accepts or drops a packet hides it from us."""
    return [
        f"{registry.interface_name(place.ifindex)} {each.hook}: a {each.kind} filter at priority "
        f"{each.priority} runs before {place.role}, which sees only what that lets go on"
        for place in record.places
        for each in tc.filters(ipr, place.ifindex)
        if each.hook is place.role.hook and each.priority < tc.PRIORITY
    ]


def _warn_of_macvlans(ipr: IPRoute, plan: Plan) -> list[str]:
    """Where UCM's gateway is a macvlan (VRRP), its packets are not for the interface below."""
    return [
        f"{name} is a macvlan on {each.name}: what is sent to its MAC comes in by {name} alone. "
        f"If UCM's gateway address is there (VRRP), name it: --lan {name}"
        for each in plan.lan
        for name in network.macvlans_on(ipr, each.index)
        if name not in plan.settings.lan
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
            _wait_for(fd, notify)
        yield
    finally:
        os.close(fd)


def _wait_for(lock: int, notify: Notify) -> None:
    """Wait for the lock, unless somebody else than root has it: that is none of our commands, for
    they need root, and must not keep root from detaching."""
    holder = _holder(os.fstat(lock).st_ino)
    if holder and _user(holder) != 0:
        notify(f"process {holder}, which is not root's, locks this network namespace: ignored")
        return
    notify(f"waiting for another moh-ebpf{f' (process {holder})' if holder else ''} to finish")
    fcntl.flock(lock, fcntl.LOCK_EX)


def _holder(inode: int) -> int | None:
    """The process that holds the lock, from /proc/locks (proc_locks(5))."""
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def _user(process: int) -> int:
    """A process's user; root's, 0, if it has ended meanwhile."""
    try:
        return Path(f"/proc/{process}").stat().st_uid
    except FileNotFoundError:
        return 0
