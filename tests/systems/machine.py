"""A machine with systemd, in namespaces of its own, on the root file system that we are in.

systemd gets its own processes, mounts, network and cgroups. What it could change of the kernel that
runs us, /proc/sys, is read-only.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# One at a time: scripts/test-systems takes turns.
CGROUP = "moh-test-systems"
_PATIENCE_SECONDS = 30.0
_BOOT = """
set -e
echo 0 >"$1/cgroup.procs"
umount -l "${1%/*}"
exec unshare --cgroup sh -ec '
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t cgroup2 cgroup /sys/fs/cgroup
    mount -t tmpfs -o mode=755 run /run
    mkdir /run/lock
    echo 1 >/proc/sys/net/ipv4/ip_forward
    mount --bind /proc/sys /proc/sys
    mount -o remount,ro,bind /proc/sys
    exec /lib/systemd/systemd --show-status=no --unit=basic.target'
"""
_SPACES = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]


class Machine:
    def __init__(self, process: int) -> None:
        self._enter = ["nsenter", "--target", str(process), *_SPACES]

    def run(
        self, *command: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._enter, *command], capture_output=True, text=True, check=False,
                              timeout=120, **options)  # fmt: skip
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._enter, *command], text=True, **options)

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()


@contextmanager
def machine() -> Iterator[Machine]:
    """Boot it; it ends with us."""
    with _cgroup() as cgroup:
        spaces = ["--pid", "--fork", "--mount", "--net", "--uts", "--ipc", "--kill-child"]
        process = subprocess.Popen(
            ["unshare", *spaces, "sh", "-c", _BOOT, "sh", str(cgroup)],
            env={**os.environ, "container": "moh-test"},
            stdin=subprocess.DEVNULL,
        )
        try:
            until(lambda: _init(process) is not None)
            made = Machine(_init(process) or 0)
            until(lambda: made.run("systemctl", "is-system-running", check=False).stdout.strip()
                          in ("running", "degraded"))  # fmt: skip
            yield made
        finally:
            process.kill()
            process.wait()


def _init(process: subprocess.Popen[bytes]) -> int | None:
    """The number of systemd's process, as soon as it is systemd's."""
    assert process.poll() is None, "systemd has not started"
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
            return int(child)
    return None


@contextmanager
def _cgroup() -> Iterator[Path]:
    """One of its own, in the hierarchy of version 2, which this process need not be in."""
    # Not in /tmp, which systemd empties when it boots.
    with tempfile.TemporaryDirectory(dir="/mnt") as directory:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup", directory], check=True)
        made = Path(directory, CGROUP)
        try:
            _remove(made)
            made.mkdir()
            yield made
        finally:
            until(lambda: _remove(made))
            subprocess.run(["umount", "-l", directory], check=True)


def _remove(cgroup: Path) -> bool:
    """Is it gone? Those below it go first; one whose processes are just ending is busy."""
    for each in sorted(cgroup.glob("**/"), reverse=True):
        with suppress(OSError):
            each.rmdir()
    return not cgroup.exists()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"not so within {_PATIENCE_SECONDS:.0f} s"
        time.sleep(0.05)
