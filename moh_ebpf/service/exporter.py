"""The metrics by HTTP."""

import errno
import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SHUT_RDWR
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from moh_ebpf.errors import UsageError
from moh_ebpf.service import metrics
from moh_ebpf.service.sums import Sums

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
# IP_FREEBIND and IPV6_FREEBIND (linux/in.h, linux/in6.h), which Python does not name.
_FREEBIND = {AF_INET: (IPPROTO_IP, 15), AF_INET6: (IPPROTO_IPV6, 78)}


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
    app = metrics.prometheus().exposition.make_wsgi_app(metrics.metric_registry(sums))

    def make(warn: Callable[[str], None]) -> Any:
        return make_server(host, port, app, _server(host, port, warn), _RequestHandler)

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


class _RequestHandler(WSGIRequestHandler):
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
