"""scripts/test-systems: the tests on other Debians, and a table of what came of them."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import matrix
from tests.support.debian import Unavailable
from tests.support.matrix import Process, Progress, Result
from tests.systems import roots
from tests.systems.roots import CACHE, MORTAL, ROOTS

ENTER = Path(__file__).with_name("enter")
LOGS = CACHE / "logs"
RESULTS = "/run/results"
SEQUENCES = "2000"
PYTEST = f"-v --tb=short --color=no -p no:cacheprovider --junitxml={RESULTS}/junit.xml"
# As scripts/test has them.
SIDE_BY_SIDE = '--numprocesses "$(($(nproc) + 1))" --maxprocesses 9 --dist loadfile'

# Longer than a system takes; then something hangs.
PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True)
class System:
    """`setup` makes `python` able to run the tests, which is what `test` does. What `build` leaves
    in RESULTS is made before, in a root that the others do not see."""

    name: str
    suite: str
    setup: str = "scripts/setup --dev"
    python: str = ".venv/bin/python"
    test: str = "scripts/test"
    build: str = ""

    @property
    def script(self) -> str:
        versions = f"{self.python} -m tests.systems.versions >{RESULTS}/versions.json"
        return f'{self.setup} && {versions} && exec {self.test} "$@"'


def packaged(name: str, suite: str) -> System:
    """With Debian's own Python packages: neither pip nor .venv."""
    python = "/usr/bin/python3"
    tests = f"{python} -m pytest {SIDE_BY_SIDE}"
    return System(name, suite, "scripts/setup --dev --packaged", python, tests)


def installed(name: str, suite: str) -> System:
    """The Debian package, installed by apt on a system that has nothing else of ours."""
    python = "/usr/bin/python3"
    return System(
        name,
        suite,
        f"sh tests/systems/install {RESULTS}",
        python,
        f"{python} -m pytest --noconftest tests/systems/package_checks.py",
        f"scripts/build-deb --output {RESULTS}",
    )


SYSTEMS = {
    each.name: each
    for each in (
        System("debian-12", "bookworm"),
        System("debian-13", "trixie"),
        packaged("debian-12-packaged", "bookworm"),
        packaged("debian-13-packaged", "trixie"),
        installed("debian-12-package", "bookworm"),
        installed("debian-13-package", "trixie"),
    )
}


def run(system: System, arguments: list[str]) -> Result:
    progress = Progress(system.name)
    log = LOGS / f"{system.name}.log"
    results = LOGS / system.name
    shutil.rmtree(results, ignore_errors=True)
    for each in (results, CACHE / "mnt", ROOTS / f"{system.suite}.packages"):
        each.mkdir(parents=True, exist_ok=True)
    progress.show("makes the root")
    roots.make(system.suite)
    progress.show("installs")
    with tempfile.TemporaryFile() as files:
        roots.pack(system.suite, files)
        process: Process

        def lines() -> Iterator[str]:
            nonlocal process
            for script in filter(None, (system.build, system.script)):
                files.seek(0)
                process = Process(command(system, script, results, arguments), PATIENCE_SECONDS,
                                  stdin=files, env=environment())  # fmt: skip
                yield from process.lines()
                if process.status != 0:
                    return

        matrix.follow(lines(), log, progress)
    result = matrix.read(system.name, results / "junit.xml", progress.seconds)
    result = result._replace(trouble=trouble(process, result), versions=versions(results))
    progress.say(f"{system.name}: {'ok' if result.is_good else 'failed'}, see {log}")
    return result


def command(system: System, script: str, results: Path, arguments: list[str]) -> list[str]:
    root = (ROOTS / system.suite).relative_to(CACHE)
    return [
        *[*MORTAL, "sh", str(ENTER), str(CACHE), str(root), str(results.relative_to(CACHE))],
        *["sh", "-c", script, "sh", *arguments],
    ]


def environment() -> dict[str, str]:
    return roots.environment() | {
        "MOH_ORACLE_SEQUENCES": SEQUENCES,
        "PYTEST_ADDOPTS": PYTEST,
        "COLUMNS": "100",
    }


def trouble(process: Process, result: Result) -> str:
    if process.timed_out:
        return "did not end in time"
    # A test that failed is not the only thing that scripts/test minds.
    if process.status and not result.failures:
        return f"ended with {process.status}"
    return ""


def versions(results: Path) -> dict[str, str]:
    try:
        return json.loads((results / "versions.json").read_text())
    except (OSError, ValueError):
        return {}


def parse(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of systems, and what comes after "--" for pytest."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/test-systems", usage="%(prog)s [NAME...] [-- PYTEST ARGUMENT...]"
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args(words[:at]).names or list(SYSTEMS)
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    return names, words[at + 1 :]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names, arguments = parse(sys.argv[1:])
    LOGS.mkdir(parents=True, exist_ok=True)
    # A root has programs that make root of whoever runs them.
    ROOTS.mkdir(mode=0o700, exist_ok=True)
    lock = matrix.take_turns(CACHE / "lock", "scripts/test-systems")
    results = []
    try:
        for name in dict.fromkeys(names):
            commit = matrix.commit()
            results.append(run(SYSTEMS[name], arguments))
            if not arguments:
                matrix.write("system", results[-1:], commit)
    except Unavailable as problem:
        print(f"scripts/test-systems: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        del lock
    matrix.show("system", results)
    return 0 if all(each.is_good for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
