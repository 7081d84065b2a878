"""The packets that netfilter is to treat well: which they are, in its own terms. Pure."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from moh_ebpf.doctor import rules
from moh_ebpf.doctor.facts import Facts
from moh_ebpf.doctor.rules import Packets, Range


def port_range(low: int, high: int) -> tuple[Range, ...]:
    return ((low, high),)


def host_range(address: IPv4Address) -> Range:
    return int(address), int(address)


def _of(network: IPv4Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)


_ALL = (rules.of_network("0.0.0.0/0"),)


def _global() -> tuple[Range, ...]:
    """All addresses that may be a provider's where none is named."""
    nowhere = sorted(
        rules.of_network(each)
        for each in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16",
                     "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")
    )  # fmt: skip
    starts = [0, *(high + 1 for _, high in nowhere)]
    ends = [*(low - 1 for low, _ in nowhere), (1 << 32) - 1]
    return tuple((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


def _far(facts: Facts) -> tuple[tuple[Range, ...], bool]:
    """The provider's addresses, as far as they are known, and whether that is not far."""
    if facts.settings.provider:
        return tuple(map(_of, facts.settings.provider)), False
    live = tuple(host_range(each.address) for each in facts.targets if each.heard_on)
    return (live, False) if live else (_global(), True)


def inbound(facts: Facts, wan: str, state: str = "new") -> Packets:
    """RTP from the provider that comes in by a WAN to UCM's ports at the public addresses."""
    far, anybody = _far(facts)
    ports = facts.settings.rtp_ports
    return Packets(
        iif=wan,
        saddr=far,
        daddr=tuple(map(host_range, facts.settings.public)),
        sport=port_range(1024, 65535),
        dport=port_range(ports.low, ports.high),
        state=state,
        anybody="saddr" if anybody else "",
    )


def to_phantom_ports(facts: Facts, wan: str) -> Packets:
    """By a WAN that need not be there, and have an address."""
    packets = inbound(facts, wan)
    return replace(packets, dport=(phantom_ports(facts),), daddr=packets.daddr or _ALL)


def outbound(facts: Facts) -> Iterator[Packets]:
    """RTP to the provider, of each UCM by each way: each may have rules of its own."""
    far, anybody = _far(facts)
    ports = facts.settings.rtp_ports
    ways = itertools.product(facts.wan_names, facts.lan_names or [""], facts.settings.ucm)
    for wan, lan, ucm in ways:
        yield Packets(
            iif=lan,
            oif=wan,
            saddr=(host_range(ucm),),
            daddr=far,
            sport=port_range(ports.low, ports.high),
            dport=port_range(1024, 65535),
            anybody="daddr" if anybody else "",
        )


def phantom_ports(facts: Facts) -> Range:
    ports = facts.settings.phantom_ports
    return ports[0], ports[-1]
