"""docs/links.md is what docs/links.json says, and that is what the tests have seen."""

import json
from pathlib import Path

from tests.kernels import links
from tests.support.links import KINDS, REFUSED

DOCS = Path(__file__).parents[2] / "docs"
CASE = '<testcase classname="tests.netns.test_links" name="{}">{}</testcase>'
CASES = [
    ("test_wan_holds[GRE]", ""),
    ("test_wan_calls[GRE]", "<failure/>"),
    ("test_lan_holds[GRE]", ""),
    ("test_lan_calls[PPP]", "<skipped/>"),
    ("test_refused[wan-IFB]", ""),
    ("test_refused[lan-IFB]", "<error/>"),
    ("test_something_else", ""),
]


def test_the_page_is_what_was_recorded() -> None:
    kept = json.loads((DOCS / "links.json").read_text())
    assert (DOCS / "links.md").read_text() == "\n".join(links.page(kept)) + "\n"


def test_every_kind_works_or_is_refused_everywhere() -> None:
    kept = json.loads((DOCS / "links.json").read_text())
    assert list(kept) == ["5.10", "6.1", "6.12", "7.3"]
    expected = {
        each.name: {"wan": "works", "lan": "works" if each.is_lan else "refused"} for each in KINDS
    }
    expected |= {each.name: dict.fromkeys(("wan", "lan"), "refused") for each in REFUSED}
    assert {name: each["outcomes"] for name, each in kept.items()} == dict.fromkeys(kept, expected)


def test_the_worst_of_a_kinds_tests_is_said_of_it(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text("<a>" + "".join(CASE.format(*case) for case in CASES) + "</a>")
    assert links.read(junit) == {
        "GRE": {"wan": "fails", "lan": "works"},
        "PPP": {"lan": "not there"},
        "IFB": {"wan": "refused", "lan": "fails"},
    }


def test_a_newer_kernel_of_a_series_takes_its_place(tmp_path: Path) -> None:
    for release in ("6.12.1-amd64", "6.1.0-57-amd64", "6.12.2-amd64"):
        links.write(release, {"GRE": {"wan": "works", "lan": "works"}}, "one", tmp_path)
    assert list(json.loads((tmp_path / "links.json").read_text())) == ["6.1", "6.12"]
    page = (tmp_path / "links.md").read_text()
    assert "| 6.12.2-amd64 | `one` |" in page
    assert "6.12.1-amd64" not in page
    assert "| GRE | works | works |" in page
