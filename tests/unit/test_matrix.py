"""What came of the tests in other places is read, shown and kept as it was."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.kernels import run
from tests.support import matrix
from tests.support.matrix import Process, Progress, Result
from tests.support.samples import about

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.netns.test_a" name="good"/>
<testcase classname="tests.netns.test_a" name="bad"><failure message="no"/></testcase>
<testcase classname="tests.netns.test_a" name="broken"><error message="no"/></testcase>
<testcase classname="tests.netns.test_a" name="left"><skipped message="no VLAN"/></testcase>
</testsuite></testsuites>"""


def result(name: str, **changes: Any) -> Result:
    made = Result(name, 12.4, Counter(passed=3), [], Counter(), versions={"python": "3.11"})
    return made._replace(**changes)


def test_pytests_own_record(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    read = matrix.read("here", tmp_path / "junit.xml", 1.0)
    assert read.outcomes == {"passed": 1, "failed": 2, "skipped": 1}
    assert read.failures == ["tests.netns.test_a::bad", "tests.netns.test_a::broken"]
    assert read.skips == {"no VLAN": 1}
    assert not read.is_good


def test_no_record_is_not_good(tmp_path: Path) -> None:
    assert not matrix.read("here", tmp_path / "junit.xml", 1.0).is_good


def test_table() -> None:
    there = result("there", versions=None, trouble="ended with 2")
    assert list(matrix.table("place", [result("here"), there])) == [
        "place  python  passed  failed  skipped  seconds",
        "here   3.11         3       0        0       12  ok",
        "there  ?            3       0        0       12  ended with 2",
    ]


def test_results_of_other_places_are_kept(tmp_path: Path) -> None:
    matrix.write("system", [result("here"), result("there")], "one", tmp_path)
    matrix.write("kernel", [result("6.12.1"), result("6.1.9")], "one", tmp_path)
    again = result("here", failures=["a"], skips=Counter({"no VLAN": 2}))
    matrix.write("system", [again], "two", tmp_path)
    kept = json.loads((tmp_path / "tested.json").read_text())
    assert [each["name"] for each in kept["kernel"]] == ["6.1.9", "6.12.1"]
    page = (tmp_path / "tested.md").read_text()
    assert "| here | 3.11 | 3 | 0 | 0 | failed | `two` |" in page
    assert "| there | 3.11 | 3 | 0 | 0 | ok | `one` |" in page
    assert "- no VLAN (2 on here)" in page


ONE_BY_ONE = ["tests/a.py::one PASSED [ 50%]\n", "tests/a.py::two[a b] FAILED [100%]\n"]
SIDE_BY_SIDE = [
    "tests/a.py::two[a b] \n",
    "[gw1] [  5%] PASSED tests/a.py::one \n",
    "[gw0] [100%] FAILED tests/a.py::two[a b] \n",
]


@pytest.mark.parametrize("said", [ONE_BY_ONE, SIDE_BY_SIDE])
def test_a_failure_stays_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    log = tmp_path / "log"
    matrix.follow(said, log, Progress("here"))
    shown = capsys.readouterr().out
    assert "FAILED tests/a.py::two[a b]\n" in shown
    assert "100%  tests/a.py::two[a b]\n" in shown
    assert log.read_text() == "".join(said)


def test_a_process_that_hangs_is_ended() -> None:
    process = Process(["sh", "-c", "echo begins; exec sleep 60"], patience_seconds=5.0)
    assert list(process.lines()) == ["begins\n"]
    assert (process.timed_out, process.status) == (True, None)


def test_a_process_has_a_status() -> None:
    process = Process(["sh", "-c", "exit 7"], patience_seconds=60.0)
    assert list(process.lines()) == []
    assert (process.timed_out, process.status) == (False, 7)


def test_what_failed_is_run_again_and_added(tmp_path: Path) -> None:
    failed = result("6.1", outcomes=Counter(passed=3, failed=2), failures=["a", "b"],
                    skips=Counter({"no VLAN": 1}))  # fmt: skip
    matrix.write("kernel", [failed, result("6.12")], "one", tmp_path)
    assert matrix.kept("kernel", "5.10", tmp_path) is None
    assert matrix.kept("kernel", "6.1", tmp_path) == (failed, "one")
    later = result("6.1", outcomes=Counter(passed=1, failed=1), failures=["b"], seconds=1.0)
    both = failed.again(later)
    assert both == failed._replace(
        outcomes=Counter(passed=4, failed=1), failures=["b"], seconds=about(13.4)
    )
    good = both.again(result("6.1", outcomes=Counter(passed=1)))
    assert (good.outcomes["passed"], good.outcomes["failed"], good.is_good) == (5, 0, True)


@pytest.mark.parametrize(
    ("failure", "node"),
    [
        ("tests.netns.test_a::test_b[1.5-::x]", "tests/netns/test_a.py::test_b[1.5-::x]"),
        ("tests.packets.test_c::test_d", "tests/packets/test_c.py::test_d"),
    ],
)
def test_pytest_knows_what_its_record_has(failure: str, node: str) -> None:
    assert run.node(failure) == node
