"""The last events, for the foot of the view."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime

from rich.segment import Segment
from rich.style import Style

from moh_ebpf.calls.events import Event, Lost
from moh_ebpf.errors import MohError
from moh_ebpf.registry.reader import Reader
from moh_ebpf.show.lines import ALARM, DIM, NOTICE, Line
from moh_ebpf.show.peers import STATES

# More than there is ever room for.
_KEPT = 50


class Recent:
    """Reads the events with each look, beside whoever else reads them. Where there are none to be
    read, it has none: what is wrong, the view says itself."""

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._lines: deque[Line] = deque(maxlen=_KEPT)

    def __call__(self) -> Sequence[Line]:
        """The last of them by now, the latest last."""
        try:
            if self._reader is None:
                self._reader = Reader(history=not self._lines)
            self._lines.extend(map(_line, self._reader.read()))
        except (MohError, OSError):
            self.close()
        return list(self._lines)

    def close(self) -> None:
        """Read no more."""
        if self._reader:
            self._reader.close()
        self._reader = None


def _line(event: Event | Lost) -> Line:
    return [Segment(f"{datetime.fromtimestamp(event.time):%H:%M:%S}  ", DIM),
            Segment(str(event), _style(event))]  # fmt: skip


def _style(event: Event | Lost) -> Style:
    if isinstance(event, Lost):
        return NOTICE
    if event.event == "blind":
        return ALARM
    if event.event == "unheard":
        return NOTICE
    if event.event == "hold" and event.time_to_music is None and not event.ended_first:
        return ALARM
    return STATES[event.after] if event.after else DIM
