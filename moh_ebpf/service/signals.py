"""What signals ask of the service."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from moh_ebpf.service.systemd import SERVICE_SIGNALS


class Stopped(Exception):
    """A signal has asked us to stop."""


class Signals:
    """What signals have asked for. `wakes` is readable when there is something new."""

    def __init__(self, wakes: socket.socket) -> None:
        self.wakes = wakes
        self.stop = False
        self.keep = False
        self._reload = False

    def received(self, number: int, _frame: object) -> None:
        """The handler: many of a kind are as one."""
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self.stop = True
            self.keep = number == signal.SIGUSR1

    def raise_if_stopped(self) -> None:
        """Raises Stopped."""
        if self.stop:
            raise Stopped

    def reload_asked(self) -> bool:
        """Is a reload asked for, since the last call? Raises Stopped: that goes first."""
        with suppress(BlockingIOError):
            self.wakes.recv(4096)
        self.raise_if_stopped()
        asked, self._reload = self._reload, False
        return asked


@contextmanager
def handled_signals() -> Iterator[Signals]:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signals = Signals(reader)
    handlers = {each: signal.signal(each, signals.received) for each in SERVICE_SIGNALS}
    # Full: then there is something to read, which is all that it is for.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # They have waited since the start of the program (__main__.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVICE_SIGNALS)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(before)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        reader.close()
        writer.close()
