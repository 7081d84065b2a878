"""The clock of the times that the maps keep."""

import os
import re
import time
from functools import cache
from pathlib import Path


def kernel_ns() -> int:
    """Now, in ns, by the clock of the programs: the machine's own CLOCK_MONOTONIC. In a time
    namespace, ours is another."""
    return time.monotonic_ns() - _offset_ns()


@cache
def _offset_ns() -> int:
    """What our time namespace (Linux 5.6) adds to CLOCK_MONOTONIC; time_namespaces(7)."""
    try:
        # The file tells of the namespace of our children, which is ours as a rule.
        ours = os.readlink("/proc/self/ns/time")
        is_ours = ours == os.readlink("/proc/self/ns/time_for_children")
        offsets = Path("/proc/self/timens_offsets").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^monotonic\s+(-?\d+)\s+(\d+)$", offsets, re.M)
    return int(found[1]) * 10**9 + int(found[2]) if found and is_ours else 0
