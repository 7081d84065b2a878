"""Packets that nobody knows yet whether to read, until an attach says so."""

import time
from collections import deque

from moh_ebpf.kernel.capture import Segment

# So many, packets and bytes, and for so long: an attach takes seconds.
MOST, MOST_BYTES, SECONDS = 2048, 2 << 20, 30.0


class Kept:
    """The latest of them: of a call that is over, its end is among them."""

    def __init__(self) -> None:
        self._packets: deque[tuple[float, Segment]] = deque()
        self._bytes = 0

    def put(self, segment: Segment) -> None:
        """The oldest make room, and go when they are too old."""
        now = time.monotonic()
        self._packets.append((now, segment))
        self._bytes += len(segment.data)
        while (
            len(self._packets) > MOST
            or self._bytes > MOST_BYTES
            or self._packets[0][0] < now - SECONDS
        ):
            self._bytes -= len(self._packets.popleft()[1].data)

    def take(self) -> list[Segment]:
        """All that is not too old, in order. It is kept no longer."""
        begun = time.monotonic() - SECONDS
        taken = [segment for at, segment in self._packets if at >= begun]
        self._packets.clear()
        self._bytes = 0
        return taken
