"""Metrics from sample, and the documents that name them."""

import json
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from moh_ebpf.calls.peers import Peer, Snapshot, Wan
from moh_ebpf.calls.rtp import Rtp
from moh_ebpf.counters import COUNTERS
from moh_ebpf.errors import UsageError
from moh_ebpf.kernel.interfaces import GONE
from moh_ebpf.layout import State
from moh_ebpf.service import exporter, metrics
from moh_ebpf.service.metrics import RunTime, Sample
from moh_ebpf.settings import Settings

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
COUNTS = {name: 10 + number for number, name in enumerate(COUNTERS)}


HEARD = Rtp(7, 0, 100, 0, 0.001, 0.03)


def peer(
    number: int,
    state: State,
    *,
    age: float = 0.01,
    since: float = 60.0,
    out_age: float | None = None,
    in_rtp: Rtp | None = HEARD,
    public_port: int = 4000,
) -> Peer:
    return Peer(
        f"203.0.113.{number}", 21000, state, False, "198.51.100.2", public_port, "wan", age, since,
        0.02, 5, 1000, 7, 1400, out_age, in_rtp,
    )  # fmt: skip


def snapshot(time: float, *peers: Peer) -> Snapshot:
    return Snapshot(time, list(peers), COUNTS)


SAMPLE = Sample(
    version="1.2.3",
    settings=Settings(wan=("wan",), ucm=(), max_peers=4096),
    missing=1,
    programs=[RunTime("learn", 1000, 0.00025)],
    snapshot=replace(
        snapshot(
            1.0, peer(1, State.MOH), peer(2, State.TWO, out_age=0.01), peer(3, State.TWO, out_age=9)
        ),
        wans=[
            Wan("wan", 0.5, None, None),
            Wan("wan2", 70.0, 0.1, 70.0),
            Wan("wan3", None, 9, None),
            Wan(GONE, 0.5, None, None),
            Wan(GONE, 0.5, None, None),
        ],
    ),
    unheard=[peer(4, State.TWO, age=2.5, out_age=1.6)._replace(expired=True)],
)


