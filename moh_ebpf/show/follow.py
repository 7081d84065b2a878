"""`events`: a line for each as it happens."""

import math
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime

from moh_ebpf.calls.events import Event, Lost
from moh_ebpf.registry.reader import Reader


def line(event: Event | Lost) -> str:
    """With the local time, as `events` prints it."""
    at = datetime.fromtimestamp(event.time).astimezone()
    return f"{at.isoformat(sep=' ', timespec='milliseconds')[:23]}  {event}"


def follow(
    shown: Callable[[Event | Lost], str], seconds: float = math.inf, *, history: bool = False
) -> None:
    """Print each event as a line until Ctrl-C, for so many seconds, or until nobody reads them.

    With `history`, what the ring has kept comes first, however short the time. Raises
    NotAttachedError, also when what is followed is detached.
    """
    try:
        with Reader(history=history) as reader:
            left, end = seconds, time.monotonic() + seconds
            while True:
                for event in reader.read(max(0.0, left)):
                    print(shown(event))
                sys.stdout.flush()
                if (left := end - time.monotonic()) <= 0:
                    return
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer would fail again, noisily, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
