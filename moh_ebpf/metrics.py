"""Metrics for Prometheus: what `status` and `peers` know, as numbers to watch over time.

No label names a peer: series that come and go with each call are what a time series database bears
least. docs/monitoring.md says what each metric is for.
"""

import errno
import io
import itertools
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SHUT_RDWR
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from moh_ebpf import __version__, registry
from moh_ebpf.chronicle import Histogram, Sums
from moh_ebpf.counters import COUNTERS, RETIRED
from moh_ebpf.errors import MohError, NotAttachedError, UsageError
from moh_ebpf.layout import State
from moh_ebpf.peers import SILENT_SECONDS, Peer, Snapshot, Wan
from moh_ebpf.registry import GONE, Attached
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


# Clients at once. Beyond that, the one that has waited longest without asking gives way.
_MOST_CLIENTS = 16
# From one client to the next, so that whoever connects in a loop does not keep a core busy; so many
# wait for their turn meanwhile.
_PACE_SECONDS, _MOST_WAITING = 0.02, 64
# How long a client may take to ask, and to take the answer.
_PATIENCE_SECONDS = 5.0
# How often the server looks whether a client is late, or its own end is asked for.
_POLL_SECONDS = 0.5
# From one try to have the port to the next.
_RETRY_SECONDS = 3.0
# How long what the kernel said is good for.
_KEPT_SECONDS = 1.0
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
    yield from _counters(counters)
    yield from _peers(facts)
    yield from _wans(facts.snapshot.wans)
    yield from _run_time(facts.programs)


def _counters(values: Mapping[str, int]) -> Iterator[Any]:
    """A family for each that the counters name, in their order."""
    families: dict[str, Any] = {}
    for each in COUNTERS.values():
        help_text, label = SHARED.get(each.family, (_sentence(each.meaning), None))
        if each.family not in families:
            families[each.family] = _client().core.CounterMetricFamily(
                f"moh_ebpf_{each.family}", help_text, labels=[label] if label else None
            )
        labels = [each.label or each.name] if label else []
        families[each.family].add_metric(labels, values[each.name])
    for name, family in RETIRED.items():
        families[family].add_metric([name], 0)
    yield from families.values()


def _peers(facts: Facts) -> Iterator[Any]:
    core = _client().core
    peers = facts.snapshot.peers
    states = Counter(peer.state for peer in peers)
    # Where learn sees nothing, nobody can tell whether a call is silent.
    blind = {wan.interface for wan in facts.snapshot.wans if wan.is_blind}
    unheard = [peer for peer in facts.unheard if peer.interface not in blind]
    silent = Counter(
        peer.state for peer in [*peers, *unheard] if peer.is_silent(facts.settings.port)
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
        if each.interface == GONE:
            continue  # two of them would be one series
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
        yield _labelled("events", "Events, as moh-ebpf events has them.", "event", sums.events)
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


def _labelled(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Any:
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

    A port that cannot be had (now), or an address that is not there (yet), is no error, but a line
    by `notify`: hold music does not wait for metrics. The port is tried again until it is had.
    Raises MohError if there is no prometheus_client.
    """
    app = _client().exposition.make_wsgi_app(_registry(sums))

    def make(warn: Callable[[str], None]) -> Any:
        return make_server(host, port, app, _server(host, port, warn), _Handler)

    def warn(text: str) -> None:
        notify(f"warning: {text}")

    server, ended = None, threading.Event()
    try:
        server = make(warn)
    except OSError as error:
        warn(f"--metrics {host}:{port}: {error.strerror}; it is tried again until it can be had")
    thread = threading.Thread(target=_serve, args=(server, make, ended, f"{host}:{port}"))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _serve(
    server: Any, make: Callable[[Callable[[str], None]], Any], ended: threading.Event, where: str
) -> None:
    """Serve until `ended`; where there is no server yet, `make` one as soon as that works."""
    log = logging.getLogger("moh-ebpf")  # the service's, which never waits for its reader
    while server is None:
        if ended.wait(_RETRY_SECONDS):
            return
        with suppress(OSError):
            server = make(log.warning)
            log.info("--metrics %s: it is served there now", where)
    with closing(server):
        while not ended.is_set():
            server.handle_request()
            server.drop_late()


def _server(host: str, port: int, warn: Callable[[str], None]) -> type[WSGIServer]:
    class Server(ThreadingMixIn, WSGIServer):
        """A thread for each client; one that goes away in between is no news."""

        address_family = AF_INET6 if ":" in host else AF_INET
        daemon_threads = True
        request_queue_size = _MOST_WAITING
        timeout = _POLL_SECONDS

        def __init__(self, *arguments: Any) -> None:
            self._clients = _Clients()
            super().__init__(*arguments)

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
                warn(f"--metrics {host}:{port}: there is no such address here (yet)")
            self.server_name, self.server_port = host, port
            self.setup_environ()

        def close(self) -> None:
            self.server_close()

        def process_request(self, request: Any, client_address: Any) -> None:
            """Whoever keeps connecting shall not have all our descriptors."""
            if self._clients.admit(request):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)
            time.sleep(_PACE_SECONDS)

        def has_asked(self, request: Any) -> None:
            self._clients.has_asked(request)

        def drop_late(self) -> None:
            self._clients.drop_late()

        def shutdown_request(self, request: Any) -> None:
            self._clients.forget(request)
            super().shutdown_request(request)

        def handle_error(self, request: object, client_address: object) -> None:
            """Unlike socketserver, no traceback for a client's reset or timeout."""
            if not isinstance(sys.exception(), OSError | RuntimeError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    return Server


class _Clients:
    """The clients' sockets, those among them that have not asked yet with the time by which they
    must have. Their threads end when their sockets are shut down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[Any] = set()
        self._silent: dict[Any, float] = {}

    def admit(self, client: Any) -> bool:
        """Take it in; where there are too many, in the place of the one that has been silent for
        longest. False if all have asked, and are being answered."""
        with self._lock:
            if len(self._all) >= _MOST_CLIENTS:
                if not self._silent:
                    return False
                self._drop(next(iter(self._silent)))
            self._all.add(client)
            self._silent[client] = time.monotonic() + _PATIENCE_SECONDS
            return True

    def has_asked(self, client: Any) -> None:
        with self._lock:
            self._silent.pop(client, None)

    def drop_late(self) -> None:
        """A byte now and then is not enough: the time is that of a whole request."""
        with self._lock:
            now = time.monotonic()
            for client in [each for each, due in self._silent.items() if due <= now]:
                self._drop(client)

    def forget(self, client: Any) -> None:
        with self._lock:
            self._all.discard(client)
            self._silent.pop(client, None)

    def _drop(self, client: Any) -> None:
        self._all.discard(client)
        del self._silent[client]
        with suppress(OSError):  # it has gone by itself
            client.shutdown(SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.has_asked(self.request)  # type: ignore[attr-defined]
        return parsed

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
            "prometheus_client is missing", "apt install python3-prometheus-client"
        ) from error
    return prometheus_client
