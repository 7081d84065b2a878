"""Checks of routes and neighbours."""

from moh_ebpf.doctor.check import Findings, check
from moh_ebpf.doctor.facts import Facts, Route, Target
from moh_ebpf.doctor.findings import Level
from moh_ebpf.kernel.routes import ANYWHERE


@check("forwarding", "packets are forwarded", "usable", "addresses")
def forwarding(facts: Facts) -> Findings:
    """The kernel asks the interface that a packet comes in by."""
    if set(facts.settings.ucm) <= facts.addresses.keys():
        return  # UCM on the firewall itself
    names = [*facts.lan_names, *(each.name for each in facts.wan if not each.master)]
    for name in names:
        setting = f"net.ipv4.conf.{name}.forwarding"
        if facts.sysctls.get(setting) == 0:
            everywhere = facts.sysctls.get("net.ipv4.ip_forward") == 0
            yield (
                # Without a LAN, it may be a bridge that does it.
                Level.ERROR if facts.lan else Level.NOTE,
                f"packets that come in by {name} are not forwarded",
                ("net.ipv4.ip_forward = 0, " if everywhere else "") + f"{setting} = 0",
                "sysctl -w net.ipv4.ip_forward=1" if everywhere else f"sysctl -w {setting}=1",
            )


def _is_strict(facts: Facts, name: str) -> str:
    """The setting that makes reverse path filtering strict there; empty if it is not."""
    names = [f"net.ipv4.conf.{name}.rp_filter", "net.ipv4.conf.all.rp_filter"]
    values = [facts.sysctls.get(each, 0) for each in names]
    return names[values.index(1)] if max(values) == 1 else ""


@check("rp-filter", "reverse path filtering drops nothing of ours", "usable", "routes")
def rp_filter(facts: Facts) -> Findings:
    """tc sees a packet before that, so hold music is learned all the same; two-way calls are
    one-way. No packet says so: the kernel drops it as a martian."""
    for name in facts.wan_names:
        strict = _is_strict(facts, name)
        for target in facts.targets if strict else ():
            if (target.address, name) not in facts.back:
                continue
            route = facts.back[target.address, name]
            # Where nothing is known of the provider, another uplink may have it all to itself.
            if (route and route.interface == name) or (not target.heard_on and len(facts.wan) < 2):
                continue
            yield (
                Level.WARNING,
                f"reverse path filtering is strict on {name}: two-way RTP of {_named(target)} that "
                "comes in there is dropped, for the way back is another",
                f"{strict} = 1; {route.said if route else f'no route to {target.address}'}",
                f"sysctl -w net.ipv4.conf.{name}.rp_filter=2",
            )
            break
    for name in facts.lan_names:
        strict = _is_strict(facts, name)
        ways = {address: facts.routes.get(address) for address in facts.settings.ucm}
        for address, route in ways.items() if strict else ():
            if route and route.interface not in facts.lan_names:
                yield (
                    Level.WARNING,
                    f"reverse path filtering is strict on {name}: packets of UCM's {address} that "
                    "come in there are dropped, for the way back is another",
                    f"{strict} = 1; {route.said}",
                    f"ip route add {address} dev {name}, or sysctl -w "
                    f"net.ipv4.conf.{name}.rp_filter=2",
                )


@check("ucm-route", "UCM is where it should be", "usable", "routes")
def ucm_route(facts: Facts) -> Findings:
    for address in facts.settings.ucm:
        if address in facts.addresses:
            continue  # UCM on the firewall itself
        route = facts.routes.get(address)
        if route is None:
            yield (
                Level.WARNING,
                f"there is no route to UCM's {address}",
                f"ip route get {address}: unreachable",
                f"ip route add {address} dev {[*facts.lan_names, *facts.wan_names][0]}",
            )
        elif not facts.lan:
            if route.gateway and route.gateway in _gateways(facts):
                yield (
                    Level.NOTE,
                    f"UCM's {address} is where the provider is, by the same gateway: right if that "
                    "is the way to both",
                    route.said,
                    "name the interface that UCM's packets come in by: --lan IF; or route it there",
                )
        elif route.interface in facts.wan_names and _is_exchanged(facts):
            yield (
                Level.WARNING,
                f"UCM's {address} is behind {route.interface}, and the provider is not: --wan and "
                "--lan seem to be exchanged",
                route.said,
                f"--wan {' '.join(facts.lan_names)} --lan {' '.join(facts.wan_names)}",
            )
        elif route.interface not in facts.lan_names:
            yield (
                Level.WARNING,
                f"UCM's {address} is not behind --lan {' '.join(facts.lan_names)}: its packets "
                "probably come in elsewhere, where bypass does not see them",
                route.said,
                f"name that interface: --lan {' '.join([*facts.lan_names, route.interface])}"
                if route.interface not in facts.wan_names
                else f"route it to the LAN: ip route add {address} dev {facts.lan_names[0]}",
            )


def _is_exchanged(facts: Facts) -> bool:
    """Are the provider's addresses where UCM should be?"""
    return any(route.interface in facts.lan_names for route in _to_the_provider(facts))


def _gateways(facts: Facts) -> set[str | None]:
    """The provider's addresses are behind them."""
    return {route.gateway for route in _to_the_provider(facts)}


def _to_the_provider(facts: Facts) -> list[Route]:
    routes = [facts.routes.get(target.address) for target in facts.targets]
    return [route for route in routes if route]


def _named(target: Target) -> str:
    if target.address == ANYWHERE and not target.network and not target.heard_on:
        return "any global address"
    return f"the provider's {target.network or target.address}"


@check("wan-route", "the provider is behind a WAN", "usable", "routes")
def wan_route(facts: Facts) -> Findings:
    for target in facts.targets:
        route = facts.routes.get(target.address)
        known = bool(target.heard_on or target.network)
        if route is None:
            yield (
                Level.ERROR if known else Level.WARNING,
                f"there is no route to {_named(target)}",
                f"ip route get {target.address}: unreachable",
                f"ip route add default via GATEWAY dev {facts.wan_names[0]}",
            )
        elif route.interface not in facts.wan_names:
            yield (
                Level.WARNING,
                f"the route to {_named(target)} is by {route.interface}, no --wan",
                route.said,
                f"name it as well: --wan {' '.join([*facts.wan_names, route.interface])}",
            )


@check("wan-neighbour", "no next hop on a WAN has failed", "usable", "neighbours")
def wan_neighbour(facts: Facts) -> Findings:
    for address, name, state in facts.failed:
        yield (
            Level.ERROR,
            f"{address}, the next hop on {name}, does not answer",
            f"ip neigh show {address} dev {name}: {state}",
            f"look at the link and the addresses: ip addr show dev {name}",
        )
