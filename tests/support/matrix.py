"""The tests run in several places (kernels, systems): progress, and a table of what came of them.

The standard library is enough for it: pytest runs there, not here.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

_OUTCOME = r"(?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
# As pytest -v tells it, and as pytest-xdist does.
PROGRESS = re.compile(rf"(?P<name>tests/\S+?::.*?) {_OUTCOME}.*\[ *(?P<percent>\d+)%\]")
SIDE_BY_SIDE = re.compile(rf"\[gw\d+\] \[ *(?P<percent>\d+)%\] {_OUTCOME} (?P<name>tests/.*\S)")
OUTCOMES = ("passed", "failed", "skipped")
_RECORD = "tested.json"


class Result(NamedTuple):
    """What came of the tests in one place; `trouble` is why there is no more to tell."""

    name: str
    seconds: float
    outcomes: Counter[str]
    failures: list[str]
    skips: Counter[str]
    trouble: str = ""
    versions: dict[str, str] | None = None

    @property
    def is_good(self) -> bool:
        return not self.trouble and not self.failures and self.outcomes["passed"] > 0

    @property
    def verdict(self) -> str:
        return self.trouble or ("ok" if self.is_good else "failed")

    def again(self, later: "Result") -> "Result":
        """With what failed in place of what came of it later."""
        outcomes = self.outcomes + later.outcomes
        outcomes["failed"] -= len(self.failures)
        return self._replace(
            seconds=self.seconds + later.seconds,
            outcomes=outcomes,
            failures=later.failures,
            skips=self.skips + later.skips,
            trouble=later.trouble,
        )


class Progress:
    """One line that is written over on a terminal; elsewhere one line every 10 percent."""

    def __init__(self, name: str) -> None:
        self._name, self._start, self._shown = name, time.monotonic(), -1

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def show(self, what: str, percent: int = 0) -> None:
        seconds = int(self.seconds)
        line = f"{self._name}  {seconds // 60}:{seconds % 60:02}  {percent:3}%  {what}"
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)
        elif percent // 10 > self._shown:
            self._shown = percent // 10
            print(line, flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{line}" if sys.stdout.isatty() else line, flush=True)


class Process:
    """A program that says something: `lines` yields it. It is killed when it takes too long, or
    when we leave; then `status` is None.
    """

    def __init__(self, command: list[str], patience_seconds: float, **options: Any) -> None:
        self._command, self._patience, self._options = command, patience_seconds, options
        self.timed_out = False
        self.status: int | None = None

    def lines(self) -> Iterator[str]:
        options = {"stdin": subprocess.DEVNULL} | self._options
        with subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **options,
        ) as process:
            assert process.stdout is not None

            def give_up() -> None:
                self.timed_out = True
                process.kill()

            timer = Timer(self._patience, give_up)
            timer.start()
            try:
                yield from process.stdout
                status = process.wait()
                self.status = None if self.timed_out else status
            finally:
                timer.cancel()
                process.kill()


def follow(lines: Iterable[str], log: Path, progress: Progress) -> None:
    """All lines to the log, the last to the terminal, failures so that they stay."""
    percent = "0"
    with log.open("w") as file:
        for line in lines:
            file.write(line)
            file.flush()
            if found := PROGRESS.search(line) or SIDE_BY_SIDE.search(line):
                name, outcome, percent = found.group("name", "outcome", "percent")
                if outcome in ("FAILED", "ERROR"):
                    progress.say(f"{outcome} {name}")
                progress.show(name, int(percent))
            elif line.strip():
                progress.show(line.strip(), int(percent))


def read(name: str, junit: Path, seconds: float) -> Result:
    """What pytest has written of its tests; nothing, if it came to nothing."""
    outcomes: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    failures = []
    try:
        root = ElementTree.parse(junit).getroot()
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
    return Result(name, seconds, outcomes, failures, skips)


def show(place: str, results: list[Result]) -> None:
    """A table, then each failure, then each reason for skipping once."""
    print()
    for line in table(place, results):
        print(line)
    for each in results:
        for failure in each.failures:
            print(f"{each.name}: failed: {failure}")
    reasons: dict[str, list[str]] = {}
    for each in results:
        for reason, number in each.skips.items():
            reasons.setdefault(reason, []).append(f"{number} on {each.name}")
    if reasons:
        print("\nSkipped:")
    for reason, where in reasons.items():
        print(f"  {reason} ({', '.join(where)})")


def table(place: str, results: list[Result]) -> Iterator[str]:
    versions = list(dict.fromkeys(name for each in results for name in each.versions or {}))
    rows = [[place, *versions, *OUTCOMES, "seconds", ""]]
    for each in results:
        shown = [(each.versions or {}).get(name, "?") for name in versions]
        numbers = [str(each.outcomes[name]) for name in OUTCOMES]
        rows.append([each.name, *shown, *numbers, f"{each.seconds:.0f}", each.verdict])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 1 + len(versions)
    for row in rows:
        cells = [
            cell.ljust(width) if at < left or at == len(row) - 1 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def commit() -> str:
    """What is checked out here, for the record; the record itself does not make it dirty."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    record = [
        f":!docs/{name}.{suffix}" for name in ("tested", "links") for suffix in ("json", "md")
    ]
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *record)
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changes else "")


