"""The documents say what the code says, and their links lead somewhere."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from moh_ebpf import cli, settings
from moh_ebpf.counters import COUNTERS
from moh_ebpf.errors import ExitStatus
from moh_ebpf.show.peers import WATCH_COLUMNS
from moh_ebpf.show.watch.keys import HELP
from tests.support.documents import broken_links

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
WATCH = (ROOT / "docs/watch.md").read_text()
PACKET_FLOW = (ROOT / "docs/packet-flow.md").read_text()
# Not rglob: build/ may hold whole root file systems.
DOCUMENTS = [
    path
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
    if not path.parent.name.startswith(".")
]

COMMANDS = typer.main.get_group(cli.app)


def tables(document: str, heading: str) -> list[list[str]]:
    """The rows, as cells, of all tables whose first heading this is."""
    found = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", document, re.MULTILINE)
    assert found, f"there is no table of {heading}s"
    return [cells(row) for table in found for row in table.splitlines()]


def cells(row: str) -> list[str]:
    """A | within a cell is escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_counters_are_those_of_the_code_in_its_order() -> None:
    expected = [[f"`{name}`", each.meaning] for name, each in COUNTERS.items()]
    written = tables(PACKET_FLOW, "counter")
    wanted = "\n".join(f"| {name} | {meaning} |" for name, meaning in expected)
    assert written == expected, f"docs/packet-flow.md, Counters, should be:\n{wanted}"


def test_counters_of_the_decision_tables_are_all_there_are() -> None:
    decisions = tables(PACKET_FLOW, "packet")
    named = {name for _, _, counters in decisions for name in re.findall(r"`(\w+)`", counters)}
    # Those go with any verdict.
    any_verdict = {"learn_failed"} | {
        name for name in COUNTERS if name.startswith(("rtp_", "sip_", "events_"))
    }
    assert named | any_verdict == set(COUNTERS)


def test_exit_statuses_are_those_of_the_code() -> None:
    (written,) = re.findall(r"^Exit status: (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert [int(each.split()[0]) for each in written.split("; ")] == list(ExitStatus)
    levels = tables((ROOT / "docs/doctor.md").read_text(), "level")
    assert {int(row[2]) for row in levels} <= set(ExitStatus)


def options(command: str) -> list[str]:
    return [
        name
        for each in COMMANDS.commands[command].params
        for name in [*each.opts, *each.secondary_opts]
    ]


def switches(on: bool) -> list[str]:
    """The switches that are on by default, or those that are off."""
    return [
        name
        for name, row in settings.ROWS.items()
        if row.is_switch and settings.DEFAULTS[name] is on
    ]


def opposite(name: str) -> str:
    return settings.option(f"no_{name}")


def test_every_option_of_attach_is_in_the_readme_and_none_besides() -> None:
    documented = [re.findall(r"`(--[\w-]+)", option)[0] for option, *_ in tables(README, "option")]
    # Of a switch, the other way is worth a word.
    defaults = {*map(settings.option, switches(on=True)), *map(opposite, switches(on=False))}
    assert documented == [option for option in options("attach") if option not in defaults]


@pytest.mark.parametrize("verb", sorted(COMMANDS.commands))
def test_every_verb_and_its_options_are_in_the_readme(verb: str) -> None:
    commands = [command for command, *_ in tables(README, "command")]
    mine = " ".join(command for command in commands if f"moh-ebpf {verb}" in command)
    assert mine
    # Those of attach have a table of their own.
    elsewhere = options("attach") if verb == "doctor" else []
    for option in options(verb) if verb not in ("attach", "lab") else []:
        assert option in mine or option in elsewhere


def test_defaults_in_the_readme_are_those_of_the_code() -> None:
    written = {re.findall(r"`(--[\w-]+)", row[0])[0]: row[1] for row in tables(README, "option")}
    for option in ("--config", "--dry-run", "--json", *map(opposite, switches(on=True))):
        del written[option]
    assert written == {
        settings.option(name): settings.default_text(name) or row.shown or "required"
        for name, row in settings.ROWS.items()
        if name not in switches(on=True)
    }


def test_the_shipped_config_has_each_setting_with_its_default() -> None:
    """All lines are commented out: with those that must be given, it is a config."""
    shipped = (ROOT / "scripts/debian/moh-ebpf.toml").read_text()
    assert tomllib.loads(shipped) == {}
    chosen = settings.from_values(
        tomllib.loads(re.sub(r"^#(?=\w+ =)", "", shipped, flags=re.MULTILINE))
    )
    assert set(re.findall(r"^#(\w+) =", shipped, re.MULTILINE)) == set(settings.ROWS)
    for name, default in settings.DEFAULTS.items():
        assert getattr(chosen, name) == default or default == (), name  # a list has an example


def test_the_keys_of_watch_are_those_of_its_help() -> None:
    expected = [[" ".join(f"`{key}`" for key in keys.split()), does] for keys, does in HELP]
    assert tables(WATCH, "key") == expected


def test_the_columns_of_watch_are_those_of_the_code_in_its_order() -> None:
    expected = [
        (f"`{column.title}`", "largest" if column.largest else "smallest")
        for column in WATCH_COLUMNS
    ]
    assert [(row[0], row[2]) for row in tables(WATCH, "column")] == expected


def test_the_readmes_configuration_is_valid() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    settings.from_values(tomllib.loads(example))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(document: Path) -> None:
    assert broken_links(document) == []


@pytest.mark.parametrize("name", ["watch", "watch-detail", "peers"])
def test_the_pictures_need_nothing_from_elsewhere(name: str) -> None:
    picture = (ROOT / f"docs/{name}.svg").read_text()
    ElementTree.fromstring(picture)  # is well-formed
    assert re.findall(r"https?://[^\"\s)]+", picture) == ["http://www.w3.org/2000/svg"]


def test_the_tests_that_security_names_are_there() -> None:
    page = (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page))
    assert len(named) > 30
    for file, test in named:
        text = (ROOT / file).read_text()
        assert f"def {test}(" in text if test else "def test_" in text, f"{file}::{test}"


def test_the_developer_page_names_each_module() -> None:
    page = (ROOT / "docs/development.md").read_text()
    listed = set(re.findall(r"^ +([\w.]+) {2,}\S", page, re.M))
    modules = [*(ROOT / "moh_ebpf").rglob("*.py"), *(ROOT / "bpf").glob("*.[ch]")]
    folders = {"checks", "ask"}
    assert {
        each.name
        for each in modules
        if not each.name.startswith("__") and each.parent.name not in folders
    } <= listed
