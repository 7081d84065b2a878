"""Lists from the kernel, by netlink: whole ones."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pyroute2 import NetlinkDumpInterrupted

from moh_ebpf.errors import MohError

_PATIENCE_SECONDS = 5.0


def whole(dump: Callable[[], Iterable[Any]]) -> list[Any]:
    """The messages of a dump; asked for again if there were changes meanwhile, for one may be
    missing or there twice (NLM_F_DUMP_INTR, kernel: Documentation/userspace-api/netlink).

    pyroute2 0.9 itself takes such a dump for whole. Raises MohError if changes do not end.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(NetlinkDumpInterrupted):
            return list(dump())
    raise MohError("interfaces keep changing while they are listed; try again")
