"""The terminal: keys read one by one, signals that wait until one looks, and all put back after.

Rich's Live has the alternate screen and the cursor; this has the rest.
"""

import errno
import os
import select
import signal
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import RenderableType
from rich.live import Live

from moh_ebpf.show.watch.keys import Decoder

# How long the rest of an escape sequence may take, in seconds; after that it was Esc alone.
_ESCAPE = 0.05

INTERRUPTED = signal.SIGINT
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LEAVING = (*_ENDING, signal.SIGTSTP)
_SIGNALS = (signal.SIGWINCH, signal.SIGCONT, INTERRUPTED, *_LEAVING)

_LFLAG, _CC = 3, 6  # in what tcgetattr returns


class Terminal:
    """The screen to draw on, and what happens meanwhile. Made by `opened`."""

    def __init__(self, live: Live, keyboard: "_Keyboard", wakeup: int) -> None:
        self._live = live
        self._keyboard = keyboard
        self._wakeup = wakeup
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def draw(self, renderable: RenderableType) -> None:
        """Raises OSError; where the terminal has gone, it ends us as its signal does."""
        try:
            self._live.update(renderable, refresh=True)
        except OSError as error:
            if error.errno == errno.EIO and signal.SIGHUP in self._handlers:
                self._leave(signal.SIGHUP)
            raise

    def events(self, deadline: float) -> Iterator[list[str | int]]:
        """Keys by their names and signals by their numbers, those that came together, until the
        deadline (monotonic).

        A signal that ends or stops us does so in here, with the terminal given back meanwhile.
        """
        while True:
            signals = self._signals()
            for received in signals:
                if received in _LEAVING:
                    self._leave(received)
                else:
                    # After a SIGSTOP, the shell may have changed it; and any signal may have
                    # kept us from changing it.
                    self._keyboard.enter()
            came: list[str | int] = [*signals, *self._keyboard.read()]
            if came:
                yield came
            left = deadline - time.monotonic()
            if left <= 0:
                return
            select.select(self._inputs(), [], [], self._keyboard.patience(left))

    def _inputs(self) -> list[int]:
        fd = self._keyboard.fd
        return [self._wakeup] if fd is None else [self._wakeup, fd]

    def _signals(self) -> list[int]:
        """What has come; first of all what ends us, for a hang-up comes with a SIGCONT."""
        came, self._came = self._came, []
        with suppress(BlockingIOError):
            came += os.read(self._wakeup, 4096)
        return sorted(came, key=lambda number: number not in _ENDING)

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Signals do nothing but wake us. Those that are ignored stay so: we were told to."""
        try:
            for each in _SIGNALS:
                before = signal.getsignal(each)
                if before is not signal.SIG_IGN:
                    self._handlers[each] = before
                    signal.signal(each, _note)
            yield
        finally:
            for number, before in self._handlers.items():
                signal.signal(number, before)

    def _leave(self, received: int) -> None:
        """Give the terminal back and let the signal do what it does: end us, or stop us a while."""
        self._keyboard.leave()
        with suppress(OSError):  # It may have gone.
            self._live.stop()
        self._let(received)
        # What was to end us while we were stopped: first, for the terminal may be another's now.
        self._came = self._signals()
        for other in filter(_ENDING.__contains__, self._came):
            self._let(other)
        self._keyboard.enter()
        self._live.start()

    def _let(self, received: int) -> None:
        signal.signal(received, self._handlers[received])
        signal.raise_signal(received)
        signal.signal(received, _note)


def _note(received: int, frame: FrameType | None) -> None:
    """Python has written its number to the wakeup descriptor."""


@contextmanager
def opened(live: Live, stdin: int | None) -> Iterator[Terminal]:
    """The terminal, drawn on by `live`; keys come from `stdin`, unless that is none.

    Whatever happens within, it is put back. To be used in the main thread.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    keyboard = _Keyboard(stdin)
    terminal = Terminal(live, keyboard, reader)
    try:
        with terminal.handlers():
            try:
                keyboard.enter()
                live.start()
                yield terminal
            finally:
                # In this order: what is typed once the screen is left is for the shell.
                keyboard.leave()
                live.stop()
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


class _Keyboard:
    """Keys as they are pressed, without their echo; Ctrl-C and Ctrl-Z stay signals."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self._decoder = Decoder()
        self._begun = 0.0  # when a sequence was begun that is not complete
        self._before: list[Any] | None = None

    def enter(self) -> None:
        """In the background this stops us, as it does any job, until we are brought forward."""
        if self.fd is None:
            return
        try:
            before = self._before or termios.tcgetattr(self.fd)
            self._to_cbreak(self.fd)
            self._before = before
        except termios.error as error:
            # The signal that kept us from it has us try again; else it has gone, and SIGHUP comes.
            if error.args[0] != errno.EINTR:
                self.fd = None

    @staticmethod
    def _to_cbreak(fd: int) -> None:
        changed = termios.tcgetattr(fd)
        changed[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
        changed[_CC][termios.VMIN], changed[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSADRAIN, changed)

    def leave(self) -> None:
        """As it was. What was typed and not read is not for the shell."""
        if self.fd is None or self._before is None:
            return
        if not _in_background(self.fd):  # There it is the shell's, and we would be stopped.
            with suppress(termios.error):  # It may have gone.
                termios.tcsetattr(self.fd, termios.TCSAFLUSH, self._before)
        self._before = None

    def read(self) -> list[str]:
        """What has come, without waiting."""
        if self.fd is None:
            return []
        if not select.select([self.fd], [], [], 0)[0]:
            waited = time.monotonic() - self._begun >= _ESCAPE
            return self._decoder.flush() if self._decoder.waiting and waited else []
        try:
            data = os.read(self.fd, 1024)
        except OSError:
            data = b""
        if not data:  # It has gone: no keys any more.
            self.leave()
            self.fd = None
            return []
        self._begun = time.monotonic()
        return self._decoder.feed(data)

    def patience(self, left: float) -> float:
        return min(left, _ESCAPE) if self._decoder.waiting else left


def _in_background(fd: int) -> bool:
    """Whether the terminal is ours, and in the hands of another job."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # Not ours, or gone.
        return False
