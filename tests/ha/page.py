"""The table of docs/ha.md, made from what was seen.

.venv/bin/python -m tests.ha.page
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.ha.failover import CASES, PHANTOM, Case, Seen, changes, site
from tests.ha.pair import PAGE
from tests.support import kernels
from tests.support.firewall import PUBLIC

BEGIN = "<!-- scripts/ha writes this -->\n"
END = "<!-- until here -->\n"
RUNS = 3

Runs = list[dict[str, dict[Case, Seen]]]


def run() -> dict[str, dict[Case, Seen]]:
    with tempfile.TemporaryDirectory() as directory, site(Path(directory)) as made:
        return dict(changes(made))


def table(runs: Runs) -> str:
    lines = [f"{RUNS} runs, with {versions()}.\n"]
    for change in runs[0]:
        lines += [
            f"**{change[0].upper()}{change[1:]}**\n",
            "| call, by | lost to the provider | lost to UCM | left from, before | after"
            " | the next hold |",
            "|---|---|---|---|---|---|",
            *(row(case, [each[change][case] for each in runs]) for case in CASES),
            "",
        ]
    return "\n".join(lines)


def row(case: Case, seen: list[Seen]) -> str:
    cells = [
        case.name,
        numbers(each.outbound for each in seen),
        numbers(each.inbound for each in seen),
        words(sources(each.before, each.port) for each in seen),
        words(sources(each.after, each.port) for each in seen),
        words(
            "n/a" if each.next_hold is None else sources(each.next_hold, each.next_port)
            for each in seen
        ),
    ]
    return f"| {' | '.join(cells)} |"


def numbers(counts: Iterable[int | None]) -> str:
    found = [count for count in counts if count is not None]
    if not found:
        return "n/a"
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"


def words(said: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(said))


def sources(seen: set[str], port: int) -> str:
    """What the provider saw, without numbers that are others in each run."""
    names = {f"{PUBLIC}:{PHANTOM}": "public:4000", f"{PUBLIC}:{port}": "public, UCM's port"}
    said = (
        names.get(each, "public, **another port**" if each.startswith(f"{PUBLIC}:") else each)
        for each in sorted(seen)
    )
    return words(said) or "**nothing**"


def versions() -> str:
    shown = subprocess.run(["keepalived", "--version"], capture_output=True, text=True, check=True)
    (keepalived,) = re.findall(r"Keepalived v([\d.]+)", shown.stderr + shown.stdout)
    return f"Linux {'.'.join(map(str, kernels.running()))}, keepalived {keepalived}"


def main() -> None:
    runs: Runs = []
    for number in range(RUNS):
        print(f"Run {number + 1} of {RUNS}", flush=True)
        runs.append(run())
    before, begin, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE.name} has no place for the table: {BEGIN.strip()} … {END.strip()}")
    written = table(runs)
    PAGE.write_text(f"{before}{begin}\n{written}\n{end}{after}")
    print(written)
    print(f"Written: {PAGE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    main()
