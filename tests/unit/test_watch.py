"""The loop: on a real pseudo-terminal and into real pipes, with looks made by hand."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from moh_ebpf import watch
from moh_ebpf.errors import ExitStatus, NotAttachedError
from moh_ebpf.peers import Snapshot
from moh_ebpf.render import Description
from tests.support.samples import DESCRIPTION, peer, snapshot

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0  # seconds
ENTER, LEAVE, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"

# Looks at 50 packets/s; with a life, what it looks at is detached after so many looks.
WATCHED = """
import itertools, sys, time
from rich.console import Console
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.watch import watch
from tests.support.samples import DESCRIPTION, peer, snapshot

interval, life = map(float, sys.argv[1:])
looks = itertools.count(1)

def look():
    if next(looks) > life:
        raise NotAttachedError("not attached")
    now = time.monotonic()
    return DESCRIPTION, snapshot(peer(in_packets=int(50 * now)), time=now, rewritten=int(50 * now))

try:
    watch(interval, Console(), look)
except MohError as error:
    print(error, file=sys.stderr)
    sys.exit(error.status)
"""


def command(interval: float, life: float = float("inf")) -> list[str]:
    return [sys.executable, "-c", WATCHED, str(interval), str(life)]


def environment() -> dict[str, str]:
    ignored = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in ignored}
    return kept | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


class Terminal:
    """A process on a terminal of its own, and all that it wrote there."""

    def __init__(self, argv: list[str], width: int, height: int) -> None:
        self.process, self._fd = _on_terminal(argv, width, height)
        self.written = ""

    def resize(self, width: int, height: int) -> None:
        """As a terminal emulator does: the kernel then sends SIGWINCH."""
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
        os.close(self._fd)


def _on_terminal(argv: list[str], width: int, height: int) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    try:
        _set_size(ours, width, height)
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
    return process, ours


def _set_size(fd: int, width: int, height: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


@contextmanager
def terminal(argv: list[str], width: int = 80, height: int = 24) -> Iterator[Terminal]:
    made = Terminal(argv, width, height)
    try:
        yield made
    finally:
        made.close()


def screen_is_left_clean(written: str) -> bool:
    return written.count(ENTER) == written.count(LEAVE) > 0 and written.rindex(
        SHOW_CURSOR
    ) > written.rindex("ENDPOINT")


def test_ctrl_c_leaves_the_screen_clean_and_is_no_failure() -> None:
    with terminal(command(0.2)) as term:
        term.read_until("+50/s")
        term.type("\x03")
        assert term.end() == ExitStatus.OK
        assert screen_is_left_clean(term.written)


def test_sigterm_leaves_the_screen_clean_and_ends_it() -> None:
    with terminal(command(0.2)) as term:
        term.read_until("203.0.113.1:20001")
        term.process.terminate()
        assert term.end() == -signal.SIGTERM
        assert screen_is_left_clean(term.written)


def test_ctrl_z_gives_the_terminal_back_until_it_is_continued() -> None:
    # A stop from the terminal needs a parent in the session, as a shell is.
    shell = ["bash", "--norc", "-i"]
    with terminal(shell) as term:
        term.type("PS1='$ '; exec 2>&1; " + " ".join(map(_quoted, command(0.2))) + "\n")
        term.read_until(ENTER)
        term.read_until("203.0.113.1:20001")
        term.type("\x1a")
        assert SHOW_CURSOR in term.read_until("Stopped")
        assert term.written.count(LEAVE) == 1
        term.type("fg\n")
        assert ENTER in term.read_until("203.0.113.1:20001")
        term.type("\x03")
        term.read_until(LEAVE)
        term.type("echo status=$?; exit\n")
        assert "status=0" in term.read_until("status=0")


def _quoted(word: str) -> str:
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def test_what_is_detached_is_said_after_the_screen_is_left() -> None:
    with terminal(command(0.1, life=3)) as term:
        assert term.end() == ExitStatus.NOT_ATTACHED
        assert screen_is_left_clean(term.written)
        assert "detached meanwhile" in term.written[term.written.rindex(LEAVE) :]


def test_what_is_not_attached_is_said_without_a_screen() -> None:
    with terminal(command(0.1, life=0)) as term:
        assert term.end() == ExitStatus.NOT_ATTACHED
        assert ENTER not in term.written
        assert "not attached" in term.written


def test_a_new_size_is_drawn_at_once() -> None:
    with terminal(command(interval=600), 120, 40) as term:
        assert "PUBLIC" in term.read_until("learned_moh")
        term.resize(60, 12)
        smaller = term.read_until("learned_moh")
        assert "203.0.113.1:20001" in smaller
        assert "PUBLIC" not in smaller


def test_a_terminal_that_cannot_be_drawn_on_gets_lines() -> None:
    argv = ["env", "TERM=dumb", *command(0.1)]
    with terminal(argv) as term:
        term.read_until("missing=0")
        assert "\x1b" not in term.written


def piped(interval: float, life: float = float("inf")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(interval, life),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def test_a_pipe_gets_a_line_each_interval() -> None:
    with piped(0.2, life=5) as process:
        out, err = process.communicate(timeout=PATIENCE)
    lines = [dict(word.split("=") for word in line.split()[1:]) for line in out.splitlines()]
    assert len(lines) == 4
    assert all(list(line) == list(lines[0]) for line in lines)
    assert sum(float(line["in"]) for line in lines) / 4 == pytest.approx(50, rel=0.1)
    times = [datetime.fromisoformat(line.split()[0]).timestamp() for line in out.splitlines()]
    seconds = times[-1] - times[0]
    assert seconds == pytest.approx(0.6, abs=0.2)
    assert sum(int(line["rewritten"]) for line in lines[1:]) == pytest.approx(50 * seconds, abs=3)
    assert process.returncode == ExitStatus.NOT_ATTACHED
    assert "detached meanwhile" in err


def test_a_line_is_there_when_its_interval_ends() -> None:
    with piped(0.1) as process:
        assert process.stdout
        at = datetime.fromisoformat(process.stdout.readline().split()[0])
        assert datetime.now(at.tzinfo) - at < timedelta(seconds=1)
        process.kill()


def test_a_reader_who_has_had_enough_ends_it_quietly() -> None:
    with piped(0.1) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == ExitStatus.OK
        assert process.stderr
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_lines_without_a_word() -> None:
    with piped(0.1) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (ExitStatus.OK, "")


def test_being_late_once_does_not_shift_what_follows() -> None:
    ticks = watch._ticks(0.05)
    first = next(ticks)
    time.sleep(0.12)
    asked = time.monotonic()
    second = next(ticks)
    passed = (second - first) / 0.05
    assert passed == pytest.approx(round(passed))
    assert asked < second < asked + 0.1


def test_each_frame_has_the_rates_since_the_one_before() -> None:
    packets = iter([1000, 1050, 1060])

    def look() -> tuple[Description, Snapshot]:
        count = next(packets)
        return DESCRIPTION, snapshot(peer(1, in_packets=count), time=count / 100)

    frames = watch._frames(look)
    assert next(frames).rates.peers == {}
    assert [next(frames).rates.peers["203.0.113.1:20001"].inbound for _ in range(2)] == [
        pytest.approx(100),
        pytest.approx(100),
    ]


def test_the_first_look_says_itself_that_nothing_is_attached() -> None:
    def look() -> tuple[Description, Snapshot]:
        raise NotAttachedError("not attached here")

    with pytest.raises(NotAttachedError, match="not attached here"):
        next(watch._frames(look))
