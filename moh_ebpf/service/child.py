"""`moh-ebpf attach` as a process of its own."""

import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from moh_ebpf.errors import MohError
from moh_ebpf.service import systemd
from moh_ebpf.service.signals import Signals, Stopped
from moh_ebpf.settings import Settings

# Not /dev/stdin, which a small /dev has not; /proc is there, for the lock is in it.
_STDIN = "/proc/self/fd/0"
_LONG_ATTACH_SECONDS = 10
_LONGEST_ERROR = 1000  # characters, of a compiler's or verifier's many lines


def run_attach(settings: Settings, signals: Signals, log: logging.Logger) -> list[str]:
    """Run `attach`; its warnings. Raises MohError with its error, Stopped if that is asked for
    meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-m", "moh_ebpf", "attach", "--json", "--config", _STDIN],
        cwd=Path(__file__).parents[2],  # where this very package is found
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a Ctrl-C is for us to answer
    ) as process:
        stdout, stderr = _finished(process, _toml(settings), signals, log)
    report = _report(stdout)
    if process.returncode:
        # Without a report, it has ended before it could say why: the last line tells the most.
        last = [line.removeprefix("moh-ebpf: ") for line in stderr.splitlines()[-1:]]
        text = report.get("error") or " ".join(last)
        text = text.replace(f"--config {_STDIN}: ", "").replace("\n", " ")
        raise MohError(text[:_LONGEST_ERROR] or f"attach ended with status {process.returncode}")
    return [str(each) for each in report.get("warnings", [])]


def _report(text: str) -> dict[str, Any]:
    """What `attach --json` says; empty if it has said nothing."""
    try:
        report = json.loads(text)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _finished(
    process: "subprocess.Popen[str]", text: str, signals: Signals, log: logging.Logger
) -> tuple[str, str]:
    """Its stdout and stderr, when it has ended; the watchdog is fed while it runs. Raises
    Stopped."""
    given: str | None = text
    for seconds in itertools.count(1):
        try:
            return process.communicate(given, timeout=1.0)
        except subprocess.TimeoutExpired:
            given = None  # that is on its way
            systemd.notify(WATCHDOG=1)
            if signals.stop:
                process.terminate()
                process.communicate()
                raise Stopped from None
            if seconds == _LONG_ATTACH_SECONDS:
                log.warning("attach takes long; is another moh-ebpf command at work?")
    raise AssertionError


def _toml(settings: Settings) -> str:
    """The settings as a config file: JSON's strings, numbers and lists are TOML's, too."""
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in settings.to_json().items()
        if value != []
    )
