"""scripts/bench: measure, and write docs/benchmarks.md with its pictures and numbers."""

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from moh_ebpf.errors import MohError
from tests.bench import commands, forwarding, machine, native, plots, programs, report, signalling
from tests.bench.contenders import all_running, contenders
from tests.bench.effort import FULL, SHORT, Effort
from tests.bench.forwarding import Tell
from tests.support.matrix import Progress

DOCS = Path(__file__).parents[2] / "docs"


class Steps:
    """Tells on a progress display what is measured, and how much of the whole is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._progress.show(what, 100 * self._done // self._total)
        self._done += 1


def measure(effort: Effort, tell: Tell) -> dict[str, Any]:
    """All measurements, as plain JSON types."""
    native.leave_the_cpu()
    results: dict[str, Any] = {"machine": machine.describe()}
    tell("the programs alone")
    results["programs"] = programs.measure(effort.program_rounds)
    tell("building the firewalls")
    with all_running(contenders()) as runs:
        results["forwarding"] = forwarding.by_contender(runs, effort, tell)
        results["streams"] = forwarding.at_their_pace(runs, effort, tell)
        results["latency"] = forwarding.latency(runs, effort, tell)
    results["peers"] = forwarding.among_peers(effort, tell)
    results["flood"] = forwarding.flood(effort, tell)
    results["commands"] = commands.life_cycle(effort, tell)
    results["many_peers"] = commands.with_many_peers(effort, tell)
    results["memory"] = commands.memory()
    results["signalling"] = signalling.measure(effort, tell)
    return results


def write(results: dict[str, Any], docs: Path) -> None:
    """The page and what it shows, in this directory."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    (docs / "benchmarks.md").write_text(report.page(results))
    plots.draw(results, docs / "benchmarks")


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--short", action="store_true", help="only see that all of it works")
    parser.add_argument("--rounds", type=int, help="how often all contenders take their turn")
    parser.add_argument("--output", type=Path, help="the directory to write to")
    parser.add_argument("--draw", type=Path, help="write anew from this benchmarks.json")
    return parser.parse_args(words)


def main() -> int:
    # In a shell's background SIGINT is ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse(sys.argv[1:])
    short = DOCS.parent / "build/bench/short"
    docs = options.output or (short if options.short else DOCS)
    if options.draw:
        write(json.loads(options.draw.read_text()), docs)
        return 0
    progress = Progress("bench")
    try:
        effort = SHORT if options.short else FULL
        effort = replace(effort, rounds=options.rounds or effort.rounds)
        results = measure(effort, Steps(progress, effort.steps))
    except MohError as error:
        progress.say(f"scripts/bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    write(results, docs)
    for goal in report.goals(results):
        progress.say("  ".join(goal.row()))
    progress.say(f"See {docs / 'benchmarks.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
