"""Questions to routing: where packets would go, and who answers there."""

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.calls.peers import Snapshot
from moh_ebpf.doctor.facts import Route, Target
from moh_ebpf.kernel import routes
from moh_ebpf.kernel.interfaces import Interface, interface_name
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.kernel.routes import ANYWHERE
from moh_ebpf.settings import Settings

_NUD_INCOMPLETE, _NUD_FAILED = 0x01, 0x20  # linux/neighbour.h
# The kernel asks for a neighbour's address once a second: who leaves a second request unanswered as
# well is not there.
_UNANSWERED_SECONDS = 1.5
MOST_ASKED = 64  # addresses of each kind whose routes are looked up


def addresses_of(targets: Iterable[Target]) -> list[IPv4Address]:
    return [each.address for each in targets]


def targets_of(settings: Settings, after: Snapshot | None) -> list[Target]:
    """Who is live now, each network's first address, or any address at all."""
    live = [
        Target(IPv4Address(each.address), "", each.interface, IPv4Address(each.public_address))
        for each in (after.peers if after else [])
        if not each.expired
    ][:MOST_ASKED]
    networks = [
        Target(each.network_address + (each.prefixlen < 31), str(each))
        for each in settings.provider[:MOST_ASKED]
    ]
    return [*live, *networks] or [Target(ANYWHERE)]


def _route(ipr: IPRoute, address: IPv4Address, source: IPv4Address | None = None) -> Route | None:
    """The route there, from one of our addresses; None if there is none."""
    found = routes.route_to(ipr, address, source)
    if found is None:
        return None
    name = interface_name(found.get_attr("RTA_OIF") or 0)
    gateway = found.get_attr("RTA_GATEWAY")
    said = f"ip route get {address}{f' from {source}' if source else ''}: " + (
        f"via {gateway} dev {name}" if gateway else f"dev {name}"
    )
    return Route(name, gateway, said)


def routes_to(ipr: IPRoute, addresses: Iterable[IPv4Address]) -> dict[IPv4Address, Route | None]:
    return {each: _route(ipr, each) for each in addresses}


def routes_back(
    ipr: IPRoute,
    wan: Sequence[Interface],
    targets: Sequence[Target],
    addresses: Mapping[IPv4Address, str],
) -> dict[tuple[IPv4Address, str], Route | None]:
    """The way that reverse path filtering would take from each WAN's address to each target, by
    target and WAN. A live endpoint's WAN is known; others might come in by any."""
    found = {}
    for target in targets:
        for each in wan:
            if target.heard_on not in ("", each.name):
                continue
            own = [address for address in each.addresses if address in addresses]
            source = target.public if target.public in addresses else next(iter(own), None)
            found[target.address, each.name] = _route(ipr, target.address, source)
    return found


class Gateways:
    """The gateways of the WANs, and which do not answer."""

    def __init__(self, ipr: IPRoute, wan: Mapping[int, str]) -> None:
        self._ipr, self._wan = ipr, wan

    def failed(self, targets: Sequence[Target]) -> list[tuple[str, str, str]]:
        """Their addresses, interfaces and states; those of live endpoints without a gateway too.

        While somebody sends, a neighbour is FAILED for a moment only: the next packet makes it
        INCOMPLETE again, as one that is merely being asked for. Which, a second look tells.
        """
        next_hops = self._next_hops(targets)
        failed, asked_for = self._states(next_hops)
        silent = [(*each, "FAILED") for each in failed]
        if asked_for:
            time.sleep(_UNANSWERED_SECONDS)
            still = asked_for & set().union(*self._states(next_hops))
            silent += [(*each, f"INCOMPLETE for {_UNANSWERED_SECONDS:g} s") for each in still]
        return sorted(silent)

    def _next_hops(self, targets: Sequence[Target]) -> set[tuple[str, str]]:
        next_hops = {(str(each.address), each.heard_on) for each in targets if each.heard_on}
        for message in whole(lambda: self._ipr.get_routes(family=socket.AF_INET)):
            for hop in (message, *(message.get_attr("RTA_MULTIPATH") or ())):
                index = hop.get_attr("RTA_OIF") or _multipath_index(hop)
                name = self._wan.get(index, "")
                if name and hop.get_attr("RTA_GATEWAY"):
                    next_hops.add((hop.get_attr("RTA_GATEWAY"), name))
        return next_hops

    def _states(self, among: set[tuple[str, str]]) -> list[set[tuple[str, str]]]:
        """Those of them that are FAILED, and those that are INCOMPLETE, at one moment."""
        seen = whole(lambda: self._ipr.get_neighbours(family=socket.AF_INET))
        return [
            among
            & {
                (message.get_attr("NDA_DST"), self._wan.get(message["ifindex"], ""))
                for message in seen
                if message["state"] & state
            }
            for state in (_NUD_FAILED, _NUD_INCOMPLETE)
        ]


def _multipath_index(hop: Any) -> int:
    """The ifindex of one of several next hops (struct rtnexthop); 0 for a route's own message.

    pyroute2's messages have a get() of another meaning.
    """
    return int(hop["oif"]) if "oif" in hop else 0
