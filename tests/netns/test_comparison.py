"""docs/comparison.md says what is so: its scenarios again, each cell compared.

The flood is in test_load.py; `scripts/compare` writes the page.
"""

import pytest

from tests.comparison import checks, page
from tests.comparison.contenders import CONTENDERS, Contender
from tests.comparison.scenarios import SCENARIOS, Scenario

PAGE = page.PAGE.read_text()
FAST = [scenario for scenario in SCENARIOS if not scenario.slow]


def section(scenario: Scenario) -> str:
    return PAGE.partition(f"\n### {scenario.title}\n")[2].partition("\n### ")[0]


def written(scenario: Scenario, contender: Contender) -> str:
    """The contender's line in the scenario's table."""
    begin = f"| {contender.name} |"
    (line,) = (each for each in section(scenario).splitlines() if each.startswith(begin))
    return line


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
@pytest.mark.parametrize("scenario", FAST, ids=lambda scenario: scenario.title)
def test_what_the_page_says_is_so(scenario: Scenario, contender: Contender) -> None:
    if reason := contender.why_not():
        pytest.skip(reason)
    seen = page.row(contender.name, page.run(scenario, contender))
    assert seen == written(scenario, contender), "run scripts/compare, and look at what changed"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title)
def test_the_overview_is_that_of_the_tables(scenario: Scenario) -> None:
    verdicts = [written(scenario, contender).split(" | ")[1] for contender in CONTENDERS]
    assert f"| {page.link(scenario)} | {' | '.join(verdicts)} |" in PAGE.splitlines()


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.run.__name__)
def test_what_is_said_beside_the_table_is_so(check: checks.Check) -> None:
    assert f"\n- {check.says}\n" in PAGE
    if not check.slow:
        check.run()


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_the_rules_on_the_page_are_those_that_ran(contender: Contender) -> None:
    assert f"\n{contender.rules.strip()}\n" in PAGE
