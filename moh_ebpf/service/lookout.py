"""What runs before our programs: told when it comes, and when it goes."""

import logging
import time
from contextlib import suppress

from pyroute2 import IPRoute

from moh_ebpf.errors import MohError
from moh_ebpf.registry import earlier
from moh_ebpf.registry.earlier import Earlier
from moh_ebpf.registry.record import Record
from moh_ebpf.service.pace import (
    LONGEST_LAG_SECONDS,
    LOOKING_SHARE,
    SETTLED_SECONDS,
    STATUS_SHARE,
)

# Between two looks at what runs before our programs: a bpf_link makes no netlink message.
_LOOKOUT_SECONDS = 10.0


class Lookout:
    """Tells of what comes to run before the programs of `record`, and of what no longer does.
    `due` is by time.monotonic(); nothing is looked at while `record` is None."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._there: dict[Earlier, str] = {}
        self._told: set[str] = set()
        self._not_before = 0.0
        self.record: Record | None = None
        self.due = time.monotonic()

    def expect_change(self) -> None:
        """Something may have come or gone: look when that has settled."""
        self.due = min(self.due, max(time.monotonic() + SETTLED_SECONDS, self._not_before))

    def untold(self, warnings: list[str]) -> list[str]:
        """The warnings of attach without those that the log has already. The others are not
        repeated here."""
        self._told.update(warnings)
        return [each for each in warnings if each not in self._there.values()]

    def act(self) -> None:
        """Look, if it is due."""
        begun = time.monotonic()
        if begun < self.due:
            return
        if self.record:
            with suppress(MohError, OSError):  # interfaces that keep changing: the next look
                self._look(self.record)
        took = time.monotonic() - begun
        self._not_before = begun + min(took / LOOKING_SHARE, LONGEST_LAG_SECONDS)
        self.due = begun + max(_LOOKOUT_SECONDS, took / STATUS_SHARE)

    def _look(self, record: Record) -> None:
        with IPRoute() as ipr:
            now = {each: str(each) for each in earlier.found(ipr, record)}
        for each, text in now.items():
            if each not in self._there and text not in self._told:
                self._log.warning("%s", text)
        for each in self._there.keys() - now.keys():
            self._log.info("%s", each.gone)
        self._there, self._told = now, set()
