"""What the commands take: attach, replace, detach; `peers --json` and `watch` with many peers."""

import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.registry import walk
from tests.bench import contenders, native
from tests.bench.contenders import LIFETIME, Running
from tests.bench.effort import Effort
from tests.bench.forwarding import Tell
from tests.bench.programs import fdinfo
from tests.support.firewall import UCM, Firewall, firewall
from tests.support.namespace import Namespace
from tests.support.waiting import PATIENCE_SECONDS

ATTACH = ("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, "--timeout", LIFETIME)


class _Command:
    """moh-ebpf by timed_cli, begun at once."""

    def __init__(self, namespace: Namespace, *arguments: str, **options: Any) -> None:
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115 (closed in `finished`)
        self._begin = time.monotonic()
        module = [sys.executable, "-m", "tests.bench.timed_cli", self._file.name, str(self._begin)]
        command = native.in_namespace(namespace, *module, *arguments)
        self.process = subprocess.Popen(command, **options)

    def finished(self) -> dict[str, float]:
        """timed_cli's numbers, seconds of the `whole`, and of what is left of it: `own`."""
        with self._file:
            assert self.process.wait() == 0, self.process.args
            whole = time.monotonic() - self._begin
            found: dict[str, float] = json.loads(Path(self._file.name).read_text())
        own = whole - sum(found[name] for name in ("start", "compile", "load"))
        return {"whole": whole, "own": own, **found}


def _run(namespace: Namespace, *arguments: str) -> dict[str, float]:
    return _Command(namespace, *arguments, stdout=subprocess.DEVNULL).finished()


def life_cycle(effort: Effort, tell: Tell) -> dict[str, list[dict[str, float]]]:
    """attach where nothing is, attach over that, detach: each as often as there are rounds."""
    found: dict[str, list[dict[str, float]]] = {"attach": [], "replace": [], "detach": []}
    with firewall() as fw:
        for number in range(effort.commands):
            tell(f"attach, replace, detach, round {number + 1} of {effort.commands}")
            found["attach"].append(_run(fw.namespace, *ATTACH))
            found["replace"].append(_run(fw.namespace, *ATTACH))
            found["detach"].append(_run(fw.namespace, "detach"))
    return found


def with_many_peers(effort: Effort, tell: Tell) -> dict[str, Any]:
    """A map with room for twice as many, so that all are there: an LRU map drops some early."""
    room = str(2 * effort.snapshot_peers)
    with contenders.moh("--lan", "lan", "--max-peers", room) as built:
        running = Running(contenders.MOH, built)
        running.learn(effort.snapshot_peers)
        fw = running.fw
        count = len(json.loads(fw.moh("peers", "--json").stdout))
        assert count == effort.snapshot_peers, f"{count} of {effort.snapshot_peers} peers"
        found: dict[str, Any] = {"peers": count, "snapshot": [], "peers --json": [], "watch": []}
        for number in range(effort.commands):
            tell(f"{count} peers, round {number + 1} of {effort.commands}")
            running.learn(effort.snapshot_peers)
            found["snapshot"].append(_snapshot(fw))
            found["peers --json"].append(_run(fw.namespace, "peers", "--json"))
            found["watch"].append(_watch(fw.namespace, effort.watch_seconds))
    return found


def _snapshot(fw: Firewall) -> float:
    """Seconds to read and decode all peers, without Python's start and without printing them."""
    with fw.namespace.entered(), walk.attached_or_error() as attached:
        begin = time.monotonic()
        attached.snapshot()
        return time.monotonic() - begin


def _watch(namespace: Namespace, seconds: float) -> dict[str, float]:
    """On a terminal, for some seconds."""
    ours, theirs = pty.openpty()
    draws = threading.Event()
    reader = threading.Thread(target=_drain, args=[ours, draws])
    command = _Command(namespace, "watch", stdin=theirs, stdout=theirs)
    os.close(theirs)
    reader.start()
    try:
        # Before it draws, it cannot be interrupted yet; on a busy machine that takes seconds.
        assert draws.wait(PATIENCE_SECONDS)
        time.sleep(seconds)
        command.process.send_signal(signal.SIGINT)
        return command.finished()
    finally:
        command.process.kill()
        reader.join()
        os.close(ours)


def _drain(terminal: int, draws: threading.Event) -> None:
    """Read until the other end is closed, which a terminal tells by EIO. `draws`: it has."""
    try:
        while os.read(terminal, 65536):
            draws.set()
    except OSError:
        pass


def memory() -> dict[str, Any]:
    """Bytes of kernel memory of each map as attach makes it by default; processes that stay."""
    with firewall() as fw:
        fw.moh(*ATTACH)
        with fw.namespace.entered(), IPRoute() as ipr, walk.found(ipr) as found:
            assert found.attached
            maps = {name: fdinfo(each.fd) for name, each in found.attached.maps.opened.items()}
        processes = subprocess.run(
            ["ip", "netns", "pids", fw.namespace.name], capture_output=True, text=True, check=True
        )
    return {
        "maps": {name: numbers["memlock"] for name, numbers in maps.items()},
        "processes": len(processes.stdout.split()),
    }
