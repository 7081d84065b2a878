"""One command at a time changes a network namespace, and one service keeps it."""

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moh_ebpf.errors import MohError

Notify = Callable[[str], None]

_ASKED_EVERY_SECONDS = 0.05
_UNSEEN_FOR_SECONDS = 20.0

# An abstract unix(7) socket: its name is one network namespace's, and ends with the process.
_SERVICE = b"\0moh-ebpf run"
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_ACCEPTED_WITHIN = struct.pack("ll", 5, 0)  # struct timeval


@contextmanager
def exclusive(notify: Notify, *, waits: bool = True) -> Iterator[None]:
    """One command at a time changes this network namespace; the next one says so and waits.
    Without `waits`, it raises MohError instead.

    The lock is on the namespace itself (flock on /proc/self/ns/net): no file of ours, and the
    kernel lets go of it with the process, however that ends.
    """
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        _wait_for(fd, notify, waits)
        yield
    finally:
        os.close(fd)


def _wait_for(lock: int, notify: Notify, waits: bool) -> None:
    """Take the lock, and wait for it while another command has it.

    One that somebody else than root holds, or a process that has ended, is none of our commands',
    for they need root and take their lock with them: it must not keep root from detaching. The
    holder may change as we wait, so that is asked again and again.
    """
    begun, said = time.monotonic(), False
    while not _take(lock):
        holder = _holder(os.fstat(lock).st_ino)
        foreign = _foreign(holder, time.monotonic() - begun)
        if foreign:
            if not _take(lock):
                notify(f"{foreign} locks this network namespace: ignored")
            return
        if not waits:
            raise MohError("another moh-ebpf command is changing this network namespace")
        if not said:
            who = f" (process {holder})" if holder else ""
            notify(f"waiting for another moh-ebpf{who} to finish")
            said = True
        time.sleep(_ASKED_EVERY_SECONDS)


def _take(lock: int) -> bool:
    """Take the lock if it is free, or ours already; is it ours now?"""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(inode: int) -> int | None:
    """The process that holds the lock, from /proc/locks (proc_locks(5))."""
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def _foreign(holder: int | None, waited: float) -> str | None:
    """What makes the holder none of our commands; None if it may be one.

    From within a container (a PID namespace), neither processes outside are seen nor those that
    have ended: such a one is waited for as long as a slow command takes.
    """
    if holder is None:
        return "a process that cannot be seen here" if waited > _UNSEEN_FOR_SECONDS else None
    try:
        user = Path(f"/proc/{holder}").stat().st_uid
    except FileNotFoundError:
        return f"process {holder}, which has ended,"
    return None if user == 0 else f"process {holder}, which is not root's,"


@contextmanager
def only_service(notify: Notify) -> Iterator[socket.socket]:
    """This process is the one `run` of this network namespace: two would undo each other's work.

    Who asks for it connects to the socket, which is to be accepted, and is told nothing.
    Raises MohError if there is one already. A name that somebody else than root has taken stops
    nobody.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        try:
            name.bind(_SERVICE)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            process = running_service()
            if process is not None:
                raise MohError(
                    f"moh-ebpf run is there already in this network namespace (process {process}); "
                    "stop that first, or reload its config: systemctl reload moh-ebpf"
                ) from None
            notify("a process that is not root's has the name of moh-ebpf's service: ignored")
            name.bind("")  # to some name of the kernel's choice
        name.listen()
        yield name


def is_asked_by_root(name: socket.socket) -> bool:
    """Accept who connects to the service's name, and let go: was it root?"""
    asking, _ = name.accept()
    with asking:
        return _root_at(asking) is not None


def running_service() -> int | None:
    """The process of the `run` in this network namespace, 0 if it cannot be seen from here (a PID
    namespace); None if there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        # One that accepts nobody for so long is no service of ours.
        name.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _ACCEPTED_WITHIN)
        try:
            name.connect(_SERVICE)
        except OSError:
            return None
        return _root_at(name)


def _root_at(connected: socket.socket) -> int | None:
    """The process at a Unix socket's other end, as of its connect(2) or listen(2); None if it is
    not root's."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    process, user, _ = _UCRED.unpack(credentials)
    return process if user == 0 else None
