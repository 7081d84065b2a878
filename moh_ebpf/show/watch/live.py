"""`watch`: what is attached, looked at again and again.

Each look walks the kernel anew, which costs a millisecond: so a set that was replaced is followed,
and one that was detached is noticed. Between two looks nothing is asked: keys show the last anew.

    terminal   keys and signals
    keys       bytes to keys
    recent     the last events
    view       keys to what is looked at: pure
    history    the last rates: pure
    screen     all of it to lines: pure
"""

import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import IO

from rich.console import Console
from rich.live import Live

from moh_ebpf.calls import peers
from moh_ebpf.calls.peers import Snapshot
from moh_ebpf.errors import NotAttachedError
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import describe
from moh_ebpf.show.lines import Line, Lines
from moh_ebpf.show.peers import WATCH_COLUMNS
from moh_ebpf.show.status import Description
from moh_ebpf.show.watch import terminal
from moh_ebpf.show.watch.history import SAMPLES, History
from moh_ebpf.show.watch.keys import Decoder
from moh_ebpf.show.watch.recent import Recent
from moh_ebpf.show.watch.screen import Frame, Size, plain_line, screen
from moh_ebpf.show.watch.terminal import INTERRUPTED
from moh_ebpf.show.watch.view import View, pressed

Look = Callable[[], tuple[Description, Snapshot]]
LastEvents = Callable[[], Sequence[Line]]

# A peer that was forgotten stays in view, dimmed, for so many seconds: one sees which call ended.
LINGERS = 5.0


def look() -> tuple[Description, Snapshot]:
    """What is attached now. Raises NotAttachedError."""
    with walk.attached_or_error() as attached:
        return describe(attached), attached.snapshot(forgotten_for=LINGERS)


def no_events() -> Sequence[Line]:
    return ()


def watch(
    interval: float, console: Console, look: Look = look, last_events: LastEvents = no_events
) -> None:
    """Show a view each interval, in seconds; lines where the console is no terminal to draw on.

    `last_events` is asked for lines with each look; the screen has room for those below the
    counters. q or Ctrl-C ends it, and so does a reader who has had enough. Raises NotAttachedError,
    also when what is watched is detached.
    """
    frames = each_frame(look, last_events)
    if console.is_interactive:
        _on_screen(frames, interval, console)
    else:
        _as_lines(frames, interval, console.file)


def pictures(
    keys: Sequence[str], looks: int, interval: float = 1.0, width: int = 100, height: int = 22
) -> list[str]:
    """The view as it is after so many looks, as SVG; one for each, after the keys it names."""
    frames = each_frame(look, Recent())
    history = History(interval)
    frame = next(frames)
    for tick, _ in zip(ticks(interval), range(max(looks, 1)), strict=False):
        time.sleep(max(0.0, tick - time.monotonic()))
        frame = next(frames)
        history.add(frame.rates.peers)
    return [_picture(frame, history, each, Size(width, height)) for each in keys]


def _picture(frame: Frame, history: History, keys: str, size: Size) -> str:
    console = Console(
        record=True, file=io.StringIO(), force_terminal=True, width=size.width, height=size.height
    )
    view = View()
    view, lines = screen(frame, view, history, size)
    for key in Decoder().feed(keys.encode()):
        view, lines = screen(frame, pressed(view, key, WATCH_COLUMNS), history, size)
    console.print(lines)
    return console.export_svg(title="moh-ebpf watch")


def each_frame(look: Look, last_events: LastEvents = no_events) -> Iterator[Frame]:
    """A look for each frame that is asked for. Raises NotAttachedError."""
    before = None
    while True:
        try:
            description, snapshot = look()
        except NotAttachedError:
            if before is None:
                raise
            raise NotAttachedError(
                "detached meanwhile: there is nothing left to watch; attach with: moh-ebpf attach"
            ) from None
        seconds = snapshot.time - before.time if before else 0.0
        at = datetime.now().astimezone()
        rates = peers.rates(before, snapshot)
        yield Frame(at, description, snapshot, rates, seconds, last_events())
        before = snapshot


def ticks(interval: float) -> Iterator[float]:
    """Times to look at, on a grid of the interval: what is late does not delay what follows."""
    tick = time.monotonic()
    while True:
        tick += interval * max(1, math.ceil((time.monotonic() - tick) / interval))
        yield tick


# Lines


def _as_lines(frames: Iterator[Frame], interval: float, file: IO[str]) -> None:
    try:
        next(frames)  # It has no rates yet.
        for tick in ticks(interval):
            time.sleep(max(0.0, tick - time.monotonic()))
            print(plain_line(next(frames)), file=file, flush=True)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer would fail again, noisily, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


# The screen


def _on_screen(frames: Iterator[Frame], interval: float, console: Console) -> None:
    """Signals come while we wait for them and at no other time: nothing is left half drawn."""
    stdin = _keyboard()
    shown = _Screen(next(frames), interval, console, has_keys=stdin is not None)
    live = Live(console=console, screen=True, auto_refresh=False)
    with terminal.opened(live, stdin) as opened:
        opened.draw(shown.lines())
        for tick in ticks(interval):
            for events in opened.events(tick):
                keys = [event for event in events if isinstance(event, str)]
                if INTERRUPTED in events or shown.press(keys, frames):
                    return
                opened.draw(shown.lines())
            if not shown.view.paused:
                shown.look(frames)
                opened.draw(shown.lines())


def _keyboard() -> int | None:
    """Where keys come from; None where stdin is no terminal: then it is a view without keys."""
    return sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None


class _Screen:
    """What is on the screen: a frame, and how it is looked at."""

    def __init__(self, frame: Frame, interval: float, console: Console, *, has_keys: bool) -> None:
        self.view = View()
        self._frame = frame
        self._interval = interval
        self._console = console
        self._has_keys = has_keys
        self._history = History(interval)

    def lines(self) -> Lines:
        size = Size(*self._console.size, self._has_keys, not _draws_blocks(self._console))
        self.view, lines = screen(self._frame, self.view, self._history, size)
        return lines

    def look(self, frames: Iterator[Frame]) -> None:
        """Raises NotAttachedError."""
        self._frame = next(frames)
        # What a pause, or a machine that slept, left out is a gap in the history.
        missed = round(self._frame.seconds / self._interval) - 1
        for _ in range(min(missed, SAMPLES)):
            self._history.add({})
        self._history.add(self._frame.rates.peers, self.view.seen)

    def press(self, keys: Sequence[str], frames: Iterator[Frame]) -> bool:
        """Whether they end it. After a pause, what it is now shows at once."""
        paused = self.view.paused
        for key in keys:
            self.view = pressed(self.view, key, WATCH_COLUMNS)
        if paused and not self.view.paused:
            self.look(frames)
        return self.view.quit


def _draws_blocks(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
