"""What `run` makes of the events: a line in the log for each, and sums for the metrics."""

import logging
import math
import selectors
import time
from collections.abc import Container

from moh_ebpf.calls.events import Event, Lost
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.registry.reader import Left, Reader
from moh_ebpf.service.pace import LONGEST_LAG_SECONDS, LOOKING_SHARE
from moh_ebpf.service.sums import Sums

# A flood of spoofed endpoints is no reason to fill a log.
_LINES_PER_SECOND = 50
# What went wrong once is tried again after so long.
_RETRY_SECONDS = 5.0

# Events that say that UCM's RTP passes where it is held back by rights.
_WARNINGS = ("blind", "unheard")


class EventLog:
    """Reads the events beside the service's other business.

    `due`: when it has something to do without being woken, by time.monotonic(). It has a reader
    while programs are attached; made before they are, it tells of all that happens.
    """

    def __init__(self, log: logging.Logger, selector: selectors.BaseSelector, sums: Sums) -> None:
        self._log, self._selector, self._sums = log, selector, sums
        self._reader: Reader | None = None
        self._left: Left | None = None
        self._listens = False
        self._is_first = True
        self._failed = ""
        self._lines = self._unsaid = 0
        self._second = self._not_before = self.due = 0.0
        self.act()

    def close(self) -> None:
        """Read no more."""
        self._listen(False)
        if self._reader:
            self._left = self._reader.left
            self._reader.close()
        self._reader = None
        self.due = math.inf

    def expect_change(self) -> None:
        """Programs may have been attached, replaced or detached: look when the pace allows."""
        if self._reader:
            self._reader.expect_change()
        self.due = min(self.due, self._not_before)

    def act(self, ready: Container[object] = ()) -> None:
        """Read what there is, if it is due, or its reader is among those that are ready."""
        begun = time.monotonic()
        if begun < self.due and self._reader not in ready:
            return
        # What is read may be another ring afterwards.
        self._listen(False)
        try:
            self._read(begun)
            self._failed, self._is_first = "", False
        except NotAttachedError:
            self.close()
            self._failed, self._is_first = "", False
        except (MohError, OSError) as error:
            self._retry(str(error))
        self._keep_pace(begun)

    def _read(self, now: float) -> None:
        if self._reader is None:
            # What was attached before us, another has told of; and we of what was in this ring
            # before somebody detached, and the service put its programs back.
            history = not self._is_first
            self._reader = Reader(history=history, checks=False, after=self._left)
        self._say_how_many_more(now)
        for event in self._reader.read():
            self._sums.add(event)
            self._say(event)
        self.due = now + self._reader.due()

    def _retry(self, error: str) -> None:
        """Go on from here some time, for nothing may happen that would make us; the log says it
        once."""
        self.due = time.monotonic() + _RETRY_SECONDS
        if error != self._failed:
            self._failed = error
            self._log.warning("events cannot be read, trying again: %s", error)

    def _keep_pace(self, begun: float) -> None:
        """Leave the core to others; woken by the next event, unless the last ones have taken so
        long that it must wait."""
        took = time.monotonic() - begun
        self._not_before = begun + min(took / LOOKING_SHARE, LONGEST_LAG_SECONDS)
        if self._failed:
            return
        if self._reader and took >= 0.002:
            self.due = self._not_before
            return
        self._listen(True)
        if self._unsaid:
            self.due = min(self.due, self._second + 1.0)
        self.due = max(self.due, self._not_before)

    def _listen(self, listens: bool) -> None:
        if listens and self._reader:
            self._selector.register(self._reader, selectors.EVENT_READ)
            self._listens = True
        elif self._listens and self._reader:
            self._selector.unregister(self._reader)
            self._listens = False

    def _say(self, event: Event | Lost) -> None:
        if self._lines < _LINES_PER_SECOND:
            is_bad = isinstance(event, Event) and event.event in _WARNINGS
            self._log.log(logging.WARNING if is_bad else logging.INFO, "%s", event)
            self._lines += 1
        else:
            self._unsaid += 1

    def _say_how_many_more(self, now: float) -> None:
        if now - self._second < 1.0:
            return
        if self._unsaid:
            self._log.warning("%d more events in a second; see moh-ebpf events", self._unsaid)
        self._second, self._lines, self._unsaid = now, 0, 0
