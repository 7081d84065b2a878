"""What is no error, but may keep the programs from seeing the packets: attach points it out."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyroute2 import IPRoute

from moh_ebpf.attach.plan import Plan
from moh_ebpf.kernel import interfaces, routes
from moh_ebpf.kernel.nat import source_nat
from moh_ebpf.kernel.routes import ANYWHERE
from moh_ebpf.registry import earlier
from moh_ebpf.registry.record import Record

_MOST_ASKED = 64  # provider networks whose routes are looked up

# RFC 1918, and RFC 6598 of providers' own NAT.
_PRIVATE = tuple(
    map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
)


@dataclass(frozen=True)
class Caution:
    """What is found, and the commands to `see` it by. `evidence` and `remedy` are doctor's, where
    there are better ones than those commands; `where`: interface and hook that it is about."""

    what: str
    see: str = ""
    evidence: str = ""
    remedy: str = ""
    where: str = ""

    def __str__(self) -> str:
        """As attach says it."""
        return f"{self.what}; see: {self.see}" if self.see else self.what


def found(ipr: IPRoute, plan: Plan, record: Record) -> list[Caution]:
    """All of them, as far as the kernel tells."""
    return [
        *_unseen_behind_nat(plan),
        *_private_providers(plan),
        *_run_earlier(ipr, record),
        *_macvlans(ipr, plan),
        *_routed_by_mark(ipr, plan),
    ]


def exchanged(ipr: IPRoute, plan: Plan) -> list[str]:
    """With both named, UCM is behind the LAN."""
    wan, lan = ({each.index: each.name for each in some} for some in (plan.wan, plan.lan))
    return [
        f"UCM's {ucm} is behind {wan[way]}, which is named as --wan: are --wan and --lan "
        f"exchanged? See: ip route get {ucm}"
        for ucm in plan.settings.ucm
        if lan and (way := routes.way_to(ipr, ucm)) in wan and way not in lan
    ]


def _run_earlier(ipr: IPRoute, record: Record) -> Iterator[Caution]:
    """The evidence is all that runs there."""
    there = earlier.found(ipr, record)
    for each in there:
        same = [other.evidence for other in there if other.where == each.where]
        yield Caution(each.what, each.shown_by, evidence="; ".join(same), where=each.where)


def _unseen_behind_nat(plan: Plan) -> list[Caution]:
    """Attached without a LAN on a firewall that NATs, enforce would never see UCM's packets."""
    if plan.settings.lan or set(plan.settings.ucm) <= set(plan.settings.public):
        return []
    rule = source_nat()
    if rule is None:
        return []
    what = (
        f"this firewall rewrites source addresses ({rule}); UCM's packets reach the WAN no longer "
        "as UCM's, and enforce will not see them. Name the interface they come in by: --lan IF"
    )
    return [Caution(what, evidence=rule, remedy="name the LAN: --lan IF")]


def _private_providers(plan: Plan) -> list[Caution]:
    """A WAN with a private address may lead to a private provider, over a VPN for instance."""
    private = [
        str(address)
        for address in plan.settings.public
        if any(address in network for network in _PRIVATE)
    ]
    if not private or plan.settings.provider:
        return []
    what = (
        f"the public address {' or '.join(private)} is a private one: an endpoint of a provider's "
        "that has a private address, too (RFC 1918), is never learned and gets no music, unless "
        "its network is named"
    )
    return [Caution(what, "--provider CIDR")]


def _macvlans(ipr: IPRoute, plan: Plan) -> list[Caution]:
    """Where UCM's gateway is a macvlan (VRRP), its packets are not for the interface below."""
    return [
        Caution(
            f"{name} is a macvlan on {each.name}: what is sent to its MAC comes in by {name} "
            f"alone. If UCM's gateway address is there (VRRP), name it: --lan {name}"
        )
        for each in plan.lan
        for name in interfaces.macvlans_on(ipr, each.index)
        if name not in plan.settings.lan
    ]


def _routed_by_mark(ipr: IPRoute, plan: Plan) -> list[Caution]:
    """Bypass asks for the route before netfilter has set a mark. Where only a mark leads to a WAN,
    the stack has the hold music."""
    if not plan.lan or not routes.has_rules_by_mark(ipr):
        return []
    wan = {each.index for each in plan.wan}
    lan, ucm = plan.lan[0], plan.settings.ucm[0]
    return [
        Caution(
            f"a rule by mark (ip rule) may lead UCM's packets to {where} out of a --wan; without "
            "the mark they do not leave by one, so hold music is left to the stack. Rules by "
            f"address and interface are seen: ip rule add from {ucm} lookup TABLE",
            f"ip route get {address} from {ucm} iif {lan.name}",
        )
        for where, address in _providers(plan)
        if routes.way_of(ipr, address, ucm, lan.index) not in wan
    ]


def _providers(plan: Plan) -> list[tuple[str, IPv4Address]]:
    """Each network of the provider's with an address of it; any address where none is named."""
    networks = [
        (str(each), each.network_address + (each.prefixlen < 31)) for each in plan.settings.provider
    ]
    return networks[:_MOST_ASKED] or [("any global address", ANYWHERE)]
