"""scripts/test-kernels: the tests under other kernels, and a table of what came of them."""

import argparse
import signal
import sys

from tests.kernels import debian, links
from tests.kernels.boot import Boot
from tests.kernels.debian import CACHE, Kernel
from tests.support import matrix
from tests.support.debian import Unavailable
from tests.support.matrix import Progress, Result

SERIES = ["5.10", "6.1", "6.12", "newest"]
TESTS = ["tests/packets", "tests/netns"]
SEQUENCES = "300"
LOGS = CACHE / "logs"
RESULTS = "/run/results"


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


def run(kernel: Kernel, arguments: list[str]) -> Result:
    """A machine that died without a word is started once more."""
    progress = Progress(kernel.release)
    log = LOGS / f"{kernel.release}.log"
    boot = Boot(kernel, LOGS / kernel.release)
    for _ in range(2):
        progress.show("boots")
        lines = boot.lines(pytest_command(arguments), environment(arguments))
        matrix.follow(lines, log, progress)
        if boot.status is not None or boot.timed_out:
            break
        progress.say(f"{kernel.release}: the virtual machine died, see {log}")
    junit = boot.directory / "junit.xml"
    result = matrix.read(kernel.release, junit, progress.seconds)._replace(trouble=trouble(boot))
    progress.say(f"{kernel.release}: {'ok' if result.is_good else 'failed'}, see {log}")
    return result


def trouble(boot: Boot) -> str:
    if boot.timed_out:
        return "did not end in time"
    if boot.status is None:
        return "the virtual machine died"
    # 1 is "tests failed", and those have been counted.
    return "" if boot.status in (0, 1) else f"pytest ended with {boot.status}"


def run_again(kernel: Kernel, commit: str) -> Result | None:
    """What failed in its last whole run; what comes of it is added to that. None: nothing did."""
    before = matrix.kept("kernel", kernel.release)
    if not before or not before[0].failures:
        return None
    whole, then = before
    result = whole.again(run(kernel, [node(each) for each in whole.failures]))
    commits = dict.fromkeys([*then.split(", "), commit])
    matrix.write("kernel", [result], ", ".join(commits))
    return result


def node(failure: str) -> str:
    """By which pytest knows a test that its record has by class and name."""
    module, _, name = failure.partition("::")
    return f"{module.replace('.', '/')}.py::{name}"


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Series and options, and what comes after "--" for pytest."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/test-kernels",
        usage="%(prog)s [--again] [VERSION...] [-- PYTEST ARGUMENT...]",
    )
    parser.add_argument("--again", action="store_true")
    parser.add_argument("series", nargs="*", metavar="VERSION")
    options = parser.parse_args(words[:at])
    if options.again and words[at + 1 :]:
        parser.error("--again knows which tests by itself")
    return options, words[at + 1 :]


def fetch(series: list[str]) -> list[Kernel]:
    print("Asking the Debian mirror for kernels", flush=True)
    kernels = []
    for image in debian.choose(series):
        print(f"Fetching {image}", flush=True)
        kernels.append(debian.fetch(image))
    return kernels


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options, arguments = parse(sys.argv[1:])
    LOGS.mkdir(parents=True, exist_ok=True)
    lock = matrix.take_turns(CACHE / "lock", "scripts/test-kernels")
    commit = matrix.commit()
    try:
        kernels = fetch(options.series or SERIES)
        if options.again:
            results = [each for kernel in kernels if (each := run_again(kernel, commit))]
        else:
            results = [run(kernel, arguments) for kernel in kernels]
    except Unavailable as problem:
        print(f"scripts/test-kernels: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        del lock
    is_whole = not arguments and not options.again
    if is_whole:
        matrix.write("kernel", results, commit)
    if is_whole or arguments == [f"tests/netns/{links.MODULE}"]:
        for kernel in kernels:
            if outcomes := links.read(LOGS / kernel.release / "junit.xml"):
                links.write(kernel.release, outcomes, commit)
    matrix.show("kernel", results)
    return 0 if all(each.is_good for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
