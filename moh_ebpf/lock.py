"""One command at a time changes a network namespace."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Notify = Callable[[str], None]


@contextmanager
def exclusive(notify: Notify) -> Iterator[None]:
    """One command at a time changes this network namespace; the next one says so and waits.

    The lock is on the namespace itself (flock on /proc/self/ns/net): no file of ours, and the
    kernel lets go of it with the process, however that ends.
    """
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _wait_for(fd, notify)
        yield
    finally:
        os.close(fd)


def _wait_for(lock: int, notify: Notify) -> None:
    """Wait for the lock, unless somebody else than root has it: that is none of our commands, for
    they need root, and must not keep root from detaching."""
    holder = _holder(os.fstat(lock).st_ino)
    if holder and _user(holder) != 0:
        notify(f"process {holder}, which is not root's, locks this network namespace: ignored")
        return
    notify(f"waiting for another moh-ebpf{f' (process {holder})' if holder else ''} to finish")
    fcntl.flock(lock, fcntl.LOCK_EX)


def _holder(inode: int) -> int | None:
    """The process that holds the lock, from /proc/locks (proc_locks(5))."""
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def _user(process: int) -> int:
    """A process's user; root's, 0, if it has ended meanwhile."""
    try:
        return Path(f"/proc/{process}").stat().st_uid
    except FileNotFoundError:
        return 0
