"""scripts/mutants breaks what is there: it takes too long for each change, and would go stale."""

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A program of scripts/, as a module."""
    loader = SourceFileLoader(name, str(ROOT / "scripts" / name))
    spec = spec_from_loader(name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_each_replaces_one_text_that_is_there() -> None:
    mutants = script("mutants").MUTANTS
    assert len({each.name for each in mutants}) == len(mutants) > 80
    there = {each.name: (ROOT / each.file).read_text().count(each.before) for each in mutants}
    assert {name: count for name, count in there.items() if count != 1} == {}


def test_each_has_tests_that_are_there() -> None:
    files = {word for each in script("mutants").MUTANTS for word in each.tests if "/" in word}
    assert [each for each in sorted(files) if not (ROOT / each).exists()] == []


def test_none_is_noticed_for_a_name_that_is_not_there(tmp_path: Path) -> None:
    for each in script("mutants").MUTANTS:
        if each.file.endswith(".py"):
            text = (ROOT / each.file).read_text().replace(each.before, each.after)
            (tmp_path / f"{each.name}.py").write_text(text)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache"]
    done = subprocess.run(
        [*ruff, "--select", "F821,F823", "--output-format", "concise", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
