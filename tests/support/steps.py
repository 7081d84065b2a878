"""The steps of a command, which are its calls of BPF and netlink, and a fault at one of them.

strace stops the command as it enters the call: what came before is done, the call itself is not.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.support.namespace import Namespace

_CALLS = "bpf,sendto,sendmsg,exit_group"
# What asks and changes nothing; of netlink's types, those of RTM_GET… (linux/rtnetlink.h).
_READS = re.compile(r"_BY_ID|_BY_FD|LOOKUP|QUERY|0x12|0x16|0x26|0x2e|RTM_GET")

_LOADS = re.compile(r"_LOAD|_CREATE|_BIND")


class Step(NamedTuple):
    """The number-th of the command's calls of this kind, from 1; `name` is what it asks for."""

    order: int
    call: str
    number: int
    name: str


def steps(place: Namespace, *words: str) -> list[Step]:
    """What moh-ebpf does with these words, told by doing it once."""
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace"
        _strace(place, ["-o", str(trace), "-e", f"trace={_CALLS}"], words)
        lines = [line for line in trace.read_text().splitlines() if "(" in line]
    found, numbers = [], Counter[str]()
    for order, line in enumerate(lines):
        call, name = _read(line)
        numbers[call] += 1
        found.append(Step(order, call, numbers[call], name))
    return found


def telling(all_steps: list[Step]) -> list[Step]:
    """The first step of each name, and the last of those that change something: what lies between
    repeats them. MOH_EVERY_STEP=1 leaves none out; that takes some minutes.
    """
    if os.environ.get("MOH_EVERY_STEP"):
        return all_steps
    firsts = {step.name: step for step in reversed(all_steps)}
    lasts = {step.name: step for step in all_steps if not _READS.search(step.name)}
    return sorted({*firsts.values(), *lasts.values()})


def changing(all_steps: list[Step]) -> list[Step]:
    """Of the telling ones those that change something, whatever the type of program or map: where
    a command is killed, what it has read is no matter."""
    changes = [step for step in all_steps if not _READS.search(step.name)]
    return telling([step._replace(name=step.name.split()[0]) for step in changes])


def replacing(all_steps: list[Step]) -> list[Step]:
    """The telling ones of a replacement but for those that load: an attach has the same."""
    return [step for step in telling(all_steps) if not _LOADS.search(step.name)]


def kill(place: Namespace, step: Step, *words: str) -> None:
    """Run the command with these words, and kill it (-9) before this step."""
    _strace(place, _inject(step, "signal=KILL"), words)


def fail(place: Namespace, step: Step, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these words; at this step the kernel says that it has no memory."""
    return _strace(place, _inject(step, "error=ENOMEM"), words)


def _inject(step: Step, fault: str) -> list[str]:
    return ["-o", "/dev/null", "-e", f"trace={_CALLS}",
            "-e", f"inject={step.call}:{fault}:when={step.number}"]  # fmt: skip


def _strace(
    place: Namespace, options: list[str], words: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    # entered by strace's parent, so that no call but the command's own is counted
    with place.entered():
        return subprocess.run(
            ["strace", "--quiet=all", *options, sys.executable, "-m", "moh_ebpf", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def _read(line: str) -> tuple[str, str]:
    """The system call; and a command of BPF's with the type of program or map, the type of a
    netlink message, or the call."""
    call = re.search(r"(\w+)\(", line)
    assert call, line
    names = re.findall(r"\bBPF_[A-Z_]+", line)[:2] or re.findall(r"(?<=nlmsg_type=)\w+", line)[:1]
    return call[1], " ".join(names) or call[1]
