"""What is no error, but may keep the programs from seeing the packets: attach points it out."""

from pyroute2 import IPRoute

from moh_ebpf import earlier, network
from moh_ebpf.compiler import Plan
from moh_ebpf.registry import Record


def found(ipr: IPRoute, plan: Plan, record: Record) -> list[str]:
    """One sentence for each, with what to do about it."""
    return [
        *_unseen_behind_nat(plan),
        *map(str, earlier.found(ipr, record)),
        *_macvlans(ipr, plan),
    ]


def exchanged(ipr: IPRoute, plan: Plan) -> list[str]:
    """With both named, UCM is behind the LAN."""
    wan, lan = ({each.index: each.name for each in some} for some in (plan.wan, plan.lan))
    return [
        f"UCM's {ucm} is behind {wan[way]}, which is named as --wan: are --wan and --lan "
        f"exchanged? See: ip route get {ucm}"
        for ucm in plan.settings.ucm
        if lan and (way := network.way_to(ipr, ucm)) in wan and way not in lan
    ]


def _unseen_behind_nat(plan: Plan) -> list[str]:
    """Attached without a LAN on a firewall that NATs, enforce would never see UCM's packets."""
    if plan.settings.lan or set(plan.settings.ucm) <= set(plan.settings.public):
        return []
    rule = network.source_nat()
    if rule is None:
        return []
    return [
        f"this firewall rewrites source addresses ({rule}); UCM's packets reach the WAN no longer "
        "as UCM's, and enforce will not see them. Name the interface they come in by: --lan IF"
    ]


def _macvlans(ipr: IPRoute, plan: Plan) -> list[str]:
    """Where UCM's gateway is a macvlan (VRRP), its packets are not for the interface below."""
    return [
        f"{name} is a macvlan on {each.name}: what is sent to its MAC comes in by {name} alone. "
        f"If UCM's gateway address is there (VRRP), name it: --lan {name}"
        for each in plan.lan
        for name in network.macvlans_on(ipr, each.index)
        if name not in plan.settings.lan
    ]