def exposed(sample: Sample | None) -> dict[str, float]:
    """Sample → value, as a scraper reads them."""

    class Collector:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Iterable[Any]:
            return metrics.families(sample)

    registry = CollectorRegistry()
    registry.register(Collector())
    text = generate_latest(registry).decode()
    return {
        sample.name
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_attached() -> None:
    shown = exposed(SAMPLE)
    assert shown["moh_ebpf_attached"] == 1
    assert shown["moh_ebpf_programs_missing"] == 1
    assert shown["moh_ebpf_peers{state=moh}"] == 1
    assert shown["moh_ebpf_peers{state=two}"] == 2
    assert shown["moh_ebpf_peers_max"] == 4096
    assert shown["moh_ebpf_peers_silent{state=moh}"] == 1
    assert shown["moh_ebpf_peers_silent{state=two}"] == 2
    assert shown["moh_ebpf_program_runs_total{program=learn}"] == 1000
    assert shown["moh_ebpf_program_run_seconds_total{program=learn}"] == 0.00025
    assert [name for name in shown if name.startswith("moh_ebpf_build_info{version=")]


def test_a_wan_where_learn_sees_nothing() -> None:
    shown = exposed(SAMPLE)
    wans = ("wan", "wan2", "wan3")
    blind = [shown[f"moh_ebpf_wan_blind{{interface={name}}}"] for name in wans]
    is_open = [shown[f"moh_ebpf_wan_failing_open{{interface={name}}}"] for name in wans]
    ages = [shown.get(f"moh_ebpf_wan_learn_age_seconds{{interface={name}}}") for name in wans]
    assert (blind, is_open, ages) == ([0, 1, 0], [0, 1, 1], [0.5, 70.0, None])
    # Two that are gone would be one series twice.
    assert not [name for name in shown if GONE in name]


def test_a_call_where_learn_sees_nothing_is_not_silent() -> None:
    unheard = [each._replace(interface="wan2") for each in SAMPLE.unheard]
    shown = exposed(replace(SAMPLE, unheard=unheard))
    assert shown["moh_ebpf_peers_silent{state=two}"] == 1


def test_what_no_longer_happens_is_still_there() -> None:
    assert exposed(SAMPLE)["moh_ebpf_packets_total{verdict=dropped_no_route}"] == 0


def test_each_counter_is_shown_once_with_its_value() -> None:
    shown = exposed(SAMPLE)
    elsewhere = (
        {
            "bypassed": "moh_ebpf_bypassed_packets_total",
            "passed_unnatted": "moh_ebpf_unnatted_packets_total",
            "learn_failed": "moh_ebpf_learn_failures_total",
            "fragments": "moh_ebpf_fragments_total",
            "events_unread": "moh_ebpf_events_unread_total",
        }
        | {
            f"rtp_{way}_{what}": f"moh_ebpf_rtp_packets_{what}_total{{direction={way}}}"
            for way in ("in", "out")
            for what in ("expected", "lost", "late")
        }
        | {
            f"sip_{outcome}": f"moh_ebpf_sip_packets_total{{outcome={outcome}}}"
            for outcome in ("flipped", "restored", "split", "undirected")
        }
    )
    for name, value in COUNTS.items():
        (sample,) = [
            each for each in shown
            if f"{{verdict={name}}}" in each or f"{{change={name}}}" in each
            or each == elsewhere.get(name)
        ]  # fmt: skip
        assert shown[sample] == value


def test_nothing_attached_is_said_and_no_more() -> None:
    shown = exposed(None)
    assert shown.pop("moh_ebpf_attached") == 0
    assert [re.sub("{.*", "", name) for name in shown] == ["moh_ebpf_build_info"]


def test_run_time_only_where_the_kernel_counts_it() -> None:
    uncounted = replace(SAMPLE, programs=[RunTime("learn", 0, 0.0)])
    assert not [name for name in exposed(uncounted) if "program_run" in name]


SILENT = [
    (peer(1, State.MOH), True),
    (peer(1, State.MOH, out_age=0.02), False),
    (peer(1, State.MOH, out_age=30), True),
    (peer(1, State.MOH, since=1), False),  # not yet
    (peer(1, State.MOH, public_port=4001), False),  # an endpoint of RTCP
    (peer(1, State.TWO), True),
    (peer(1, State.TWO, out_age=0.02), False),
    (peer(1, State.TWO, out_age=0.02, age=3), True),
    (peer(1, State.TWO, out_age=5, in_rtp=None), False),  # of RTCP, or nobody can tell
    (peer(1, State.TWO, since=1), False),
]


@pytest.mark.parametrize(("who", "silent"), SILENT)
def test_who_hears_nothing(who: Peer, silent: bool) -> None:
    assert who.is_silent(4000) is silent


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("9477", ("127.0.0.1", 9477)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9477", ("::1", 9477)),
    ],
)
def test_address(given: str, meant: tuple[str, int]) -> None:
    assert exporter.address("--metrics", given) == meant


@pytest.mark.parametrize("given", ["", "0", "65536", "localhost:1", ":9477", "1.2.3.4", "a:b:1"])
def test_bad_address(given: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        exporter.address("--metrics", given)


def names(text: str) -> set[str]:
    return set(re.findall(r"moh_ebpf_\w+", text))


def test_documents_name_metrics_that_exist() -> None:
    known = {re.sub("{.*", "", name) for name in exposed(SAMPLE)}
    known |= {"moh_ebpf_events_total", "moh_ebpf_time_to_music_seconds", "moh_ebpf_hold_seconds",
              "moh_ebpf_interfaces_missing", "moh_ebpf_sip_reader_up", "moh_ebpf_sip_dialogs",
              "moh_ebpf_sip_messages_total"}  # fmt: skip
    rules = "".join(
        re.findall(r"(?:expr|series): (.*)", "".join(
            path.read_text() for path in sorted(MONITORING.glob("*.yml"))
        ))
    )  # fmt: skip
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = "".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    page = (MONITORING.parent / "monitoring.md").read_text()
    assert names(rules)
    assert names(rules) <= known
    assert names(asked) <= known
    assert names(page) == known


def test_panels_of_the_dashboard_have_a_place_each() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24  # Grafana's columns


def test_the_kernel_is_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many scrape, and whatever they ask for."""
    now, looks = 100.0, 0

    def sample() -> Sample:
        nonlocal looks
        looks += 1
        return SAMPLE

    monkeypatch.setattr(metrics, "_sample", sample)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    registry = metrics.metric_registry()
    with ThreadPoolExecutor() as pool:
        whole = list(pool.map(lambda _: generate_latest(registry), range(20)))
    some = generate_latest(registry.restricted_registry(["moh_ebpf_attached"]))
    assert (len(set(whole)), looks) == (1, 1)
    assert b"moh_ebpf_attached 1.0" in some
    assert len(some) < len(whole[0]) / 5
    now += 1.0
    assert generate_latest(registry) == whole[0]
    assert looks == 2
