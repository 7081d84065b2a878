"""Where the kernel would send a packet: asked by netlink."""

from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from moh_ebpf.kernel.netlink import whole

# Stands for "any global address" where no provider is known: nothing is sent there.
ANYWHERE = IPv4Address("9.9.9.9")


def route_to(ipr: IPRoute, address: IPv4Address, source: IPv4Address | None = None) -> Any:
    """The route there, from one of our addresses, as netlink tells it; None if there is none."""
    options = {"src": str(source)} if source else {}
    try:
        (found, *_) = ipr.route("get", dst=str(address), **options)
    except NetlinkError:
        return None
    return found


def way_to(ipr: IPRoute, address: IPv4Address) -> int | None:
    """The ifindex of the interface by which an address is reached; None: there is no route."""
    route = route_to(ipr, address)
    return int(route.get_attr("RTA_OIF")) if route and route.get_attr("RTA_OIF") else None


def is_direct(ipr: IPRoute, address: IPv4Address) -> bool:
    """Is it reached without a gateway?"""
    route = route_to(ipr, address)
    return route is not None and not (route.get_attr("RTA_GATEWAY") or route.get_attr("RTA_VIA"))


def way_of(ipr: IPRoute, address: IPv4Address, source: IPv4Address, iif: int) -> int | None:
    """The ifindex by which a packet leaves that comes in by `iif`; None: it is not forwarded."""
    try:
        (route, *_) = ipr.route("get", dst=str(address), src=str(source), iif=iif)
    except NetlinkError:
        return None
    return int(route.get_attr("RTA_OIF") or 0) or None


def has_rules_by_mark(ipr: IPRoute) -> bool:
    """Does a rule of this namespace's routing ask for a mark?"""
    return any(rule.get_attr("FRA_FWMARK") for rule in whole(lambda: ipr.get_rules(family=2)))
