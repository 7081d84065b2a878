"""scripts/test-kernels: the tests under other kernels, and a table of what came of them."""

import argparse
import fcntl
import re
import shutil
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kernels import debian
from tests.kernels.boot import Boot
from tests.kernels.debian import CACHE, Kernel, NoKernel

SERIES = ["5.10", "6.1", "6.12", "newest"]
TESTS = ["tests/packets", "tests/netns"]
SEQUENCES = "300"
LOGS = CACHE / "logs"
RESULTS = "/run/results"

PROGRESS = re.compile(r"(tests/\S+?::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b.*\[ *(\d+)%\]")


@dataclass(frozen=True)
class Result:
    """What one kernel made of the tests; `trouble` is why there is no more to tell."""

    release: str
    seconds: float
    outcomes: Counter[str]
    failures: list[str]
    skips: Counter[str]
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        return not self.trouble and not self.failures and self.outcomes["passed"] > 0


class Progress:
    """One line that is written over on a terminal; elsewhere one line every 10 percent."""

    def __init__(self, release: str) -> None:
        self._release, self._start, self._shown = release, time.monotonic(), -1

    def show(self, what: str, percent: int = 0) -> None:
        seconds = int(time.monotonic() - self._start)
        line = f"{self._release}  {seconds // 60}:{seconds % 60:02}  {percent:3}%  {what}"
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)
        elif percent // 10 > self._shown:
            self._shown = percent // 10
            print(line, flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, flush=True)


def pytest_command(arguments: list[str]) -> list[str]:
    options = "-v --tb=short --color=no -p no:cacheprovider -p tests.kernels.selection"
    return [
        *[sys.executable, "-m", "pytest", *options.split()],
        *[f"--junitxml={RESULTS}/junit.xml", *(arguments or TESTS)],
    ]


def environment(arguments: list[str]) -> dict[str, str]:
    return {
        "MOH_ORACLE_SEQUENCES": SEQUENCES,
        "MOH_KERNEL_TESTS": "all" if arguments else "chosen",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "100",
    }


def follow(lines: Iterable[str], log: Path, progress: Progress) -> None:
    """All lines to the log, the progress to the terminal, failures at once."""
    progress.show("boots")
    with log.open("w") as file:
        for line in lines:
            file.write(line)
            file.flush()
            if found := PROGRESS.search(line):
                name, outcome, percent = found.groups()
                if outcome in ("FAILED", "ERROR"):
                    progress.say(f"{outcome} {name}")
                progress.show(name, int(percent))


def run(kernel: Kernel, arguments: list[str]) -> Result:
    """A machine that died without a word is started once more."""
    start = time.monotonic()
    progress = Progress(kernel.release)
    log = LOGS / f"{kernel.release}.log"
    boot = Boot(kernel, LOGS / kernel.release)
    for _ in range(2):
        follow(boot.lines(pytest_command(arguments), environment(arguments)), log, progress)
        if boot.status is not None or boot.timed_out:
            break
        progress.say(f"{kernel.release}: the virtual machine died, see {log}")
    result = read(kernel.release, boot, time.monotonic() - start)
    progress.say(f"{kernel.release}: {'ok' if result.is_good else 'failed'}, see {log}")
    return result


def read(release: str, boot: Boot, seconds: float) -> Result:
    outcomes: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failures = []
    try:
        root = ElementTree.parse(boot.directory / "junit.xml").getroot()
    except (OSError, ElementTree.ParseError):
        root = ElementTree.Element("nothing")
    for case in root.iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"] += 1
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            outcomes["skipped"] += 1
            skips[skipped.get("message", "")] += 1
        else:
            outcomes["passed"] += 1
    return Result(release, seconds, outcomes, failures, skips, trouble(boot))


def trouble(boot: Boot) -> str:
    if boot.timed_out:
        return "did not end in time"
    if boot.status is None:
        return "the virtual machine died"
    # 1 is "tests failed", and those have been counted.
    return "" if boot.status in (0, 1) else f"pytest ended with {boot.status}"


def show(results: list[Result]) -> None:
    print(f"\n{'kernel':<28}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for each in results:
        numbers = [each.outcomes[name] for name in ("passed", "failed", "skipped")]
        print(
            f"{each.release:<28}{numbers[0]:>8}{numbers[1]:>8}{numbers[2]:>9}{each.seconds:>9.0f}"
            f"  {each.trouble or ('ok' if each.is_good else 'failed')}"
        )
    for each in results:
        for failure in each.failures:
            print(f"{each.release}: failed: {failure}")
    reasons: dict[str, list[str]] = {}
    for each in results:
        for reason, number in each.skips.items():
            reasons.setdefault(reason, []).append(f"{number} on {each.release}")
    if reasons:
        print("\nSkipped:")
    for reason, where in reasons.items():
        print(f"  {reason} ({', '.join(where)})")


def take_turns() -> object:
    """Held to the end of the process: one run at a time in this checkout."""
    lock = (CACHE / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another scripts/test-kernels", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def parse(words: list[str]) -> tuple[list[str], list[str]]:
    """Series, and what comes after "--" for pytest."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/test-kernels", usage="%(prog)s [VERSION...] [-- PYTEST ARGUMENT...]"
    )
    parser.add_argument("series", nargs="*", metavar="VERSION")
    return parser.parse_args(words[:at]).series or SERIES, words[at + 1 :]


def fetch(series: list[str]) -> list[Kernel]:
    print("Asking the Debian mirror for kernels", flush=True)
    kernels = []
    for image in debian.choose(series):
        print(f"Fetching {image}", flush=True)
        kernels.append(debian.fetch(image))
    return kernels


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    series, arguments = parse(sys.argv[1:])
    LOGS.mkdir(parents=True, exist_ok=True)
    lock = take_turns()
    try:
        kernels = fetch(series)
        results = [run(kernel, arguments) for kernel in kernels]
    except NoKernel as problem:
        print(f"scripts/test-kernels: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        del lock
    show(results)
    return 0 if all(each.is_good for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
