"""`watch`: what is attached, looked at again and again.

Each look walks the kernel anew, which costs a millisecond: so a set that was replaced is followed,
and one that was detached is noticed.
"""

import io
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import IO, NamedTuple

from rich.console import Console
from rich.live import Live

from moh_ebpf import peers, registry, render
from moh_ebpf.errors import NotAttachedError
from moh_ebpf.peers import Rates, Snapshot
from moh_ebpf.render import Description

Look = Callable[[], tuple[Description, Snapshot]]

# A peer that was forgotten stays in view, dimmed, for so many seconds: one sees which call ended.
LINGERS = 5.0

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGWINCH}


class Frame(NamedTuple):
    """One look, and the rates of the `seconds` since the one before; the first has none."""

    description: Description
    snapshot: Snapshot
    rates: Rates
    seconds: float


def look() -> tuple[Description, Snapshot]:
    """What is attached now. Raises NotAttachedError."""
    with registry.attached_or_error() as attached:
        return registry.describe(attached), attached.snapshot(forgotten_for=LINGERS)


def watch(interval: float, console: Console, look: Look = look) -> None:
    """Show a view each interval, in seconds; lines where the console is no terminal to draw on.

    Ctrl-C ends it, and so does a reader who has had enough. Raises NotAttachedError, also when
    what is watched is detached.
    """
    frames = _frames(look)
    if console.is_interactive:
        _on_screen(frames, interval, console)
    else:
        _as_lines(frames, interval, console.file)


def picture(interval: float = 1.0, width: int = 100, height: int = 20) -> str:
    """The view as it is now, as SVG."""
    frames = _frames(look)
    next(frames)
    time.sleep(interval)
    console = Console(
        record=True, file=io.StringIO(), force_terminal=True, width=width, height=height
    )
    console.print(_view(next(frames), console))
    return console.export_svg(title="moh-ebpf watch")


def _frames(look: Look) -> Iterator[Frame]:
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
        yield Frame(description, snapshot, peers.rates(before, snapshot), seconds)
        before = snapshot


def _ticks(interval: float) -> Iterator[float]:
    """Times to look at, on a grid of the interval: what is late does not delay what follows."""
    tick = time.monotonic()
    while True:
        tick += interval * max(1, math.ceil((time.monotonic() - tick) / interval))
        yield tick


# Lines


def _as_lines(frames: Iterator[Frame], interval: float, file: IO[str]) -> None:
    try:
        next(frames)  # It has no rates yet.
        for tick in _ticks(interval):
            time.sleep(max(0.0, tick - time.monotonic()))
            line = render.plain_line(datetime.now().astimezone(), *next(frames))
            print(line, file=file, flush=True)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer would fail again, noisily, when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


# The screen


def _on_screen(frames: Iterator[Frame], interval: float, console: Console) -> None:
    """Signals come while we wait for them and at no other time: nothing is left half drawn."""
    frame = next(frames)
    with _held(_SIGNALS), Live(console=console, screen=True, auto_refresh=False) as live:
        for tick in _ticks(interval):
            live.update(_view(frame, console), refresh=True)
            while received := _signal_before(tick):
                if received == signal.SIGINT:
                    return
                if received == signal.SIGWINCH:
                    live.update(_view(frame, console), refresh=True)
                else:
                    _leave(live, received)
            frame = next(frames)


def _view(frame: Frame, console: Console) -> render.Lines:
    return render.watch(frame.description, frame.snapshot, frame.rates, *console.size)


@contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Let the signals wait until they are asked for."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_before(deadline: float) -> int | None:
    """The next signal; None when the deadline comes first."""
    received = signal.sigtimedwait(_SIGNALS, max(0.0, deadline - time.monotonic()))
    return received.si_signo if received else None


def _leave(live: Live, received: int) -> None:
    """Give the terminal back and let the signal do what it does: end us, or stop us for a while."""
    live.stop()
    signal.raise_signal(received)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {received})
    signal.pthread_sigmask(signal.SIG_BLOCK, {received})
    live.start()
    live.refresh()
