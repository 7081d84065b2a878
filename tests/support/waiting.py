"""Waiting for something that tells nobody when it happens."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

# An attach takes half a minute under emulation (scripts/test-kernels).
PATIENCE_SECONDS = 180.0 if "MOH_KERNEL_TESTS" in os.environ else 20.0
_POLL_SECONDS = 0.02

T = TypeVar("T")


def until(what: str, probe: Callable[[], T]) -> T:
    """What the probe finds, as soon as it finds something. `what` is said if it never does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := probe()):
        assert time.monotonic() < deadline, f"this did not happen: {what}"
        time.sleep(_POLL_SECONDS)
    return found
