"""What is no error, but may keep the programs from seeing the packets: attach points it out."""

from ipaddress import IPv4Network

from pyroute2 import IPRoute

from moh_ebpf import network, registry, tc
from moh_ebpf.compiler import Plan
from moh_ebpf.registry import Place, Record
from moh_ebpf.tc import Filter

# RFC 1918, and RFC 6598 of providers' own NAT.
_PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
)


def found(ipr: IPRoute, plan: Plan, record: Record) -> list[str]:
    """One sentence for each, with what to do about it."""
    return [
        *_unseen_behind_nat(plan),
        *_private_providers(plan),
        *_earlier_filters(ipr, record),
        *_tcx_programs(record),
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


def _private_providers(plan: Plan) -> list[str]:
    """A WAN with a private address may lead to a private provider, over a VPN for instance."""
    private = [
        str(address)
        for address in plan.settings.public
        if any(address in network for network in _PRIVATE)
    ]
    if not private or plan.settings.provider:
        return []
    return [
        f"the public address {' or '.join(private)} is a private one: an endpoint of a provider's "
        "that has a private address, too (RFC 1918), is never learned and gets no music, unless "
        "its network is named; see: --provider CIDR"
    ]


def _earlier_filters(ipr: IPRoute, record: Record) -> list[str]:
    """A filter before ours that accepts or drops a packet hides it from us."""
    return [
        f"{registry.interface_name(place.ifindex)} {each.hook}: a {each.kind} filter at priority "
        f"{each.priority} runs before {place.role}, which sees only what that lets go on"
        for place in record.places
        for each in earlier_filters(ipr, place)
    ]


def earlier_filters(ipr: IPRoute, place: Place) -> list[Filter]:
    """Filters that run before ours there; of one classifier with several, such as u32 with its hash
    tables, one."""
    by_priority = {
        (each.priority, each.kind, each.name): each
        for each in tc.filters(ipr, place.ifindex)
        if each.hook is place.role.hook and each.priority < tc.PRIORITY
    }
    return list(by_priority.values())


def _tcx_programs(record: Record) -> list[str]:
    """TCX programs run before all filters: what they accept or drop is hidden from us."""
    return [
        f"{registry.interface_name(place.ifindex)} {place.role.hook}: the TCX program {name} runs "
        f"before {place.role}, which sees only what that lets go on; see: bpftool net"
        for place in record.places
        for name in registry.tcx_names(place.ifindex, place.role.hook)
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
