"""The pictures of docs/benchmarks.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tests.bench import report
from tests.bench.report import LABELS, ONE, Results
from tests.bench.samples import Spread, percentile

OURS, OTHERS, LIMIT = "#1f6f8b", "#b9c2c8", "#7a8790"


def draw(results: Results, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Results, Axes], None]] = {
        "forwarding": _forwarding,
        "peers": _peers,
        "latency": _latency,
        "programs": _programs,
    }
    for name, paint in pictures.items():
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        paint(results, axes)
        # Without a date and a version in it, the same numbers give the same file.
        figure.savefig(directory / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


def _colour(name: str) -> str:
    if name.startswith("moh"):
        return OURS
    return LIMIT if name == "redirect" else OTHERS


def _bars(axes: Axes, bars: dict[str, Spread], colours: list[str], digits: int = 0) -> None:
    """From the top down, each with its number and its quartiles."""
    medians = [each.median for each in bars.values()]
    errors = [
        [max(0.0, each.median - each.low) for each in bars.values()],
        [max(0.0, each.high - each.median) for each in bars.values()],
    ]
    drawn = axes.barh([*bars], medians, color=colours, xerr=errors, ecolor="#444444")
    axes.bar_label(drawn, labels=[f"{value:,.{digits}f}" for value in medians], padding=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)


def _forwarding(results: Results, axes: Axes) -> None:
    """Those in the kernel: beside them, the ones in user space would leave no room."""
    costs = sorted(report.own_costs(results, ONE).items(), key=lambda item: item[1].median)
    kernel = {name: cost for name, cost in costs if not name.startswith("nfqueue")}
    bars = {LABELS[name]: cost for name, cost in kernel.items()}
    _bars(axes, bars, [_colour(name) for name in kernel])
    axes.set_xlabel("a packet's own cost in the firewall, ns (without NFQUEUE, see the table)")


def _peers(results: Results, axes: Axes) -> None:
    for kind, label, colour in (
        ("one", "music to one of them", OURS),
        ("all", "music to all of them in turn", "#d1782f"),
    ):
        costs = report.peer_costs(results, kind)
        points = {int(count): cost for count, cost in costs.items() if count != "full"}
        axes.plot(
            [*points], [cost.median for cost in points.values()], "o-", color=colour, label=label
        )
        lows, highs = (
            [each.low for each in points.values()],
            [each.high for each in points.values()],
        )
        axes.fill_between([*points], lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("live peers")
    axes.set_ylabel("moh_ebpf's own cost, ns a packet")
    axes.legend(frameon=False)


def _latency(results: Results, axes: Axes) -> None:
    rows: dict[str, list[float]] = {}
    for name, rounds in results["latency"]["samples"].items():
        arrived = [ns / 1000 for samples in rounds for ns in samples if ns >= 0]
        if arrived:
            rows[name] = [percentile(arrived, percent) for percent in (50, 99, 99.9)]
    labels = [LABELS[name] for name in rows]
    for at, (percent, marker) in enumerate((("50 %", "o"), ("99 %", "|"), ("99.9 %", "x"))):
        values: list[Any] = [row[at] for row in rows.values()]
        axes.plot(values, labels, marker, color=OURS, markersize=8, label=percent)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("µs under way; so many percent of the packets took no longer")
    axes.legend(frameon=False)


def _programs(results: Results, axes: Axes) -> None:
    costs = report.path_costs(results)
    kinds = {name: each["kind"] for name, each in results["programs"]["paths"].items()}
    _bars(axes, costs, [OURS if kinds[name] == "rewritten" else OTHERS for name in costs])
    axes.set_xlabel("ns of one run, over an empty program")
