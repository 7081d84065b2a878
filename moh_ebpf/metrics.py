"""Metrics for Prometheus: what `status` and `peers` know, as numbers to watch over time.

No label names a peer: series that come and go with each call are what a time series database bears
least. docs/monitoring.md says what each metric is for.
"""

import errno
import io
import itertools
import os
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from moh_ebpf import __version__, layout, registry
from moh_ebpf.chronicle import Histogram, Sums
from moh_ebpf.errors import MohError, NotAttachedError, UsageError
from moh_ebpf.layout import State
from moh_ebpf.peers import SILENT_SECONDS, Peer, Snapshot, Wan
from moh_ebpf.registry import Attached
from moh_ebpf.settings import Settings

# Counters whose packets met with one of these verdicts, each with one only.
VERDICTS = (
    "consumed",
    "rewritten",
    "passed_two",
    "dropped_unidentified",
    "dropped_too_big",
    "dropped_failed",
    "left_to_stack",
    "routed_elsewhere",
    "passed_blind",
    "passed_unheard",
)
CHANGES = ("learned_moh", "learned_two", "moh_to_two", "two_to_moh")
SIP = ("flipped", "restored", "split")
# Sums over all streams → their counter for "in" or "out".
RTP = {
    "expected": ("rtp_{}_expected", "RTP packets that sequence numbers tell of, come or not."),
    "lost": ("rtp_{}_lost", "RTP packets skipped in their sequence, late or not come at all."),
    "late": ("rtp_{}_late", "RTP packets that came after their successors, or twice."),
}


# Of a scrape: clients at once, beyond which they are turned away, and the longest that one of them
# may keep its place without going on.
_MOST_CLIENTS = 16
_PATIENCE_SECONDS = 10.0
# IP_FREEBIND and IPV6_FREEBIND (linux/in.h, linux/in6.h), which Python does not name.
_FREEBIND = {AF_INET: (IPPROTO_IP, 15), AF_INET6: (IPPROTO_IPV6, 78)}


@dataclass(frozen=True)
class Program:
    """One program, which all interfaces of its role share; `runs` and `seconds` as far as the
    kernel counted them."""

    role: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Facts:
    """All that the metrics are made of."""

    version: str
    settings: Settings
    missing: int
    programs: list[Program]
    snapshot: Snapshot
    unheard: list[Peer]


_NOTHING = Facts(
    version=__version__,
    settings=Settings(wan=(), ucm=()),
    missing=0,
    programs=[Program(role="none", runs=1, seconds=0.0)],
    snapshot=Snapshot(0.0, [], dict.fromkeys(layout.COUNTERS, 0)),
    unheard=[],
)


class Collector:
    """prometheus_client's collector: each scrape looks at the kernel anew.

    `collect` never raises: moh_ebpf_attached is 0 where nothing is attached, and absent where it
    cannot look.
    """

    def __init__(self, sums: Sums | None = None) -> None:
        self._sums = sums

    def describe(self) -> list[Any]:
        """The families that there may be, for who asks for some by name: without a look."""
        return list(self._families(_NOTHING))

    def collect(self) -> Iterator[Any]:
        """The metric families."""
        try:
            facts = _facts()
        except NotAttachedError:
            facts = None
        except Exception:  # in a thread of the server's, where it would only print a traceback
            yield from _build_info()
            return
        yield from self._families(facts)

    def _families(self, facts: Facts | None) -> Iterator[Any]:
        yield from families(facts)
        if self._sums:
            yield from _of_the_service(self._sums)


def _facts() -> Facts:
    """Raises NotAttachedError, OSError."""
    with registry.attached_or_error() as attached:
        return Facts(
            version=attached.record.version,
            settings=attached.record.settings,
            missing=len(attached.missing),
            programs=_programs(attached),
            snapshot=attached.snapshot(forgotten_for=0),
            unheard=attached.unheard(),
        )


