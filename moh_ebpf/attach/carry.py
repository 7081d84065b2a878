"""What goes over from one attachment to the next: maps, live endpoints, each WAN's clock."""

from moh_ebpf import layout, maps
from moh_ebpf.attach import compiler
from moh_ebpf.attach.compiler import Loaded
from moh_ebpf.attach.plan import Plan
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.record import Record


def adopted_maps(plan: Plan, record: Record, before: Attached) -> dict[str, int]:
    """The maps that the programs go on with, by name."""
    change = maps.Change(
        before.record.settings,
        plan.settings,
        same_wans=_same_wans(record, before),
        same_room=before.maps.room_for_peers == compiler.peers_entries(plan.settings.max_peers),
    )
    return {
        row.name: before.maps.descriptor(row.name)
        for row in maps.of(plan.settings)
        if row.name in before.maps and row.is_adopted(change)
    }


def _same_wans(record: Record, before: Attached) -> bool:
    """Does each WAN keep its index? Then the programs can go on with the very maps, and not one
    packet falls between two of them."""
    return record.wan[: len(before.record.wan)] == before.record.wan


def _without(before: Attached | None, loaded: Loaded, name: str) -> Attached | None:
    """The attachment before, if it has such a map and the programs do not go on with it."""
    if before is None or name not in before.maps:
        return None
    return None if before.maps.is_shared(name, loaded.maps) else before


def carry_clocks(before: Attached | None, loaded: Loaded, record: Record) -> None:
    """Copy what is known of each WAN to its new index, if that is another map: a hold must not end
    because learn has not spoken to the new programs yet."""
    before = _without(before, loaded, "wans")
    if before is None:
        return
    for index, ifindex in enumerate(before.record.wan):
        if ifindex in record.wan:
            loaded.maps.put_wan(record.wan.index(ifindex), before.maps.wan(index))


def carry_over(
    before: Attached | None, loaded: Loaded, record: Record, copied: dict[bytes, bytes]
) -> dict[bytes, bytes]:
    """Copy live peers into the new map, and return them as they were copied. Called before the
    programs are swapped, and after, with what was `copied`, for what was learned meanwhile: what
    the new programs have heard since is later, and stays."""
    before = _without(before, loaded, "peers")
    if before is None:
        return {}
    now = kernel_ns()
    live_since = now - round(before.record.settings.timeout * 1e9)
    carried = {}
    for (address, port), (heard, last_seen, *rest) in before.maps.peers():
        key = layout.ENDPOINT.pack(address, port)
        moved = _move_to(heard, before.record, record)
        peer = layout.by_field((moved, last_seen, *rest))
        is_live = last_seen >= live_since or peer["signalled_until"] > now
        if moved is None or not is_live:
            continue
        # Its next hop is looked up anew, and what RTCP said is to be said again.
        nothing = bytes(layout.HEARD.size)
        peer |= {"hop_checked": 0, "hop_dst": 0, "hop_src": 0, "by_rtcp": nothing}
        peer["signalled"] = _move_to(peer["signalled"], before.record, record) or nothing
        value = carried[key] = layout.PEER.pack(*peer.values())
        if _heard(value) == _heard(copied.get(key)):
            continue
        if _heard(loaded.maps.peer(key)) == _heard(copied.get(key)):
            loaded.maps.put_peer(key, value)
    return carried


def _heard(peer: bytes | None) -> tuple[object, ...]:
    """What learn has stored last, and when."""
    if peer is None:
        return ()
    fields = layout.by_field(layout.PEER.unpack(peer))
    return tuple(fields[name] for name in ("heard", "last_seen", "signalled", "signalled_until"))


def _move_to(heard: bytes, old: Record, new: Record) -> bytes | None:
    """The same word with the WAN's index in the new record; None if that WAN is no longer one."""
    address, port, state, wan = layout.HEARD.unpack(heard)
    if wan == layout.NO_WAN or not state:
        return heard
    if wan >= len(old.wan) or old.wan[wan] not in new.wan:
        return None
    return layout.HEARD.pack(address, port, state, new.wan.index(old.wan[wan]))