def write(place: str, results: list[Result], commit: str, directory: Path = Path("docs")) -> None:
    """Keep them in tested.json, in the place of what these had there before, and make tested.md
    anew of all that is kept."""
    record = _record(directory)
    rows = {each["name"]: each for each in record.get(place, [])}
    for each in results:
        rows[each.name] = each._asdict() | {"verdict": each.verdict, "commit": commit}
    record[place] = sorted(
        rows.values(), key=lambda each: [*map(_natural, each["name"].split("."))]
    )
    (directory / _RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    (directory / "tested.md").write_text("\n".join(page(record)) + "\n")


def kept(place: str, name: str, directory: Path = Path("docs")) -> tuple[Result, str] | None:
    """What is kept of one of them, and of which commit; None: nothing."""
    for row in _record(directory).get(place, []):
        if row["name"] == name:
            fields = {each: row[each] for each in Result._fields}
            counts = {each: Counter(row[each]) for each in ("outcomes", "skips")}
            return Result(**(fields | counts)), row["commit"]
    return None


def _record(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """All that is kept, by place; empty if that is nothing."""
    try:
        record: dict[str, list[dict[str, Any]]] = json.loads((directory / _RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record


def _natural(part: str) -> tuple[int, str]:
    """6.12 after 6.1."""
    number = re.match(r"\d*", part)[0]  # type: ignore[index]
    return int(number or 0), part


_PAGE = """# Where it has been tested

What `scripts/test-kernels` and `scripts/test-systems` saw when they last ran as a whole; they write
this page. Under other kernels, in QEMU's software emulation, the packet tests run, and those
end-to-end tests whose outcome is the kernel's doing; on other systems everything does."""


def page(kept: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The Markdown of all that is kept: a table a place, and why tests were skipped there."""
    yield _PAGE
    for place, rows in kept.items():
        versions = list(dict.fromkeys(name for each in rows for name in each["versions"] or {}))
        yield f"\n## By {place}\n"
        yield _row([place, *versions, *OUTCOMES, "", "commit"])
        yield _row(["---"] * (1 + len(versions)) + ["---:"] * len(OUTCOMES) + ["---", "---"])
        for each in rows:
            shown = [(each["versions"] or {}).get(name, "?") for name in versions]
            numbers = [str(each["outcomes"].get(name, 0)) for name in OUTCOMES]
            yield _row([each["name"], *shown, *numbers, each["verdict"], f"`{each['commit']}`"])
        reasons = dict.fromkeys(reason for each in rows for reason in each["skips"])
        if reasons:
            yield "\nSkipped, and where:\n"
        for reason in reasons:
            where = [
                f"{each['skips'][reason]} on {each['name']}"
                for each in rows
                if reason in each["skips"]
            ]
            yield f"- {reason} ({', '.join(where)})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def take_turns(file: Path, script: str) -> object:
    """Held to the end of the process: one run at a time in this checkout."""
    lock = file.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"Waiting for another {script}", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