def _programs(attached: Attached) -> list[Program]:
    found = []
    programs = {place.role: each.program_id or 0 for place, each in attached.filters.items()}
    for role, program_id in programs.items():
        with suppress(FileNotFoundError), registry.open_program(program_id) as (_, known):
            found.append(Program(str(role), known.runs, known.run_ns / 1e9))
    return found


def families(facts: Facts | None) -> Iterator[Any]:
    """The metric families of what is attached; None: nothing is."""
    core = _client().core
    yield from _build_info()
    yield core.GaugeMetricFamily(
        "moh_ebpf_attached", "1 while programs are attached.", value=int(facts is not None)
    )
    if facts is None:
        return
    counters = facts.snapshot.counters
    yield core.GaugeMetricFamily(
        "moh_ebpf_programs_missing",
        "Places where a program belongs and is not.",
        value=facts.missing,
    )
    yield _counter("packets", "Packets of ours by what was done with them.", "verdict",
                   {name: counters[name] for name in VERDICTS}
                   | dict.fromkeys(layout.RETIRED_COUNTERS, 0))  # fmt: skip
    yield _counter("state_changes", "Changes of an endpoint's state.", "change",
                   {name: counters[name] for name in CHANGES})  # fmt: skip
    for name, metric in (
        ("bypassed", "bypassed_packets"),
        ("passed_unnatted", "unnatted_packets"),
        ("learn_failed", "learn_failures"),
        ("fragments", "fragments"),
        ("events_unread", "events_unread"),
    ):
        yield core.CounterMetricFamily(
            f"moh_ebpf_{metric}", _sentence(layout.COUNTERS[name]), value=counters[name]
        )
    yield from _rtp(counters)
    yield _counter("sip_packets", "SIP by what was done with its direction.", "outcome",
                   {name: counters[f"sip_{name}"] for name in SIP})  # fmt: skip
    yield from _peers(facts)
    yield from _wans(facts.snapshot.wans)
    yield from _run_time(facts.programs)


def _rtp(counters: Mapping[str, int]) -> Iterator[Any]:
    for name, (counter, help_text) in RTP.items():
        values = {way: counters[counter.format(way)] for way in ("in", "out")}
        yield _counter(f"rtp_packets_{name}", help_text, "direction", values)


def _peers(facts: Facts) -> Iterator[Any]:
    core = _client().core
    peers = facts.snapshot.peers
    states = Counter(peer.state for peer in peers)
    silent = Counter(
        peer.state for peer in [*peers, *facts.unheard] if peer.is_silent(facts.settings.port)
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
        "moh_ebpf_peers_max", "The most endpoints remembered.", value=facts.settings.max_peers
    )


def _wans(wans: Sequence[Wan]) -> Iterator[Any]:
    core = _client().core
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
        blind.add_metric([each.interface], int(each.is_blind))
        is_open.add_metric([each.interface], int(each.is_failing_open))
        if each.learn_age is not None:
            age.add_metric([each.interface], each.learn_age)
    yield from (blind, is_open, age)


def _of_the_service(sums: Sums) -> Iterator[Any]:
    """What `run` has read of the events since it began, and what it waits for."""
    yield _client().core.GaugeMetricFamily(
        "moh_ebpf_interfaces_missing",
        "Interfaces of the config that are not there, or cannot be attached to.",
        value=sums.interfaces_missing,
    )
    with sums.lock:
        yield _counter("events", "Events, as moh-ebpf events has them.", "event", sums.events)
        yield _histogram(
            "time_to_music",
            "From UCM's first packet dropped to the first one sent on, for each hold.",
            sums.time_to_music,
        )
        yield _histogram("hold", "How long a hold lasted.", sums.hold)


