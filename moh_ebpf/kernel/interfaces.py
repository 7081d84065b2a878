"""What attach must know of the interfaces it is told to use: asked of the kernel, by netlink."""

import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.errors import UsageError
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.settings import Settings

# Link types (linux/if_arp.h): those with IP behind them. "None" is that of tun, WireGuard and xfrm.
_ETHERNET, _PPP, _RAW_IP, _TUNNEL, _GRE, _NONE = 1, 512, 519, 768, 778, 65534
_IP_TYPES = {_ETHERNET, _PPP, _RAW_IP, _TUNNEL, _GRE, _NONE}
_LOOPBACK = 772

# Of the types that have no link header of their own, the kinds whose packets never have another's.
# IPIP and GRE bring what the packet was taken out of (on Linux 5.10), multipoint GRE always;
# on xfrm and vti the kernel puts the Ethernet header back before a packet that came by ESP.
_BARE_KINDS = {"tun", "wireguard"}
_ETHERNET_HEADER = 14
_REORDER_HDR = 0x1  # linux/if_vlan.h
_IPVLAN_MODE_L3S = 2  # linux/if_link.h

_IFF_UP = 0x1
_GROUPS = {"bond", "team"}
_PORT_MASTERS = {"bridge", *_GROUPS}
_STACKED = {"vlan", "macvlan", "ipvlan"}  # a veth names its other end as its link, too


@dataclass(frozen=True)
class Interface:
    """An interface; `link_header` in bytes, None where each packet must be asked; `master` the
    bridge, bond or team it is a port of."""

    index: int
    name: str
    link_header: int | None
    addresses: tuple[IPv4Address, ...]
    master: str | None


def links_by_name(ipr: IPRoute) -> Mapping[str, Any]:
    """This namespace's links, as netlink tells them, by name and by each altname. A dump: with
    hundreds of them, ask once."""
    links = whole(ipr.get_links)
    by_altname = {name: link for link in links for name in _altnames(link)}
    return {_name(link): link for link in links} | by_altname


def _name(link: Any) -> str:
    return str(link.get_attr("IFLA_IFNAME"))


def _altnames(link: Any) -> list[str]:
    properties = link.get_attr("IFLA_PROP_LIST")
    return properties.get_attrs("IFLA_ALT_IFNAME") if properties else []


def with_present_names(links: Mapping[str, Any], settings: Settings) -> Settings:
    """The settings with each interface by its name, where it is given by an altname, and once."""

    def present(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_name(links[name]) if name in links else name for name in names))

    return replace(settings, wan=present(settings.wan), lan=present(settings.lan))


def usable(
    links: Mapping[str, Any], names: Iterable[str], may_be_down: Collection[int]
) -> set[str]:
    """Those of the named interfaces that are there, and up, or of these ifindexes."""
    return {name for name in names if name in links and _is_usable(links[name], may_be_down)}


def _is_usable(link: Any, may_be_down: Collection[int]) -> bool:
    return bool(link["flags"] & _IFF_UP) or link["index"] in may_be_down


def named(
    ipr: IPRoute,
    links: Mapping[str, Any],
    option: str,
    names: Iterable[str],
    may_be_down: Collection[int] = frozenset(),
) -> list[Interface]:
    """The named interfaces of these links. Raises UsageError: no such one, not carrying IP, of a
    kind on which the programs would see none, or down and none of the ifindexes that may be."""
    by_index = {link["index"]: link for link in links.values()}
    found = []
    for name in names:
        link = links.get(name)
        if link is None:
            there = dict.fromkeys(map(_name, links.values()))
            raise UsageError(
                f"{option} {name}: there is no such interface here; there are {', '.join(there)}"
            )
        if link["ifi_type"] == _LOOPBACK:
            raise UsageError(
                f"{option} {name}: that is the loopback interface, which neither the provider nor "
                "UCM is behind; `ip -br addr` lists the others"
            )
        if link["ifi_type"] not in _IP_TYPES:
            raise UsageError(
                f"{option} {name}: its link type ({link['ifi_type']}) carries no IP that we can "
                "read; Ethernet, VLAN, bridge, bond, PPP, tun, WireGuard, xfrm, vti, GRE and IPIP "
                "interfaces do"
            )
        if blind := why_blind(link, links.values(), option):
            why, remedy = blind
            raise UsageError(f"{option} {name}: {why}", remedy)
        if not _is_usable(link, may_be_down):
            raise UsageError(f"{option} {name}: it is down", f"ip link set {name} up")
        found.append(
            Interface(
                index=link["index"],
                name=name,
                link_header=link_header_of(link, links.values()),
                addresses=_addresses(ipr, link["index"]),
                master=_port_of(by_index.get(link.get_attr("IFLA_MASTER"))),
            )
        )
    return found


def _addresses(ipr: IPRoute, ifindex: int) -> tuple[IPv4Address, ...]:
    addresses = []
    for message in whole(lambda: ipr.get_addr(family=2, index=ifindex)):
        # On a point-to-point link, IFA_ADDRESS is the other end's.
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        addresses.append(IPv4Address(text))
    return tuple(addresses)


