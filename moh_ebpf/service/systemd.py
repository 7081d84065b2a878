"""What a service says to systemd, and how its log lines reach the journal.

Two small protocols, documented for programs to speak themselves: sd_notify(3) and the priorities
of sd-daemon(3). Where systemd is not there, nothing is said.
"""

import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Python's levels as syslog priorities, which journald takes from "<N>" at the head of a line.
_PRIORITIES = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}

# What a service answers to: stop, stop, be followed by another, reload.
SERVICE_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

# Lines that wait for a reader. What comes after them is lost, and counted.
_MOST_LINES = 1000
# How long the last ones may take.
_PATIENCE_SECONDS = 1.0


def is_listening() -> bool:
    """Is there a service manager that wants to be told?"""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def notify(**fields: object) -> None:
    """Send fields (`READY=1`, `STATUS="…"`) to the service manager. Never raises: a manager that
    does not listen is no reason to stop."""
    if not is_listening():
        return
    address = os.environ["NOTIFY_SOCKET"]
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(1.0)  # one that does not read must not stop us
            manager.connect(address.replace("@", "\0", 1))
            manager.send(message.encode(errors="replace"))
    except OSError:
        return


def notify_reloading() -> None:
    """A reload begins; READY ends it."""
    notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def watchdog_seconds() -> float | None:
    """The time within which the manager wants to hear WATCHDOG=1; None if it does not."""
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    micros = os.environ.get("WATCHDOG_USEC", "")
    return max(int(micros) / 1e6, 0.02) if for_us and micros.isdecimal() and int(micros) else None


@contextmanager
def logger(name: str) -> Iterator[logging.Logger]:
    """Logs to stderr, a line an event: with the journal's priorities where that reads it, elsewhere
    as the command line's other messages. Never waits for whoever reads."""
    handler = _LogHandler(sys.stderr.fileno())
    handler.setFormatter(_Format(_is_journal(sys.stderr.fileno())))
    made = logging.getLogger(name)
    made.handlers = [handler]
    made.setLevel(logging.INFO)
    made.propagate = False
    try:
        yield made
    finally:
        made.handlers = []
        handler.finish()


class _LogHandler(logging.Handler):
    """Has a thread of its own write the lines: a full pipe, a journal that hangs, a terminal that
    was stopped hold that up, and nothing else. (To set O_NONBLOCK instead would change the stream
    for everybody who has it.)"""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Lines that there was no room for are told of at their place, as soon as there is room."""
        try:
            if self._lost:
                self._lines.put_nowait(self.format(_lost(self._lost)))
                self._lost = 0
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1

    def finish(self) -> None:
        """Write what is left, if somebody reads it."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE_SECONDS)
            self._thread.join(_PATIENCE_SECONDS)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError):  # nobody is there to read it, or the disk is full
                self._write(f"{line}\n".encode(errors="replace"))

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody else made it so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


def _lost(count: int) -> logging.LogRecord:
    text = f"lines of this log that were lost here, for nobody read them: {count}"
    return logging.LogRecord("", logging.WARNING, "", 0, text, None, None)


class _Format(logging.Formatter):
    def __init__(self, to_journal: bool) -> None:
        super().__init__()
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        if self._to_journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}"
        word = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"moh-ebpf: {word}{text}"


def _is_journal(fd: int) -> bool:
    """Is this descriptor the stream that $JOURNAL_STREAM names (systemd.exec(5))?"""
    try:
        opened = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{opened.st_dev}:{opened.st_ino}"
