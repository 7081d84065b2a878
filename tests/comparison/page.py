"""docs/comparison.md, made from what was seen.

  .venv/bin/python -m tests.comparison.page [SCENARIO…]

Without arguments it runs all scenarios and checks, and writes the page; with some words, the
scenarios that have one of them in their title, and prints what it sees.
"""

import re
import subprocess
import sys
from pathlib import Path

from tests.comparison import checks
from tests.comparison.contenders import CONTENDERS, Contender, site
from tests.comparison.scenarios import NOT_APPLICABLE, SCENARIOS, Result, Scenario
from tests.support import kernels
from tests.support.firewall import PROVIDER, PUBLIC, UCM

PAGE = Path(__file__).parents[2] / "docs/comparison.md"
TEXT = Path(__file__).with_name("page.md").read_text()

Results = dict[str, dict[str, Result]]


def run(scenario: Scenario, contender: Contender) -> Result:
    with site(contender) as made:
        return scenario.run(made)


def row(name: str, result: Result) -> str:
    """A contender's line in the table of a scenario."""
    return f"| {name} | {_emphasised(result.verdict)} | {result.how} |"


def overview_row(scenario: Scenario, results: dict[str, Result]) -> str:
    verdicts = (_emphasised(results[contender.name].verdict) for contender in CONTENDERS)
    return f"| {link(scenario)} | {' | '.join(verdicts)} |"


def link(scenario: Scenario) -> str:
    """To its section, by the anchor that Markdown makes of a heading."""
    anchor = re.sub(r"[^\w -]", "", scenario.title.lower()).replace(" ", "-")
    return f"[{scenario.title}](#{anchor})"


def section(scenario: Scenario, rows: list[str]) -> str:
    lines = [
        f"### {scenario.title}\n",
        f"*Sent*: {scenario.sent}\n",
        f"*Wanted*: {scenario.wanted}\n",
        "| contender | verdict | left by the WAN |",
        "|---|---|---|",
        *rows,
        f"\n{scenario.why}\n",
    ]
    return "\n".join(lines)


def page(results: Results) -> str:
    names = [contender.name for contender in CONTENDERS]
    overview = [
        f"| | {' | '.join(names)} |",
        f"|{'---|' * (1 + len(names))}",
        *(overview_row(scenario, results[scenario.title]) for scenario in SCENARIOS),
    ]
    parts = {
        "versions": versions(),
        "ucm": UCM,
        "public": PUBLIC,
        "provider": PROVIDER,
        "overview": "\n".join(overview),
        "scenarios": "\n".join(
            section(each, [row(name, results[each.title][name]) for name in names])
            for each in SCENARIOS
        ).rstrip(),
        "checks": "\n".join(f"- {check.says}" for check in checks.CHECKS),
        "rules": "\n".join(_rules(contender) for contender in CONTENDERS).rstrip(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], TEXT)


def versions() -> str:
    linux = ".".join(map(str, kernels.running()))
    tools = [_version(tool) for tool in ("nft", "iptables", "ipset")]
    return f"Linux {linux}, {', '.join(tools)}"


def _version(tool: str) -> str:
    shown = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    (version, *_) = re.findall(r"v(\d[\d.]*)", shown)
    return f"{tool} {version}"


def _rules(contender: Contender) -> str:
    fenced = f"```{contender.language}\n{contender.rules.strip()}\n```"
    return f"### {contender.name}\n\n{contender.about}\n\n{fenced}\n"


def _emphasised(verdict: str) -> str:
    return verdict if verdict in ("works", NOT_APPLICABLE) else f"**{verdict}**"


def _chosen(words: list[str]) -> list[Scenario]:
    chosen = [
        each
        for each in SCENARIOS
        if not words or any(word.lower() in each.title.lower() for word in words)
    ]
    return chosen or sys.exit(f"No scenario's title has {' or '.join(words)} in it.")


def _judged(scenario: Scenario) -> dict[str, Result]:
    results = {}
    print(f"{scenario.title}:")
    for contender in CONTENDERS:
        result = results[contender.name] = run(scenario, contender)
        print(f"  {contender.name:<17} {result.verdict:<7} {result.how}", flush=True)
    return results


def main(words: list[str]) -> None:
    for contender in CONTENDERS:
        if reason := contender.why_not():
            sys.exit(f"{contender.name}: {reason}")
    results = {scenario.title: _judged(scenario) for scenario in _chosen(words)}
    if words:
        return
    print("Beside the table:")
    for check in checks.CHECKS:
        check.run()
        print(f"  {check.run.__name__.replace('_', ' ')}: so it is", flush=True)
    PAGE.write_text(page(results))
    print(f"Written: {PAGE.relative_to(PAGE.parents[1])}")


if __name__ == "__main__":
    main(sys.argv[1:])
