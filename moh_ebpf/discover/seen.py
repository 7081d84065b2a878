"""What was seen on a firewall: flows, SIP, and what the machine says of itself. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address
from typing import NamedTuple

from moh_ebpf.kernel.capture import Segment

# Packets that follow each other in sequence, of a flow that is RTP and does not only look so.
_FEWEST_IN_SEQUENCE = 2


class Traffic(IntEnum):
    """enum traffic in bpf/flows.c."""

    RTP = 0
    RTCP = 1
    SIP = 2
    TLS = 3


class End(NamedTuple):
    """An address and a port."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Flow:
    """Packets of one kind from one end to another, as they passed an interface (its ifindex) in
    one direction. Times in seconds since the beginning; `longest_gap` between two packets."""

    interface: int
    is_outgoing: bool
    traffic: Traffic
    source: End
    destination: End
    first: float
    last: float
    longest_gap: float
    packets: int
    followed: int

    @property
    def is_stream(self) -> bool:
        return self.traffic is Traffic.RTP and self.followed >= _FEWEST_IN_SEQUENCE


class Captured(NamedTuple):
    """A packet of SIP. Its time is in seconds since the beginning."""

    segment: Segment
    is_outgoing: bool
    time: float


@dataclass(frozen=True)
class Surroundings:
    """`names` of interfaces by ifindex, also of those that have gone; `own` addresses, and by which
    interface the routes lead to others: `ways`, those without a gateway `direct`, and `default` to
    any. `again`: where the packets of another are seen as well, and the programs belong: for a port
    of a bridge or bond, that; for a macvlan, the interface below it."""

    names: Mapping[int, str]
    own: Mapping[IPv4Address, int]
    ways: Mapping[IPv4Address, int]
    default: int | None = None
    again: Mapping[int, int] = field(default_factory=dict)
    direct: frozenset[IPv4Address] = frozenset()


@dataclass(frozen=True)
class Sighting:
    """`not_counted`: by its reason, what is not in here. `is_ended_early`: somebody was in a
    hurry."""

    seconds: float
    flows: tuple[Flow, ...]
    heard: tuple[Captured, ...]
    host: Surroundings
    not_counted: Mapping[str, int] = field(default_factory=dict)
    is_ended_early: bool = False
