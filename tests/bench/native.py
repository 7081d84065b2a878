"""The C programs of the benchmark: compiled once, run pinned to the CPU that is measured."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.packet import Packet

from tests.support.namespace import Namespace
from tests.support.wire import Wire

_HERE = Path(__file__).parent
_BUILD = _HERE.parents[1] / "build/bench"

# The generator and all that its packets cause run on the last CPU; Python and the rest elsewhere.
CPU = max(os.sched_getaffinity(0))

# Frames of one system call. What waits for a program in user space must fit its queue (1024).
BURST = 64


def leave_the_cpu() -> None:
    """This process and what it starts keep off the measured CPU, where there is another."""
    others = os.sched_getaffinity(0) - {CPU}
    if others:
        os.sched_setaffinity(0, others)


def program(name: str, *libraries: str) -> Path:
    """A C program of this directory, compiled anew if its source is newer."""
    source, binary = _HERE / f"{name}.c", _BUILD / name
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        _BUILD.mkdir(parents=True, exist_ok=True)
        link = [f"-l{library}" for library in libraries]
        subprocess.run(["gcc", "-O2", "-Wall", "-o", binary, source, *link], check=True)
    return binary


def pinned(*command: object) -> list[str]:
    return ["taskset", "--cpu-list", str(CPU), *map(str, command)]


@dataclass(frozen=True)
class Sent:
    """A run of the generator: `arrived` at the sink, `busy` ns spent sending `count` frames."""

    count: int
    arrived: int
    busy: int

    @property
    def ns(self) -> float:
        return self.busy / self.count


def start(
    wire: Wire,
    sink: Wire,
    packet: Packet,
    *,
    flows: int = 1,
    count: int,
    burst: int = BURST,
    pause: int | str = 0,
    side: str = "to",
) -> subprocess.Popen[bytes]:
    """Begin to send `count` frames into a wire's outside end; generator.c tells the rest."""
    options = [side, flows, count, burst, pause]
    command = pinned(program("generator"), wire.end, sink.end, *options)
    process = subprocess.Popen(
        in_namespace(wire.outside, *command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(bytes(wire.frame(packet)))
    process.stdin.close()
    process.stdin = None
    return process


def send(wire: Wire, sink: Wire, packet: Packet, *, count: int, **options: Any) -> Sent:
    """As `start`, to the end."""
    process = start(wire, sink, packet, count=count, **options)
    try:
        said, complaint = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, complaint.decode()
    arrived, busy, waited = map(int, said.split())
    return Sent(count, arrived, busy - waited)


def in_namespace(namespace: Namespace, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace.name, *command]


def cpu_ns(pid: int) -> int:
    """ns that a process's main thread has been on a CPU, softirqs in its context included."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
