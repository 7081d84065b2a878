"""Network namespaces of the tests' own: unique names, removed whatever happens."""

import ctypes
import fcntl
import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import forked

_CLONE_NEWNET = 0x40000000
_HOOKS = ("ingress", "egress", "root")
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A network namespace. `run` runs a command in it, `entered` is this thread in it."""

    def __init__(self, role: str) -> None:
        self.name = f"moh-test-{os.getpid()}-{uuid.uuid4().hex[:6]}-{role}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        # Quiet wires: no IPv6 neighbour discovery among the packets that tests count.
        self.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.run("ip", "link", "set", "lo", "up")

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def run(
        self, *command: str, check: bool = True, timeout: float = 120, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, its output as text; a failing one shows what it said."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            **options,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def moh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run moh-ebpf in it."""
        done = forked.run(self.name, arguments)
        if check:
            assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", input=rules)

    def sysctl(self, name: str, value: object) -> None:
        with self.entered():
            Path("/proc/sys", *name.split(".")).write_text(str(value))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread in the namespace: sockets made now stay there."""
        before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(before)
            os.close(before)
            os.close(there)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another command of ours is at work here, as far as one that begins now can see."""
        lock = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def ifindex(self, interface: str) -> int:
        with self.entered():
            return socket.if_nametoindex(interface)

    def tc_state(self, *interfaces: str) -> str:
        """All that tc shows of interfaces: their qdiscs, and their filters at every hook."""
        shows = ["qdisc show dev {}", *(f"filter show dev {{}} {hook}" for hook in _HOOKS)]
        asked = [show.format(interface) for interface in interfaces for show in shows]
        return self.run("tc", "-batch", "-", input="\n".join(asked) + "\n").stdout


@contextmanager
def namespace(role: str) -> Iterator[Namespace]:
    made = Namespace(role)
    try:
        yield made
    finally:
        made.delete()
