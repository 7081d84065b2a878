"""Metrics for Prometheus: what `status` and `peers` know, as numbers to watch over time.

No label names a peer: series that come and go with each call are what a time series database bears
least. docs/monitoring.md says what each metric is for.
"""

import itertools
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moh_ebpf import __version__
from moh_ebpf.calls.peers import SILENT_SECONDS, Peer, Snapshot, Wan
from moh_ebpf.counters import COUNTERS, RETIRED
from moh_ebpf.errors import MohError, NotAttachedError, UsageError
from moh_ebpf.kernel import requirements
from moh_ebpf.kernel.interfaces import GONE
from moh_ebpf.layout import State
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import open_program
from moh_ebpf.service.sums import OUTCOMES, Histogram, Sums
from moh_ebpf.settings import Settings

# The families whose counters share a metric: its help, and the label that tells them apart.
SHARED = {
    "packets": ("Packets of ours by what was done with them.", "verdict"),
    "state_changes": ("Changes of an endpoint's state.", "change"),
    "rtp_packets_expected": (
        "RTP packets that sequence numbers tell of, come or not.",
        "direction",
    ),
    "rtp_packets_lost": (
        "RTP packets skipped in their sequence, late or not come at all.",
        "direction",
    ),
    "rtp_packets_late": (
        "RTP packets that came after their successors, or twice.",
        "direction",
    ),
    "sip_packets": ("SIP by what was done with its direction.", "outcome"),
}

# How long what the kernel said is good for.
_KEPT_SECONDS = 1.0


@dataclass(frozen=True)
class RunTime:
    """One program, which all interfaces of its role share; `runs` and `seconds` as far as the
    kernel counted them."""

    role: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """All that the metrics are made of."""

    version: str
    settings: Settings
    missing: int
    programs: list[RunTime]
    snapshot: Snapshot
    unheard: list[Peer]


_NOTHING = Sample(
    version=__version__,
    settings=Settings(wan=(), ucm=()),
    missing=0,
    programs=[RunTime(role="none", runs=1, seconds=0.0)],
    snapshot=Snapshot(0.0, [], dict.fromkeys(COUNTERS, 0)),
    unheard=[],
)


class Collector:
    """prometheus_client's collector. It looks at the kernel once a second at most, whoever asks:
    scrapes within that second share what it saw.

    `collect` never raises: moh_ebpf_attached is 0 where nothing is attached, and absent where it
    cannot look.
    """

    def __init__(self, sums: Sums | None = None) -> None:
        self._sums = sums
        self._lock = threading.Lock()
        self._kept: list[Any] = []
        self._good_until = 0.0

    def describe(self) -> list[Any]:
        """The families that there may be, for who asks for some by name: without a look."""
        return list(self._families(_NOTHING))

    def collect(self) -> list[Any]:
        """The metric families."""
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._kept = list(self._collect())
                self._good_until = time.monotonic() + _KEPT_SECONDS
            return self._kept

    def _collect(self) -> Iterator[Any]:
        try:
            sample = _sample()
        except NotAttachedError:
            sample = None
        except Exception:  # in a thread of the server's, where it would only print a traceback
            yield from _build_info()
            return
        yield from self._families(sample)

    def _families(self, sample: Sample | None) -> Iterator[Any]:
        yield from families(sample)
        if self._sums:
            yield from _of_the_service(self._sums)


def _sample() -> Sample:
    """Raises NotAttachedError, OSError."""
    with walk.attached_or_error() as attached:
        return Sample(
            version=attached.record.version,
            settings=attached.record.settings,
            missing=len(attached.missing),
            programs=_programs(attached),
            snapshot=attached.snapshot(forgotten_for=0),
            unheard=attached.unheard(),
        )


def _programs(attached: Attached) -> list[RunTime]:
    found = []
    programs = {place.role: each.program_id or 0 for place, each in attached.filters.items()}
    for role, program_id in programs.items():
        with suppress(FileNotFoundError), open_program(program_id) as (_, known):
            found.append(RunTime(str(role), known.runs, known.run_ns / 1e9))
    return found


def families(sample: Sample | None) -> Iterator[Any]:
    """The metric families of what is attached; None: nothing is."""
    core = prometheus().core
    yield from _build_info()
    yield core.GaugeMetricFamily(
        "moh_ebpf_attached", "1 while programs are attached.", value=int(sample is not None)
    )
    if sample is None:
        return
    counters = sample.snapshot.counters
    yield core.GaugeMetricFamily(
        "moh_ebpf_programs_missing",
        "Places where a program belongs and is not.",
        value=sample.missing,
    )
    yield from _counters(counters)
    yield from _peers(sample)
    yield from _wans(sample.snapshot.wans)
    yield from _run_time(sample.programs)


def _counters(values: Mapping[str, int]) -> Iterator[Any]:
    """A family for each that the counters name, in their order."""
    families: dict[str, Any] = {}
    for each in COUNTERS.values():
        help_text, label = SHARED.get(each.family, (_sentence(each.meaning), None))
        if each.family not in families:
            families[each.family] = prometheus().core.CounterMetricFamily(
                f"moh_ebpf_{each.family}", help_text, labels=[label] if label else None
            )
        labels = [each.label or each.name] if label else []
        families[each.family].add_metric(labels, values[each.name])
    for name, family in RETIRED.items():
        families[family].add_metric([name], 0)
    yield from families.values()


