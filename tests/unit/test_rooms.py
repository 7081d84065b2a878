"""The rooms of the house: each imports those below it alone, and no module is in a circle."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "moh_ebpf"

# From the bottom up. Those of a line do not know each other.
LEVELS = [
    {"__init__", "errors"},
    {"parsers", "layout", "counters"},
    {"settings"},
    {"maps"},
    {"kernel"},
    {"calls"},
    {"registry"},
    {"attach"},
    {"service", "doctor", "lab", "discover"},
    {"show", "options"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def module(file: Path) -> str:
    """Its name within the package, by points."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(each): each for each in sorted(PACKAGE.rglob("*.py"))}


def room(name: str) -> str:
    return name.split(".")[0]


def imports(name: str, *, at_start: bool = False) -> set[str]:
    """The modules of the package that it imports; or those alone that it cannot start without."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = tree.body if at_start else ast.walk(tree)
    found = set()
    for each in nodes:
        if not isinstance(each, ast.ImportFrom) or room(each.module or "") != PACKAGE.name:
            continue
        source = (each.module or "").removeprefix(PACKAGE.name).removeprefix(".")
        for alias in each.names:
            inner = f"{source}.{alias.name}".removeprefix(".")
            found.add(inner if inner in MODULES else source or "__init__")
    return found


def test_each_room_has_its_level() -> None:
    assert {room(each) for each in MODULES} == set(LEVEL)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    own = LEVEL[room(name)]
    assert [
        each for each in imports(name) if room(each) != room(name) and LEVEL[room(each)] >= own
    ] == []


def test_no_module_is_in_a_circle() -> None:
    graph = {each: imports(each, at_start=True) - {each} for each in MODULES}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_class_has_its_name_alone() -> None:
    named = Counter(
        each.name.lstrip("_")
        for file in MODULES.values()
        for each in ast.walk(ast.parse(file.read_text()))
        if isinstance(each, ast.ClassDef)
    )
    assert [name for name, count in named.items() if count > 1] == []
