"""scripts/mutants breaks what is there: it takes too long for each change, and would go stale."""

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
