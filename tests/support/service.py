"""`moh-ebpf run` as a test's own process: its log, and what it tells the service manager."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.support.firewall import UCM
from tests.support.namespace import Namespace
from tests.support.waiting import PATIENCE_SECONDS

# The firewall of tests/support/firewall.py, whose endpoints are not forgotten in a test's time.
CONFIG = f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\ntimeout = "60s"\n'


class Service:
    """A running service. `wait_for_line` and `wait_for_word` await its log and its notifications;
    each is looked at once, in order."""

    def __init__(self, process: subprocess.Popen[str], manager: socket.socket) -> None:
        self.process = process
        self.lines: list[str] = []
        self._log: queue.Queue[str] = queue.Queue()
        self._manager = manager
        self._words: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self._log.put(line.rstrip("\n"))

    def wait_for_line(self, text: str) -> str:
        """The next line of its log with this text."""
        while True:
            try:
                line = self._log.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} after {self.lines}") from None
            self.lines.append(line)
            if text in line:
                return line

    def no_more_lines(self) -> bool:
        return self._log.empty()

    def wait_for_word(self, field: str) -> str:
        """The next value that it gives this field of sd_notify(3)."""
        while True:
            while self._words:
                name, _, value = self._words.pop(0).partition("=")
                if name == field:
                    return value
            self._words = self._manager.recv(4096).decode().split("\n")

    def close(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr:
            self.process.stderr.close()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


def reader_of(run: Service) -> int:
    """The process that reads SIP for the service."""
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
    (pid,) = (
        int(each)
        for each in children.split()
        if b"sip_reader" in Path(f"/proc/{each}/cmdline").read_bytes()
    )
    return pid


def held_up(run: Service) -> bool:
    """Does its attach wait for the lock that somebody else has? It has opened what it locks. (Where
    a process sleeps, /proc says on some kernels only.)"""
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
    return any(map(_has_its_namespace_open, children.split()))


def _has_its_namespace_open(pid: str) -> bool:
    with suppress(OSError):  # it has ended, or closes one
        files = list(Path(f"/proc/{pid}/fd").iterdir())
        return any(os.readlink(each).startswith("net:[") for each in files)
    return False


@contextmanager
def service(
    namespace: Namespace,
    directory: Path,
    config: str,
    *arguments: str,
    stderr: int = subprocess.PIPE,
    before: Sequence[str] = (),
    **environment: str,
) -> Iterator[Service]:
    """Run it in the namespace with this config, which is `directory`/moh-ebpf.toml. `environment`
    is added to this process's own; `before` are words before the command. It is killed at the end,
    if it still runs. Given another `stderr`, its log is not read."""
    file = directory / "moh-ebpf.toml"
    file.write_text(config)
    address = directory / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE_SECONDS)
        moh = [sys.executable, "-m", "moh_ebpf"]
        command = [*before, *moh, "run", "--config", str(file), *arguments]
        with namespace.entered():
            process = subprocess.Popen(
                command,
                stderr=stderr,
                text=True,
                env={**os.environ, "NOTIFY_SOCKET": str(address), **environment},
            )
        with closing(Service(process, manager)) as made:
            yield made