def _peers(sample: Sample) -> Iterator[Any]:
    core = prometheus().core
    peers = sample.snapshot.peers
    states = Counter(peer.state for peer in peers)
    # Where learn sees nothing, nobody can tell whether a call is silent.
    blind = {wan.interface for wan in sample.snapshot.wans if wan.is_blind}
    unheard = [peer for peer in sample.unheard if peer.interface not in blind]
    silent = Counter(
        peer.state for peer in [*peers, *unheard] if peer.is_silent(sample.settings.port)
    )
    for name, help_text, counts in (
        ("peers", "Live endpoints.", states),
        (
            "peers_silent",
            "Endpoints on hold that get no music, or in a call with one direction silent, for "
            f"{SILENT_SECONDS:g} s.",
            silent,
        ),
    ):
        family = core.GaugeMetricFamily(f"moh_ebpf_{name}", help_text, labels=["state"])
        for state in State:
            family.add_metric([state.name.lower()], counts[state])
        yield family
    yield core.GaugeMetricFamily(
        "moh_ebpf_peers_max", "The most endpoints remembered.", value=sample.settings.max_peers
    )


def _wans(wans: Sequence[Wan]) -> Iterator[Any]:
    core = prometheus().core
    gauge, labels = core.GaugeMetricFamily, ["interface"]
    blind = gauge("moh_ebpf_wan_blind",
                  "1 while UCM's RTP passes because learn sees nothing there.",
                  labels=labels)  # fmt: skip
    is_open = gauge("moh_ebpf_wan_failing_open",
                    "1 while UCM's RTP passes there to endpoints that are not heard.",
                    labels=labels)  # fmt: skip
    age = gauge("moh_ebpf_wan_learn_age_seconds",
                "Time since learn last read a packet to a public address there; absent: never.",
                labels=labels)  # fmt: skip
    for each in wans:
        if each.interface == GONE:
            continue  # two of them would be one series
        blind.add_metric([each.interface], int(each.is_blind))
        is_open.add_metric([each.interface], int(each.is_failing_open))
        if each.learn_age is not None:
            age.add_metric([each.interface], each.learn_age)
    yield from (blind, is_open, age)


def _of_the_service(sums: Sums) -> Iterator[Any]:
    """What `run` has read of the events since it began, and what it waits for."""
    yield prometheus().core.GaugeMetricFamily(
        "moh_ebpf_interfaces_missing",
        "Interfaces of the config that are not there, or cannot be attached to.",
        value=sums.interfaces_missing,
    )
    with sums.lock:
        yield _labelled("events", "Events, as moh-ebpf events has them.", "event", sums.events)
        yield _histogram(
            "time_to_music",
            "From UCM's first packet dropped to the first one sent on, for each hold.",
            sums.time_to_music,
        )
        yield _histogram("hold", "How long a hold lasted.", sums.hold)
        yield from _signalling(sums)


def _signalling(sums: Sums) -> Iterator[Any]:
    gauge = prometheus().core.GaugeMetricFamily
    up = gauge("moh_ebpf_sip_reader_up", "1 while SIP is read; absent if it is not to be.")
    if sums.reads_sip is not None:
        up.add_metric([], int(sums.reads_sip))
    yield up
    yield gauge("moh_ebpf_sip_dialogs", "Dialogs that are followed.", value=sums.dialogs)
    help_text = "SIP messages that were read, and what could not be, by the reason."
    outcomes = {each: sums.messages[each] for each in OUTCOMES}
    yield _labelled("sip_messages", help_text, "outcome", outcomes)


def _histogram(name: str, help_text: str, values: Histogram) -> Any:
    bounds = [*map(str, values.bounds), "+Inf"]
    buckets = list(zip(bounds, itertools.accumulate(values.counts), strict=True))
    return prometheus().core.HistogramMetricFamily(
        f"moh_ebpf_{name}_seconds", help_text, buckets=buckets, sum_value=values.sum
    )


def _run_time(programs: list[RunTime]) -> Iterator[Any]:
    """Only where the kernel counts it, which costs it time: kernel.bpf_stats_enabled."""
    if not any(each.runs for each in programs):
        return
    core = prometheus().core
    labels = ["program"]
    runs = core.CounterMetricFamily("moh_ebpf_program_runs", "Runs of a program.", labels=labels)
    seconds = core.CounterMetricFamily(
        "moh_ebpf_program_run_seconds", "Time in a program.", labels=labels
    )
    for each in programs:
        runs.add_metric([each.role], each.runs)
        seconds.add_metric([each.role], each.seconds)
    yield runs
    yield seconds


def _build_info() -> Iterator[Any]:
    yield prometheus().core.InfoMetricFamily(
        "moh_ebpf_build", "This moh-ebpf.", value={"version": __version__}
    )


def _labelled(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Any:
    family = prometheus().core.CounterMetricFamily(f"moh_ebpf_{name}", help_text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def text() -> bytes:
    """The exposition, once. Raises MohError: not root, or no prometheus_client."""
    requirements.require_root()
    made: bytes = prometheus().generate_latest(metric_registry())
    return made


def write(file: Path) -> None:
    """The exposition to a file, whole at any moment, as node_exporter's textfile collector wants
    it. Raises MohError, OSError; UsageError if there is something else than a file."""
    file = file.resolve()
    if file.exists() and not file.is_file():
        raise UsageError(f"--output {file}: it is no file; without --output, metrics go to stdout")
    exposition = text()
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:  # which names the temporary file
        raise MohError(f"--output {file}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as made:
            made.write(exposition)
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def metric_registry(sums: Sums | None = None) -> Any:
    made = prometheus().CollectorRegistry()
    made.register(Collector(sums))
    return made


def prometheus() -> Any:
    try:
        import prometheus_client.core
        import prometheus_client.exposition
    except ImportError as error:
        raise MohError(
            "prometheus_client is missing", "apt install python3-prometheus-client"
        ) from error
    return prometheus_client
