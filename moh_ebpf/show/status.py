"""What `status` shows."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.segment import Segment

from moh_ebpf import settings
from moh_ebpf.counters import COUNTERS
from moh_ebpf.show.lines import (
    ALARM,
    DIM,
    NOTICE,
    PLAIN,
    TITLE,
    Column,
    Explained,
    Line,
    Lines,
    table,
)

Description = Mapping[str, Any]  # what `status --json` shows


def status_view(description: Description) -> RenderableType:
    """Programs, what is missing, settings, and the counters with what each counts."""
    if not description["attached"]:
        return Lines([[Segment("not attached")]])
    version = Segment(f"attached by moh-ebpf {description['version']}")
    return Group(
        Lines([[version], [], *_programs(description), [], [Segment("SETTINGS", TITLE)]]),
        Explained(_explained_settings(description["settings"])),
        Lines([[], [Segment("COUNTERS", TITLE)]]),
        Explained(_explained_counters(description["counters"])),
    )


PROGRAM_COLUMNS = (
    Column("INTERFACE", lambda program: program["interface"]),
    Column("HOOK", lambda program: program["hook"]),
    Column("ROLE", lambda program: program["role"]),
    Column(
        "PROGRAM",
        lambda program: f"id {program['id']}" if "id" in program else "MISSING",
        style=lambda program: PLAIN if "id" in program else ALARM,
    ),
)


def _programs(description: Description) -> list[Line]:
    lines = table(PROGRAM_COLUMNS, [*description["programs"], *description["missing"]])
    return lines + troubles(description) + _earlier(description)


def _earlier(description: Description) -> list[Line]:
    """A line for each filter or program that runs before ours."""
    lines: list[Line] = []
    for each in description["earlier"]:
        at = "" if each["priority"] is None else f" at priority {each['priority']}"
        text = (
            f"BEFORE {each['role']} on {each['interface']} {each['hook']}: "
            f"{each['kind']} {each['name']}{at}"
        )
        lines.append([Segment(text, NOTICE)])
    return lines


def troubles(description: Description) -> list[Line]:
    """One line for what is missing, and one for each WAN where UCM's RTP passes unheard."""
    return [*_missing(description), *_open_wans(description)]


def _open_wans(description: Description) -> list[Line]:
    lines: list[Line] = []
    for wan in description["wans"]:
        name = wan["interface"]
        if wan["blind"]:
            text = (
                f"BLIND: learn sees nothing on {name} for {wan['blind_for']:.0f} s, and UCM's RTP "
                "passes as without moh_ebpf; see: moh-ebpf doctor"
            )
            lines.append([Segment(text, ALARM)])
        elif wan["failing_open"]:
            text = (
                f"OPEN: UCM's RTP passes on {name} to endpoints that are not heard; "
                "see: moh-ebpf doctor"
            )
            lines.append([Segment(text, NOTICE)])
    return lines


def _missing(description: Description) -> list[Line]:
    places = [f"{place['role']} on {place['interface']}" for place in description["missing"]]
    if not places:
        return []
    return [[Segment(f"MISSING: {', '.join(places)}; attach again to put it back", ALARM)]]


def _explained_settings(shown: Mapping[str, Any]) -> list[tuple[Line, Segment]]:
    names = max(map(len, shown))
    return [
        ([Segment(f"{name:<{names}}  ")], Segment(settings.text(name, value)))
        for name, value in shown.items()
    ]


def _explained_counters(counters: Mapping[str, int]) -> list[tuple[Line, Segment]]:
    names = max(map(len, COUNTERS))
    values = max(len(str(value)) for value in counters.values())

    def line(name: str) -> Line:
        value = counters[name]
        return [Segment(f"{name:<{names}}  {value:>{values}}  ", PLAIN if value else DIM)]

    return [(line(name), Segment(each.meaning, DIM)) for name, each in COUNTERS.items()]
