"""What `run` makes of the events: a line in the log for each, and sums for the metrics."""

import logging
import math
import selectors
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from moh_ebpf.errors import MohError
from moh_ebpf.events import Event, Lost, Reader
from moh_ebpf.layout import State

# A flood of spoofed endpoints is no reason to fill a log, or to take a core.
_LINES_PER_SECOND = 50
_SHARE = 0.05

MUSIC_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
HOLD_BUCKETS = (1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Histogram:
    """Observations in seconds, counted by the first bound that they do not exceed."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds


class Sums:
    """What the metrics show of the events since `run` began. Written by one thread, read by another
    with `lock` held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: Counter[str] = Counter()
        self.time_to_music = Histogram(MUSIC_BUCKETS)
        self.hold = Histogram(HOLD_BUCKETS)

    def add(self, event: Event | Lost) -> None:
        """Count an event; a hold's length when it ends."""
        with self.lock:
            if isinstance(event, Lost):
                self.events["lost"] += event.count
                return
            self.events[event.event] += 1
            if event.time_to_music is not None:
                self.time_to_music.observe(event.time_to_music)
            if event.before is State.MOH and event.lasted is not None:
                self.hold.observe(event.lasted)


class Chronicle:
    """Reads the events beside the service's other business.

    `due`: when it has something to do without being woken, by time.monotonic(). It has a reader
    while programs are attached.
    """

    def __init__(self, log: logging.Logger, selector: selectors.BaseSelector, sums: Sums) -> None:
        self._log, self._selector, self._sums = log, selector, sums
        self._reader: Reader | None = None
        self._listens = False
        self._lines = self._unsaid = 0
        self._second = 0.0
        self.due = math.inf
        self.look_around()

    def close(self) -> None:
        """Read no more."""
        self._listen(False)
        if self._reader:
            self._reader.close()
        self._reader = None
        self.due = math.inf

    def look_around(self) -> None:
        """Something has changed: programs may have been attached, replaced or detached."""
        try:
            if self._reader:
                self._reader.check()
            else:
                self._reader = Reader(checks=False)
        except (MohError, OSError):  # there is nothing to read; the service says why
            self.close()
            return
        self.act()

    def act(self) -> None:
        """Read what there is, at a pace that leaves the core to others."""
        if not self._reader:
            return
        begun = time.monotonic()
        self._listen(False)
        try:
            for event in self._reader.read():
                self._sums.add(event)
                self._say(event, begun)
        except (MohError, OSError):
            self.close()
            return
        took = time.monotonic() - begun
        self.due = begun + max(self._reader.due(), took / _SHARE)
        # Woken by the next event, unless the last ones have taken so long that it must wait.
        if took < 0.002:
            self._listen(True)

    def _listen(self, listens: bool) -> None:
        if listens and self._reader:
            self._selector.register(self._reader, selectors.EVENT_READ, self)
        elif self._listens and self._reader:
            self._selector.unregister(self._reader)
        self._listens = listens

    def _say(self, event: Event | Lost, now: float) -> None:
        if now - self._second >= 1.0:
            if self._unsaid:
                self._log.warning("%d more events in a second; see moh-ebpf events", self._unsaid)
            self._second, self._lines, self._unsaid = now, 0, 0
        self._lines += 1
        if self._lines > _LINES_PER_SECOND:
            self._unsaid += 1
        else:
            self._log.info("%s", event)
