"""What is attached, read: endpoints, counters, WANs, from the programs' maps."""

import math
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from moh_ebpf import layout
from moh_ebpf.calls import peers
from moh_ebpf.calls.peers import (
    LONGEST_DEAF_HOLD_SECONDS,
    SILENT_SECONDS,
    Peer,
    SipCall,
    Snapshot,
    Wait,
    Wan,
    call_of,
)
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.kernel.tc import Filter
from moh_ebpf.registry.contents import Entry, Maps
from moh_ebpf.registry.record import Place, Record


@dataclass(frozen=True)
class Attached:
    """The programs found, and the maps of one of them, which they all share."""

    filters: dict[Place, Filter]
    record: Record
    maps: Maps = field(repr=False)

    @property
    def missing(self) -> list[Place]:
        """Where a program belongs and is not: somebody removed it, or the interface is gone."""
        return [place for place in self.record.places if place not in self.filters]

    def counters(self) -> dict[str, int]:
        """The counters, summed over the CPUs. Raises OSError."""
        return self.maps.counters()

    def snapshot(self, forgotten_for: float = math.inf, *, untold: bool = False) -> Snapshot:
        """Peers and counters now, without peers that have been forgotten for so many seconds, and
        without those that readers are not told of, unless `untold`. Raises OSError."""
        now = kernel_ns()
        peers = self._decoded(self.maps.peers(), now, forgotten_for, untold=untold)
        return Snapshot(now * 1e-9, peers, self.counters(), self.wans(now))

    def wans(self, now: int | None = None) -> list[Wan]:
        """What is known of each WAN, in their order. `now`: of CLOCK_MONOTONIC, in ns. Raises
        OSError."""
        now = kernel_ns() if now is None else now
        found = []
        for index, interface in self.wan_names().items():
            times = layout.WAN.unpack(self.maps.wan(index))
            learned, opened, _, blind = (
                max(0, now - each) * 1e-9 if each else None for each in times
            )
            found.append(Wan(interface, learned, opened, blind))
        return found

    def unheard(self) -> list[Peer]:
        """Peers that have been forgotten, and that UCM still sends to. Raises OSError."""
        now = kernel_ns()
        found = []
        for endpoint, _ in self._waiting(now):
            if value := self.maps.peer(layout.ENDPOINT.pack(*endpoint)):  # most are never heard
                found.append((endpoint, layout.PEER.unpack(value)))
        return [peer for peer in self._decoded(found, now) if peer.expired]

    def waits(self) -> list[Wait]:
        """The endpoints that UCM sends to now and that are not heard. Raises OSError."""
        now = kernel_ns()
        return [
            Wait(
                socket.inet_ntoa(address),
                int.from_bytes(port, "big"),
                max(0, now - first) * 1e-9,
                dropped,
                bool(passed),
            )
            for (address, port), (first, _, dropped, passed, *_) in self._waiting(now)
        ]

    def _waiting(self, now: int) -> Iterator[Entry]:
        """Each endpoint with its struct waiting, where UCM has sent media to it of late."""
        for endpoint, wait in self.maps.waiting():
            _, last, _, _, flags, *_ = wait
            if now - last < SILENT_SECONDS * 1e9 and not flags & layout.WAITING_NO_MEDIA:
                yield endpoint, wait

    def _decoded(
        self,
        entries: Iterable[Entry],
        now: int,
        forgotten_for: float = math.inf,
        *,
        untold: bool = False,
    ) -> list[Peer]:
        settings = self.record.settings
        return peers.decode(
            entries,
            now=now,
            timeout=settings.timeout,
            rtcp_timeout=settings.rtcp_timeout,
            quality=settings.quality,
            interfaces=self.wan_names(),
            forgotten_for=forgotten_for,
            deaf=self._deaf(now) if settings.timeout > LONGEST_DEAF_HOLD_SECONDS else (),
            untold=untold,
            signalling=settings.signalling,
            calls=self._calls(now),
        )

    def _calls(self, now: int) -> dict[tuple[bytes, bytes], SipCall]:
        """The calls that signalling knows, by struct endpoint. Raises OSError."""
        calls = ((key, _call(values, now)) for key, values in self.maps.signalled())
        return {key: call for key, call in calls if call}

    def call_at(self, endpoint: bytes) -> SipCall | None:
        """The call that signalling names a struct endpoint in. Raises OSError."""
        value = self.maps.signalled_at(endpoint)
        return _call(layout.SIGNALLED.unpack(value), kernel_ns()) if value else None

    def _deaf(self, now: int) -> set[int]:
        """The indexes of the WANs where learn has been silent for so long that no hold counts."""
        return {
            index
            for index, wan in enumerate(self.wans(now))
            if wan.learn_age is None or wan.learn_age >= LONGEST_DEAF_HOLD_SECONDS
        }

    def wan_names(self) -> dict[int, str]:
        """The WANs' present names by their index in a peer."""
        return {index: interface_name(ifindex) for index, ifindex in enumerate(self.record.wan)}


def _call(signalled: tuple[Any, ...], now: int) -> SipCall | None:
    """The call in an unpacked struct signalled; None: its lease is over."""
    _, _, _, until, _, *texts = signalled
    return call_of(*texts) if until > now else None


def describe(found: Attached | None) -> dict[str, Any]:
    """What `status --json` shows: plain JSON types."""
    if found is None:
        return {
            "attached": False,
            "settings": {},
            "programs": [],
            "missing": [],
            "wans": [],
            "counters": {},
        }

    return {
        "attached": True,
        "version": found.record.version,
        "settings": found.record.settings.to_json(),
        "programs": [
            each.to_json() | {"id": found.filters[each].program_id}
            for each in found.record.places
            if each in found.filters
        ],
        "missing": [each.to_json() for each in found.missing],
        "wans": [each.to_json() for each in found.wans()],
        "counters": found.counters(),
    }
