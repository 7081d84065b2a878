"""The bytes of one direction of a TCP connection, in their order, as somebody hears them who only
listens (RFC 9293): segments may come twice, late, or not at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_MODULUS = 1 << 32
_LATEST_SYN = 1 << 16  # bytes after its first: no SYN comes once more later than that
_MOST_WAITING = 64  # segments behind a missing one, before that is given up
# Further away than this is another connection of the same ports, whose beginning was missed, or
# nothing of it: so many in a row that follow each other tell.
_WINDOW = 1 << 20
_ENOUGH = 8


class InOrder:
    """`feed` takes segments as they come. The first one that is heard begins it, whether the
    connection does or not."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._waiting: dict[int, bytes] = {}
        self._elsewhere = _Elsewhere()

    def is_at(self, sequence: int) -> bool:
        """Is this what comes next?"""
        return self._next is None or self._next == sequence % _MODULUS

    @property
    def held(self) -> int:
        """Bytes that wait for others."""
        return sum(map(len, self._waiting.values()))

    def feed(self, sequence: int, data: bytes, *, begins: bool = False) -> Iterator[bytes | None]:
        """What can be read by now; None before bytes that do not follow those before. `begins`: the
        segment has SYN, which counts as one byte before its data."""
        if begins:
            yield from self._begin(sequence)
            sequence = (sequence + 1) % _MODULUS
        if self._next is None:
            self._next = sequence
        if not data:
            return
        if abs(_distance(self._next, sequence)) > _WINDOW:
            if self._elsewhere.goes_on(sequence, data):
                yield None
                self._next, self._waiting = (sequence + len(data)) % _MODULUS, {}
            return
        self._elsewhere = _Elsewhere()
        ahead = _distance(self._next, sequence)
        if ahead + len(data) <= 0:
            return  # all of it again
        if ahead <= 0:
            yield self._take(data[-ahead:])
        elif len(self._waiting) < _MOST_WAITING:
            # The longest of those that begin there.
            if len(data) > len(self._waiting.get(sequence, b"")):
                self._waiting[sequence] = data
            return
        else:
            self._waiting[sequence] = data
            yield None
            self._next = min(self._waiting, key=lambda each: _distance(self._next or 0, each))
        yield from self._those_that_follow()

    def _begin(self, sequence: int) -> Iterator[None]:
        """A new connection between the same ports; or its SYN once more."""
        first = (sequence + 1) % _MODULUS
        if self._next is None or _distance(first, self._next) not in range(_LATEST_SYN):
            if self._next is not None:
                yield None
            self._next, self._waiting = first, {}

    def _take(self, data: bytes) -> bytes:
        assert self._next is not None
        self._next = (self._next + len(data)) % _MODULUS
        return data

    def _those_that_follow(self) -> Iterator[bytes]:
        assert self._next is not None
        while True:
            near = {each: _distance(self._next, each) for each in self._waiting}
            ready = [each for each, ahead in near.items() if ahead <= 0]
            if not ready:
                return
            for each in ready:
                data = self._waiting.pop(each)
                ahead = _distance(self._next, each)
                if ahead + len(data) > 0:
                    yield self._take(data[-ahead:] if ahead else data)


@dataclass
class _Elsewhere:
    """Segments far from those before, that follow each other."""

    following: int | None = None
    count: int = 0

    def goes_on(self, sequence: int, data: bytes) -> bool:
        """One more; are they enough?"""
        self.count = self.count + 1 if sequence == self.following else 1
        self.following = (sequence + len(data)) % _MODULUS
        return self.count >= _ENOUGH


def _distance(start: int, to: int) -> int:
    """From one sequence number to another; negative: back."""
    ahead = (to - start) % _MODULUS
    return ahead - _MODULUS if ahead >= _MODULUS // 2 else ahead
