"""moh-ebpf by a fork of a process that has imported it already, which takes a third of a second.

Otherwise it is as `ip netns exec NAME python -m moh_ebpf …`: a process of its own in the network
namespace, with that one's /sys. tests/netns/test_package.py and the service's tests start Python.
"""

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from typing import Any

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_MS_REC, _MS_SLAVE, _MNT_DETACH = 0x4000, 0x80000, 2
_LONGEST_REQUEST = 1 << 20


def run(
    namespace: str, words: tuple[str, ...], seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run it with these words; its output as text. Raises TimeoutError."""
    request = {"namespace": namespace, "words": words, "cwd": os.getcwd(), "env": dict(os.environ)}
    outputs = [os.memfd_create("stdout"), os.memfd_create("stderr")]
    status, tells = os.pipe()
    try:
        with open(os.devnull, "rb") as nothing:
            fds = [nothing.fileno(), *outputs, tells]
            socket.send_fds(_zygote(os.getpid()), [json.dumps(request).encode()], fds)
        os.close(tells)
        code = _await(status, seconds)
        texts = [_text(fd) for fd in outputs]
    finally:
        for fd in (*outputs, status):
            os.close(fd)
    return subprocess.CompletedProcess(("moh-ebpf", *words), code, *texts)


def _await(status: int, seconds: float) -> int:
    """The exit status, negative for a signal. The pipe tells the process's id, then that."""
    pid = int(os.read(status, 16))
    if not select.select([status], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
        raise TimeoutError(f"moh-ebpf (process {pid}) does not end")
    return int(os.read(status, 16))


def _text(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode()


@cache
def _zygote(_pid: int) -> socket.socket:
    """The way to this process's own one, which ends when the way is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    atexit.register(_end, ours, process)
    return ours


def _end(way: socket.socket, process: subprocess.Popen[bytes]) -> None:
    way.close()
    process.wait()


# The other side.


def _serve(requests: socket.socket) -> None:
    """Until nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 4)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            _begin(json.loads(data), fds)
        for fd in fds:
            os.close(fd)


def _begin(request: dict[str, Any], fds: list[int]) -> None:
    """Fork the command, wait for it, tell its end."""
    *streams, tells = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(tells)
        _become(request, streams)
    for fd in streams:
        os.close(fd)
    os.write(tells, f"{pid}\n".encode().ljust(16))
    _, status = os.waitpid(pid, 0)
    os.write(tells, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """moh-ebpf with these words, in the namespace."""
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
            os.close(fd)
        _enter(request["namespace"])
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.argv = ["moh-ebpf", *request["words"]]
        _run()
    finally:
        os._exit(70)  # not reached


def _run() -> None:
    from moh_ebpf.__main__ import main

    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _enter(namespace: str) -> None:
    """As `ip netns exec`: its network, and a /sys that shows that."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), name)

    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    call("setns", there, _CLONE_NEWNET)
    os.close(there)
    call("unshare", _CLONE_NEWNS)
    call("mount", b"", b"/", b"none", ctypes.c_ulong(_MS_SLAVE | _MS_REC), None)
    call("umount2", b"/sys", _MNT_DETACH)
    call("mount", namespace.encode(), b"/sys", b"sysfs", ctypes.c_ulong(0), None)


if __name__ == "__main__":
    import bcc  # noqa: F401
    import rich.console  # noqa: F401

    import moh_ebpf.attach.attachment
    import moh_ebpf.cli
    import moh_ebpf.doctor
    import moh_ebpf.service.exporter
    import moh_ebpf.show.follow
    import moh_ebpf.show.peers
    import moh_ebpf.show.status  # noqa: F401

    _serve(socket.socket(fileno=int(sys.argv[1])))