def _histogram(name: str, help_text: str, values: Histogram) -> Any:
    bounds = [*map(str, values.bounds), "+Inf"]
    buckets = list(zip(bounds, itertools.accumulate(values.counts), strict=True))
    return _client().core.HistogramMetricFamily(
        f"moh_ebpf_{name}_seconds", help_text, buckets=buckets, sum_value=values.sum
    )


def _run_time(programs: list[Program]) -> Iterator[Any]:
    """Only where the kernel counts it, which costs it time: kernel.bpf_stats_enabled."""
    if not any(each.runs for each in programs):
        return
    core = _client().core
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
    yield _client().core.InfoMetricFamily(
        "moh_ebpf_build", "This moh-ebpf.", value={"version": __version__}
    )


def _counter(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Any:
    family = _client().core.CounterMetricFamily(f"moh_ebpf_{name}", help_text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def text() -> bytes:
    """The exposition, once. Raises MohError: not root, or no prometheus_client."""
    registry.require_root()
    made: bytes = _client().generate_latest(_registry())
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


def address(option: str, value: str) -> tuple[str, int]:
    """`[ADDR:]PORT`; loopback where there is no address. Raises UsageError."""
    match = re.fullmatch(r"(?:(\[.+\]|[^:]+):)?(\d{1,5})", value, re.ASCII)
    try:
        if not match or not 0 < int(match[2]) < 65536:
            raise ValueError
        host = str(ip_address((match[1] or "127.0.0.1").strip("[]")))
    except ValueError:
        raise UsageError(
            f"{option}: {value!r} is no address and port; write it as 127.0.0.1:9477 or 9477"
        ) from None
    return host, int(match[2])


@contextmanager
def served(host: str, port: int, sums: Sums, notify: Callable[[str], None]) -> Iterator[None]:
    """Metrics by HTTP meanwhile, at any path, those of events among them.

    Raises MohError if the address cannot be had. One that is not there yet is no error, but a line
    by `notify`.
    """
    exposition = _client().exposition
    try:
        server = make_server(
            host,
            port,
            exposition.make_wsgi_app(_registry(sums)),
            _server(host, port, notify),
            _Handler,
        )
    except OSError as error:
        raise MohError(f"--metrics {host}:{port}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _server(host: str, port: int, notify: Callable[[str], None]) -> type[WSGIServer]:
    places = threading.Semaphore(_MOST_CLIENTS)

    class Server(ThreadingMixIn, WSGIServer):
        """A thread for each client; one that goes away in between is no news."""

        address_family = AF_INET6 if ":" in host else AF_INET
        daemon_threads = True

        def server_bind(self) -> None:
            """Without HTTPServer's question to the DNS for our name. An address that is not there
            may come, as it does after a boot: hold music shall not wait for that."""
            try:
                TCPServer.server_bind(self)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                self.socket.setsockopt(*_FREEBIND[self.address_family], 1)
                TCPServer.server_bind(self)
                notify(f"warning: --metrics {host}:{port}: there is no such address here (yet)")
            self.server_name, self.server_port = host, port
            self.setup_environ()

        def process_request(self, request: Any, client_address: Any) -> None:
            """Whoever keeps connecting shall not have all our descriptors."""
            if not places.acquire(blocking=False):
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread can be had
                places.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

        def handle_error(self, request: object, client_address: object) -> None:
            """Unlike socketserver, no traceback for a client's reset or timeout."""
            if not isinstance(sys.exception(), OSError | RuntimeError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    return Server


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """A scrape is no news."""

    def get_stderr(self) -> io.StringIO:
        """Nor is one that asks for what prometheus_client does not know: it gets a 500."""
        return io.StringIO()


def _registry(sums: Sums | None = None) -> Any:
    made = _client().CollectorRegistry()
    made.register(Collector(sums))
    return made


def _client() -> Any:
    try:
        import prometheus_client.core
        import prometheus_client.exposition
    except ImportError as error:
        raise MohError(
            "prometheus_client is missing; try: apt install python3-prometheus-client"
        ) from error
    return prometheus_client
