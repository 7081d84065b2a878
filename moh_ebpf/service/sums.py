"""Sums over the events, for the metrics."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

from moh_ebpf.calls.events import Event, Lost
from moh_ebpf.layout import State

# What becomes of SIP that is heard (calls/transport.py, sip_reader.py): read; no SIP, or a message
# or session description that cannot be relied on; not heard whole; not told, by an error.
OUTCOMES = (
    *("read", "malformed", "no_description", "segments_missing", "connections_dropped"),
    *("not_captured", "not_told"),
)

# Events that end a state, whose length they tell.
_ENDS = ("resume", "expired", "evicted")

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
    """What the metrics show of the events since `run` began, and of what it waits for. Written by
    one thread, read by another with `lock` held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: Counter[str] = Counter()
        self.time_to_music = Histogram(MUSIC_BUCKETS)
        self.hold = Histogram(HOLD_BUCKETS)
        self.interfaces_missing = 0
        self.reads_sip: bool | None = None  # None: it is not to be read
        self.dialogs = 0
        self.messages: Counter[str] = Counter()

    def add_sip(self, counts: Mapping[str, int], before: Mapping[str, int]) -> None:
        """What the process that reads SIP has counted, and what it had `before`."""
        with self.lock:
            self.reads_sip, self.dialogs = True, counts.get("dialogs", 0)
            for outcome in OUTCOMES:
                self.messages[outcome] += counts.get(outcome, 0) - before.get(outcome, 0)

    def end_sip(self, *, is_wanted: bool) -> None:
        """SIP is not read any more, or not yet; `is_wanted`: it should be."""
        with self.lock:
            self.reads_sip, self.dialogs = False if is_wanted else None, 0

    def add(self, event: Event | Lost) -> None:
        """Count an event; a hold's length when it ends."""
        with self.lock:
            if isinstance(event, Lost):
                self.events["lost"] += event.count
                return
            self.events[event.event] += 1
            if event.time_to_music is not None:
                self.time_to_music.observe(event.time_to_music)
            if event.event in _ENDS and event.before is State.MOH and event.lasted is not None:
                self.hold.observe(event.lasted)
