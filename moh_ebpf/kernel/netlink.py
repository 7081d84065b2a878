"""Lists from the kernel, by netlink: whole ones."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pyroute2 import NetlinkDumpInterrupted, NetlinkError

from moh_ebpf.errors import MohError

_PATIENCE_SECONDS = 5.0
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR


def whole(dump: Callable[[], Iterable[Any]]) -> list[Any]:
    """The messages of a dump; asked for again if there were changes meanwhile, for one may be
    missing or there twice (kernel: Documentation/userspace-api/netlink).

    Raises OSError for the kernel's own, MohError if changes do not end.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        # pyroute2 0.7 raises, 0.9 gives the messages with their flags.
        with suppress(NetlinkDumpInterrupted):
            messages = _messages(dump)
            if not any(each["header"]["flags"] & _INTERRUPTED for each in messages):
                return messages
    raise MohError("interfaces keep changing while they are listed; try again")


def _messages(dump: Callable[[], Iterable[Any]]) -> list[Any]:
    try:
        return list(dump())
    except NetlinkDumpInterrupted:
        raise
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), "netlink") from error
