"""On which side of the firewall a packet was seen, for who hears it beside the stack."""

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from enum import Enum
from functools import cache
from ipaddress import IPv4Address
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from moh_ebpf.kernel.interfaces import all_addresses, entrances
from moh_ebpf.kernel.routes import way_to

T = TypeVar("T")


class Side(Enum):
    """What an interface leads to."""

    WAN = "wan"
    LAN = "lan"


class Sides:
    """Asked of the kernel, and asked again ten seconds later, or for a new interface after one:
    keepalived makes macvlans on our interfaces and takes addresses, and nothing is attached anew
    for that. Where it cannot be asked, there is nothing."""

    _SECONDS, _SECONDS_FOR_NEW = 10.0, 1.0

    def __init__(
        self, wan: Collection[int], lan: Collection[int], ucm: Collection[IPv4Address]
    ) -> None:
        """The interfaces are ifindexes."""
        self._wan, self._lan, self._ucm = wan, lan, ucm
        self._begin()

    def of(self, interface: str) -> Side | None:
        """The side of an interface of this name, or of the one that it is a macvlan on; None: it is
        on neither. What comes in by a macvlan, tc has seen on the interface below."""
        self._forget()
        found = self._found()
        if interface not in found:
            self._forget(self._SECONDS_FOR_NEW)
            found = self._found()
        return found.get(interface)

    def is_own(self, address: bytes) -> bool:
        """Is it one of this machine's? IPv4, 4 bytes."""
        self._forget()
        return address in self._own()

    def has_lan(self) -> bool:
        """Does UCM speak by another interface than the provider? Without a LAN among the settings,
        the routes say so."""
        self._forget()
        return bool(self._lans())

    def _forget(self, after: float | None = None) -> None:
        after = self._SECONDS if after is None else after
        if time.monotonic() >= self._begun + after:
            self._begin()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._found = cache(self._found_now)
        self._own = cache(_own_addresses)
        self._lans = cache(self._lans_now)

    def _found_now(self) -> dict[str, Side | None]:
        """By name, also of those that are on neither."""
        found = _ask(entrances, dict[str, list[int]]())
        return {name: self._side_of(indexes) for name, indexes in found.items()}

    def _side_of(self, indexes: Iterable[int]) -> Side | None:
        for index in indexes:
            if index in self._wan:
                return Side.WAN
            if index in self._lans():
                return Side.LAN
        return None

    def _lans_now(self) -> set[int | None]:
        if self._lan:
            return set(self._lan)
        ways = _ask(lambda ipr: {way_to(ipr, each) for each in self._ucm}, set[int | None]())
        return ways - {None, *self._wan}


def _own_addresses() -> set[bytes]:
    return {each.packed for each in _ask(all_addresses, dict[IPv4Address, int]())}


def _ask(question: Callable[[IPRoute], T], nothing: T) -> T:
    with suppress(NetlinkError, OSError), IPRoute() as ipr:
        return question(ipr)
    return nothing
