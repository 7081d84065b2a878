"""moh-ebpf's command line, and which of its time is Python's start and which BCC's.

  python -m tests.bench.timed_cli FILE SPAWNED ARGUMENT...

SPAWNED is when the process was begun (time.monotonic). Writes to FILE, as JSON, seconds: `start`,
from then until all modules are imported; `compile`, BCC's; `load`, libbpf's and the kernel's
verifier's; `cpu`, on a CPU; and the most memory, in KiB. What remains of the whole time is
moh_ebpf's own.
"""

import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What they import when they run.
_BY_ATTACHMENT = ("attach", "detach")

seconds = {"start": 0.0, "compile": 0.0, "load": 0.0}


def _timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **options: Any) -> Any:
        begin = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            seconds[phase] += time.monotonic() - begin

    return wrapper


def _watch_bcc() -> None:
    """Its import counts as Python's start; it is imported only by what compiles."""
    from moh_ebpf.attach import compiler

    plain = _timed("start", compiler.import_bcc)

    def import_bcc() -> Any:
        bcc = plain()
        bcc.BPF.__init__ = _timed("compile", bcc.BPF.__init__)
        bcc.BPF.load_func = _timed("load", bcc.BPF.load_func)
        return bcc

    compiler.import_bcc = import_bcc


def main(file: str, spawned: str, *arguments: str) -> None:
    importlib.import_module("moh_ebpf.cli")
    late = "attach.attachment" if arguments[0] in _BY_ATTACHMENT else "registry.walk"
    importlib.import_module(f"moh_ebpf.{late}")
    seconds["start"] = time.monotonic() - float(spawned)
    if arguments[0] == "attach":
        _watch_bcc()
    from moh_ebpf import cli

    sys.argv = ["moh-ebpf", *arguments]
    try:
        cli.main()
    finally:
        used = {"cpu": time.process_time(), "max_rss": _most_memory()}
        Path(file).write_text(json.dumps(seconds | used))


def _most_memory() -> int:
    """In KiB. getrusage() would tell the parent's, if that was more when it forked."""
    (line,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
