"""A process on a pseudo-terminal of its own, with what it draws there and keys to press."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # seconds
ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
HOME = "\x1b[H"


def environment() -> dict[str, str]:
    ignored = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in ignored}
    return kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


class Terminal:
    """A process on a terminal of its own, and all that it wrote there. `modes_before` are the
    terminal's, before the process could change them."""

    def __init__(self, argv: list[str], width: int, height: int) -> None:
        self.process, self._fd, self.modes_before = _on_terminal(argv, width, height)
        self.written = ""
        self.height = height

    def resize(self, width: int, height: int) -> None:
        """As a terminal emulator does: the kernel then sends SIGWINCH."""
        self.height = height
        _set_size(self._fd, width, height)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def read_until(self, text: str) -> str:
        """What was written from now on up to the text."""
        start = len(self.written)
        deadline = time.monotonic() + PATIENCE
        while text not in self.written[start:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.written[start:]!r}"
            assert self._read(), f"it ended without {text!r}: {self.written[start:]!r}"
        return self.written[start:]

    def see(self, *texts: str, without: str | None = None) -> list[str]:
        """The lines of the next whole view, or the one on the screen, that has all the texts."""

        def right(lines: list[str]) -> bool:
            view = "\n".join(lines)
            return all(text in view for text in texts) and (without is None or without not in view)

        return self.see_that(right, f"{texts}, without {without!r}")

    def see_that(self, right: Callable[[list[str]], bool], what: str = "it") -> list[str]:
        """The lines of the next whole view, or the one on the screen, that is right."""
        deadline = time.monotonic() + PATIENCE
        while len(lines := self.view()) != self.height or not right(lines):
            assert time.monotonic() < deadline, f"not seen: {what}, but {lines}"
            assert self._read(), f"it ended without {what}: {lines}"
        return lines

    def view(self) -> list[str]:
        """What is on the screen: the last view that was drawn, without its colours."""
        _, _, drawn = self.written.rpartition(HOME)
        plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", drawn)
        return [line.rstrip() for line in plain.replace("\r", "").split("\n")]

    def modes(self) -> list[Any]:
        """What termios says of it."""
        return termios.tcgetattr(self._fd)

    def set_modes(self, modes: list[Any]) -> None:
        termios.tcsetattr(self._fd, termios.TCSANOW, modes)

    def hang_up(self) -> None:
        """As a terminal emulator that is closed."""
        os.close(self._fd)
        self._fd = -1

    def end(self) -> int:
        """Read to the end; the exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        try:
            if select.select([self._fd], [], [], 0.1)[0]:
                data = os.read(self._fd, 65536)
                self.written += data.decode(errors="replace")
                return bool(data)
        except OSError:  # EIO: the process has closed the terminal.
            return False
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._fd >= 0:
            os.close(self._fd)


def _on_terminal(
    argv: list[str], width: int, height: int
) -> tuple[subprocess.Popen[bytes], int, list[Any]]:
    ours, theirs = pty.openpty()
    try:
        _set_size(ours, width, height)
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            # With a terminal of its own, Ctrl-C and a new size reach it as signals.
            ["setsid", "--ctty", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=environment(),
        )
    finally:
        os.close(theirs)
    return process, ours, before


def _set_size(fd: int, width: int, height: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


@contextmanager
def terminal(argv: list[str], width: int = 80, height: int = 24) -> Iterator[Terminal]:
    made = Terminal(argv, width, height)
    try:
        yield made
    finally:
        made.close()
