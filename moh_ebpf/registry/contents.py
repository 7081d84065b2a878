"""What is in the maps: their entries are read and written here alone."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any

from moh_ebpf import counters, layout
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.libbpf import Map

_FIRST = layout.index(0)

# A peer's struct endpoint and struct peer, or an endpoint and its struct waiting, unpacked.
Entry = tuple[tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True)
class Maps:
    """A program's maps by name: open descriptors, which whoever has opened them closes.

    Keys and values are those of layout.py. All methods raise OSError; KeyError if there is no such
    map, where nothing else is said.
    """

    opened: Mapping[str, Map]

    def __contains__(self, name: str) -> bool:
        return name in self.opened

    def close(self) -> None:
        """For who has opened them: not for a part or a copy of these."""
        for each in self.opened.values():
            os.close(each.fd)

    def without(self, names: Iterable[str]) -> "Maps":
        """The same descriptors, without these maps."""
        left_out = set(names)
        return Maps({name: each for name, each in self.opened.items() if name not in left_out})

    def copied(self, stack: ExitStack) -> "Maps":
        """Peers, counters and what signalling says, by descriptors of their own, open as long as
        the stack."""
        copies = {}
        for name in {"peers", "counters", "signalled"} & self.opened.keys():
            copies[name] = replace(self.opened[name], fd=os.dup(self.opened[name].fd))
            stack.callback(os.close, copies[name].fd)
        return Maps(copies)

    def descriptor(self, name: str) -> int:
        """For the kernel, while they are open."""
        return self.opened[name].fd

    def is_shared(self, name: str, other: "Maps") -> bool:
        """Have both the very same map by this name?"""
        return self.opened[name].id == other.opened[name].id

    # settings

    def settings(self) -> bytes:
        """The attachment's record, zeros at its end."""
        return libbpf.lookup(self.opened["settings"], _FIRST)

    def put_settings(self, data: bytes) -> None:
        """Raises MohError if it does not fit."""
        settings = self.opened["settings"]
        if len(data) > settings.value_size:
            raise MohError("the attachment's record has no room for that; attach anew")
        libbpf.update(settings, _FIRST, data.ljust(settings.value_size, b"\0"))

    # counters

    def counters(self) -> dict[str, int]:
        """Each counter, summed over the CPUs."""
        per_cpu = libbpf.lookup_per_cpu(self.opened["counters"], _FIRST)
        values = map(counters.VALUE.unpack, per_cpu)
        sums = dict(zip(counters.COUNTERS, map(sum, zip(*values, strict=True)), strict=True))
        return sums | dict.fromkeys(counters.RETIRED, 0)

    # peers

    @property
    def peers_id(self) -> int:
        """The kernel's id of the map of peers."""
        return self.opened["peers"].id

    @property
    def room_for_peers(self) -> int:
        """The map's size; 0 where there is none."""
        return self.opened["peers"].max_entries if "peers" in self else 0

    def peers(self) -> Iterator[Entry]:
        """Each struct endpoint with its struct peer, unpacked."""
        for keys, values in libbpf.entries(self.opened["peers"]):
            yield from zip(
                layout.ENDPOINT.iter_unpack(keys), layout.PEER.iter_unpack(values), strict=True
            )

    def peer(self, endpoint: bytes) -> bytes | None:
        """The struct peer of a struct endpoint; None: it is not there."""
        with suppress(FileNotFoundError):
            return libbpf.lookup(self.opened["peers"], endpoint)
        return None

    def put_peer(self, endpoint: bytes, peer: bytes) -> None:
        libbpf.update(self.opened["peers"], endpoint, peer)

    # signalled

    def signalled(self) -> Iterator[Entry]:
        """Each struct endpoint that signalling names with its struct signalled, unpacked."""
        if "signalled" not in self.opened:
            return
        for keys, values in libbpf.entries(self.opened["signalled"]):
            yield from zip(
                layout.ENDPOINT.iter_unpack(keys), layout.SIGNALLED.iter_unpack(values), strict=True
            )

    def signalled_at(self, endpoint: bytes) -> bytes | None:
        """The struct signalled of a struct endpoint; None: it says nothing."""
        with suppress(FileNotFoundError, KeyError):
            return libbpf.lookup(self.opened["signalled"], endpoint)
        return None

    def put_signalled(self, endpoint: bytes, value: bytes | None) -> None:
        """What signalling says of an endpoint; None: nothing."""
        if value is not None:
            libbpf.update(self.opened["signalled"], endpoint, value)
            return
        with suppress(FileNotFoundError):
            libbpf.delete(self.opened["signalled"], endpoint)

    # wans

    def wan(self, index: int) -> bytes:
        """A WAN's struct wan, by its index in the record."""
        return libbpf.lookup(self.opened["wans"], layout.index(index))

    def put_wan(self, index: int, value: bytes) -> None:
        libbpf.update(self.opened["wans"], layout.index(index), value)

    # the others

    def waiting(self) -> Iterator[Entry]:
        """Each struct endpoint that UCM has sent to and that is not heard, with its struct
        waiting, unpacked."""
        for keys, values in libbpf.entries(self.opened["waiting_for"]):
            yield from zip(
                layout.ENDPOINT.iter_unpack(keys), layout.WAITING.iter_unpack(values), strict=True
            )

    def put_prefixes(self, name: str, prefixes: Iterable[IPv4Network]) -> None:
        """Fill a map of prefixes."""
        for each in prefixes:
            key = layout.PREFIX.pack(each.prefixlen, each.network_address.packed)
            libbpf.update(self.opened[name], key, b"\1")

    @property
    def events(self) -> Map | None:
        """The ring buffer of events, for ring.py; None where there is none."""
        return self.opened.get("events")
