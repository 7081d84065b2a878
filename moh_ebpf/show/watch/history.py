"""The rates of the last looks, for the lines of a peer's detail. Pure."""

import math
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence

from moh_ebpf.calls.peers import PeerRate

SAMPLES = 300  # looks: five minutes of the default interval
PEERS = 1024  # as many calls as one UCM carries; with all samples of each, 2.4 MB

_UNKNOWN = math.nan


class History:
    """What each peer's rates were at each look, the latest last; NaN where it was not known.

    A look is due each `interval`, in seconds. Of more peers than it has room for, it keeps those
    that are asked for.
    """

    def __init__(self, interval: float = 1.0, samples: int = SAMPLES, peers: int = PEERS) -> None:
        self.interval = interval
        self._samples = samples
        self._peers = peers
        self._looks = 0
        self._kept: dict[str, _Track] = {}

    def add(self, rates: Mapping[str, PeerRate], asked_for: Iterable[str] = ()) -> None:
        """A look's rates, by endpoint; `asked_for` are those to keep before others."""
        self._looks += 1
        self._forget()
        needed = {name for name in asked_for if name in rates}
        for name in needed:
            self._make_room(name, needed)
            self._kept.setdefault(name, _Track())
        for name in rates:
            if len(self._kept) >= self._peers:
                break
            self._kept.setdefault(name, _Track())
        for name, track in self._kept.items():
            rate = rates.get(name)
            if rate:
                track.add(self._looks, rate, self._samples)

    def of(self, endpoint: str) -> tuple[Sequence[float], Sequence[float]]:
        """Rates in and out, a number for each look, up to the latest."""
        track = self._kept.get(endpoint)
        return track.until(self._looks, self._samples) if track else ((), ())

    @property
    def looks(self) -> int:
        """How many there were."""
        return self._looks

    def __len__(self) -> int:
        return len(self._kept)

    def _make_room(self, name: str, needed: Collection[str]) -> None:
        if name in self._kept or len(self._kept) < self._peers:
            return
        for other in self._kept:
            if other not in needed:
                del self._kept[other]
                return

    def _forget(self) -> None:
        """Those of whom all that was seen is too long ago."""
        oldest = self._looks - self._samples
        for name in [name for name, track in self._kept.items() if track.last <= oldest]:
            del self._kept[name]


class _Track:
    def __init__(self) -> None:
        self.inbound = array("f")
        self.outbound = array("f")
        self.last = 0

    def add(self, look: int, rate: PeerRate, most: int) -> None:
        gap = look - self.last - 1 if self.inbound else 0
        for line, value in ((self.inbound, rate.inbound), (self.outbound, rate.outbound)):
            line.extend([_UNKNOWN] * min(gap, most))
            line.append(value)
            del line[:-most]
        self.last = look

    def until(self, look: int, most: int) -> tuple[Sequence[float], Sequence[float]]:
        gap = [_UNKNOWN] * (look - self.last)
        return [*self.inbound, *gap][-most:], [*self.outbound, *gap][-most:]


# Lines of blocks

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "12345678"


def per_cell(looks: int, width: int) -> int:
    """How many looks share a cell, so that all fit."""
    return max(1, -(-looks // max(width, 1)))


def sparkline(values: Sequence[float], width: int, looks: int, *, ascii_only: bool = False) -> str:
    """A block for each look, or the mean of some; `_` for 0 and a blank where nothing is known.

    The highest block is for the highest value. `looks` is the number of the latest, so that those
    that share a cell go on sharing it.
    """
    blocks = _ASCII if ascii_only else _BLOCKS
    size = per_cell(len(values), width)
    means: list[float] = []
    end = len(values)
    while end > 0 and len(means) < width:
        start = max(end - (looks % size or size if end == len(values) else size), 0)
        means.append(mean(values[start:end]))
        end = start
    highest = max((value for value in values if value > 0), default=0.0)
    return "".join(_block(value, highest, blocks) for value in reversed(means))


def mean(values: Sequence[float]) -> float:
    """Of those that are known; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else _UNKNOWN


def _block(value: float, highest: float, blocks: str) -> str:
    if math.isnan(value):
        return " "
    if value <= 0:
        return "_"
    return blocks[min(int(value / highest * len(blocks)), len(blocks) - 1)]