def _port_of(master: Any) -> str | None:
    """The master's name if it takes its ports' packets over; a VRF does not."""
    if master is None or _kind(master) not in _PORT_MASTERS:
        return None
    return _name(master)


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return info.get_attr("IFLA_INFO_KIND") if info else None


def _of_kind(link: Any, attribute: str) -> Any:
    """What the link's kind has of its own; None if it has no such thing."""
    info = link.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return data.get_attr(attribute) if data else None


def why_blind(link: Any, links: Collection[Any], option: str) -> tuple[str, str] | None:
    """Why learn and bypass would see none of the packets that come in by it, and what to do."""
    kind = _kind(link)
    if kind == "vrf":
        ports = [
            each.get_attr("IFLA_IFNAME")
            for each in links
            if each.get_attr("IFLA_MASTER") == link["index"]
        ]
        return (
            "that is a VRF, and packets come in by its ports alone",
            f"those that are meant, of {', '.join(ports) or 'which it has none yet'}",
        )
    if kind == "ifb":
        return (
            "that is an IFB, which only shapes what another interface has received",
            "the interface whose packets are redirected to it",
        )
    if kind == "ipvlan" and _of_kind(link, "IFLA_IPVLAN_MODE") == _IPVLAN_MODE_L3S:
        return (
            "that is an ipvlan in mode l3s, whose packets come in past tc",
            f"ip link set {link.get_attr('IFLA_IFNAME')} type ipvlan mode l3",
        )
    if kind == "ipvlan" and option == "--lan":
        return (
            "that is an ipvlan, which is given only what is sent to its own addresses",
            "the interface below it, by which UCM's packets come in",
        )
    return None


def link_header_of(link: Any, links: Collection[Any]) -> int | None:
    if link["ifi_type"] == _ETHERNET:
        return None if _keeps_tags(link, links) else _ETHERNET_HEADER
    return 0 if link["ifi_type"] == _PPP or _kind(link) in _BARE_KINDS else None


def _keeps_tags(link: Any, links: Collection[Any]) -> bool:
    """Is it a VLAN that leaves its tag in the packet, or on top of one?"""
    if _kind(link) == "vlan":
        flags = _of_kind(link, "IFLA_VLAN_FLAGS")  # the kernel leaves it out if none is set
        if not flags or not flags["flags"] & _REORDER_HDR:
            return True
    return any(_keeps_tags(each, links) for each in links if _is_below(each, link))


def _is_below(lower: Any, upper: Any) -> bool:
    """Are the upper link's packets the lower one's, with its link header? In this namespace."""
    if _kind(upper) in _GROUPS:
        return bool(lower.get_attr("IFLA_MASTER") == upper["index"])
    return _kind(upper) in _STACKED and lower["index"] == _link_of(upper)


def _link_of(link: Any) -> int | None:
    """The interface that it names as its link, if that is in this namespace."""
    is_elsewhere = link.get_attr("IFLA_LINK_NETNSID") is not None
    return None if is_elsewhere else link.get_attr("IFLA_LINK")


def macvlans_on(ipr: IPRoute, ifindex: int) -> list[str]:
    """The names of the macvlan and ipvlan interfaces on top of an interface."""
    return [_name(link) for link in whole(ipr.get_links) if _comes_in_by(link) == ifindex]


def _comes_in_by(link: Any) -> int | None:
    """The interface by whose tc the packets of a macvlan or ipvlan have come in."""
    return _link_of(link) if _kind(link) in ("macvlan", "ipvlan") else None


def entrances(ipr: IPRoute) -> dict[str, list[int]]:
    """By the name of each interface, the ifindexes of those by whose tc came in what the stack sees
    on it: its own, and of what it is a macvlan on."""
    links = {link["index"]: link for link in whole(ipr.get_links)}
    return {_name(link): _entrances_of(link, links) for link in links.values()}


def _entrances_of(link: Any, links: Mapping[int | None, Any]) -> list[int]:
    found = list[int]()
    while link is not None and link["index"] not in found:
        found.append(link["index"])
        link = links.get(_comes_in_by(link))
    return found


def where_seen_again(ipr: IPRoute) -> dict[int, int]:
    """By ifindex, the interface on which the same packets are seen, and where tc has them all: of a
    port of a bridge, bond or team its master, of a macvlan or ipvlan the one below."""
    links = {link["index"]: link for link in whole(ipr.get_links)}
    again = dict[int, int]()
    for index, link in links.items():
        master = link.get_attr("IFLA_MASTER")
        there = master if _port_of(links.get(master)) else _comes_in_by(link)
        if there is not None and there in links:
            again[index] = int(there)
    return again


def all_names(ipr: IPRoute) -> dict[int, str]:
    """The interfaces' names by ifindex."""
    return {link["index"]: _name(link) for link in whole(ipr.get_links)}


def all_addresses(ipr: IPRoute) -> dict[IPv4Address, int]:
    """This machine's own IPv4 addresses, each with the ifindex that has it."""
    found = whole(lambda: ipr.get_addr(family=2))
    return {IPv4Address(each.get_attr("IFA_LOCAL")): each["index"] for each in found}


# The name of an interface that is there no more.
GONE = "(gone)"


def interface_name(ifindex: int) -> str:
    """An interface's present name; GONE if there is none any more."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return GONE
