"""`run`: the foreground service. It keeps attached what the config asks for, while interfaces come,
go and change.

One rule: when something changes, what should be attached is worked out anew, and where something
else is, `moh-ebpf attach` replaces it as a command would. That is a process of its own, for
compiling takes memory that a service would keep. The kernel stays the only registry: a service that
was killed finds everything as it was when it starts again.
"""

import errno
import json
import logging
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute

from moh_ebpf import attachment, network, registry, systemd
from moh_ebpf.errors import MohError, UsageError
from moh_ebpf.layout import State
from moh_ebpf.lock import only_service
from moh_ebpf.registry import Attached, Found, Record
from moh_ebpf.settings import Settings

Load = Callable[[], Settings]

# Netlink multicast groups (linux/rtnetlink.h): links, filters and qdiscs, IPv4 addresses.
_GROUPS = 0x1 | 0x8 | 0x10
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# What belongs together (an interface, its address) comes within a moment of each other.
_SETTLED_SECONDS = 0.2
# From one attach to the next; doubled while they follow each other this closely.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _CLOSE_SECONDS = 1.0, 60.0, 10.0
# Between two looks at the calls, which take at most this share of a core.
_STATUS_SECONDS, _STATUS_SHARE = 10.0, 0.005


def run(load: Load, *, keep: bool = False) -> None:
    """Attach and keep attached until SIGTERM or SIGINT; then detach, unless `keep`.

    `load` reads the settings: now, and at each SIGHUP. Raises MohError if they are wrong now, if
    there is another `run` in this network namespace, or if attach fails now for another reason than
    an interface that is not there yet.
    """
    registry.require_root()
    log = systemd.logger("moh-ebpf")
    with only_service(log.warning) as asked, _changes() as changes, _signals() as signals:
        service = Service(load(), log)
        service.begin()
        systemd.notify(READY=1, STATUS=service.status())
        _stay(service, load, asked, changes, signals)
        systemd.notify(STOPPING=1)
        places = [] if keep else attachment.detach(log.info)
    log.info("stopped; %s", "detached" if places else "what is attached stays")


def _stay(
    service: "Service",
    load: Load,
    asked: socket.socket,
    changes: socket.socket,
    signals: socket.socket,
) -> None:
    beat = _Beat(service)
    with selectors.DefaultSelector() as selector:
        for each in (asked, changes, signals):
            selector.register(each, selectors.EVENT_READ)
        while True:
            due = [each for each in (service.due, beat.due) if each is not None]
            timeout = max(0.0, min(due) - time.monotonic()) if due else None
            ready = {key.fileobj for key, _ in selector.select(timeout)}
            for number in signals.recv(64) if signals in ready else b"":
                if number != signal.SIGHUP:
                    return
                systemd.notify_reloading()
                service.reload(load)
                systemd.notify(READY=1)
            if asked in ready:
                asked.accept()[0].close()
            if changes in ready:
                _drain(changes)
                service.expect_change()
            service.act()
            beat.act()


class Service:
    """What is to be attached, and the steps there. `due`: when the next one is, by
    time.monotonic(); None while nothing is to be done."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        self._settings = settings
        self._log = log
        self._waits_for = ""
        self._attached_at = -_LONGEST_PAUSE_SECONDS
        self._pause = _PAUSE_SECONDS
        self.due: float | None = None

    def begin(self) -> None:
        """The first step, whose errors are the service's own: MohError, OSError."""
        if not self._step("attached"):
            self._log.info("what is attached already is right, and stays")

    def reload(self, load: Load) -> None:
        """Take new settings. Where they are wrong or cannot be attached, the old ones stay."""
        before = self._settings
        try:
            self._settings = load()
            self._refuse_unknown_interfaces(before)
            if not self._step("config reloaded"):
                self._log.info("config reloaded: nothing to change")
        except (MohError, OSError) as error:
            self._settings = before
            self._log.error("config not reloaded, the old one stays in force: %s", error)

    def expect_change(self) -> None:
        """Something may have to be done, when it has settled, and not too soon after the last."""
        if self.due is None:
            self.due = max(time.monotonic() + _SETTLED_SECONDS, self._attached_at + self._pause)

    def act(self) -> None:
        """The next step, if it is due. What fails is logged, and tried again after a pause."""
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        try:
            self._step("attached")
        except (MohError, OSError) as error:
            self._log.error("%s (trying again in %.0f s)", error, self._pause)
            self.due = time.monotonic() + self._pause

    def status(self) -> str:
        """One line for `systemctl status`."""
        try:
            with registry.attached_or_error() as attached:
                calls = _calls(attached)
        except (MohError, OSError) as error:
            calls = str(error)
        return f"{calls}; waiting for {self._waits_for}" if self._waits_for else calls

    def _step(self, verb: str) -> bool:
        """Attach what should be, if it is not; was there anything to do? Raises MohError."""
        with IPRoute() as ipr, registry.found(ipr) as found:
            wanted = _wanted(ipr, self._settings, found)
        if wanted.waits_for != self._waits_for:
            self._waits_for = wanted.waits_for
            if wanted.waits_for:
                self._log.warning("waiting for %s", wanted.waits_for)
        if not wanted.settings or not wanted.reason:
            return bool(wanted.waits_for)
        self._count_attempt()
        warnings = _attach(wanted.settings)
        self._log.info("%s (%s): %s", verb, wanted.reason, wanted.what)
        for warning in warnings:
            self._log.warning("%s", warning)
        return True

    def _count_attempt(self) -> None:
        """Against somebody who takes away what we attach, or an error that stays, be patient."""
        now = time.monotonic()
        is_close = now - self._attached_at < self._pause + _CLOSE_SECONDS
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS) if is_close else _PAUSE_SECONDS
        self._attached_at = now

    def _refuse_unknown_interfaces(self, before: Settings) -> None:
        """One that comes and goes is waited for; one that a new config brings up must exist."""
        with IPRoute() as ipr:
            for option, names, known in (
                ("--wan", self._settings.wan, before.wan),
                ("--lan", self._settings.lan, before.lan),
            ):
                network.interfaces(ipr, option, set(names) - set(known))


class _Wanted(NamedTuple):
    """The settings to attach with, None if none can be; `what` they come to; the `reason` to
    attach, empty if that is what is attached; and what is missing, empty if nothing is."""

    settings: Settings | None
    what: str = ""
    reason: str = ""
    waits_for: str = ""


def _wanted(ipr: IPRoute, settings: Settings, found: Found) -> _Wanted:
    attached_to = {place.ifindex for place in found.filters}
    there = network.usable(ipr, [*settings.wan, *settings.lan], attached_to)
    wan = tuple(name for name in settings.wan if name in there)
    lan = tuple(name for name in settings.lan if name in there)
    absent = ", ".join(name for name in (*settings.wan, *settings.lan) if name not in there)
    if not wan or bool(lan) != bool(settings.lan):
        return _Wanted(None, waits_for=absent)
    present = replace(settings, wan=wan, lan=lan)
    try:
        plan = attachment.make_plan(ipr, present, attached_to)
    except UsageError as error:  # it has no address yet, perhaps
        return _Wanted(None, waits_for=str(error))
    record = attachment.make_record(ipr, plan, found)
    return _Wanted(present, _words(record.settings), _difference(found, record), absent)


def _difference(found: Found, record: Record) -> str:
    """Why what is found must be replaced to be as the record has it; empty if it need not."""
    attached = found.attached
    if not found.filters:
        return "nothing was attached"
    if attached is None or attached.record.version != record.version:
        return "it was another version"
    if (attached.record.wan, attached.record.lan) != (record.wan, record.lan):
        return "interfaces have changed"
    if attached.record.settings.public != record.settings.public:
        return "addresses have changed"
    if attached.record != record:
        return "settings have changed"
    if attached.missing:
        lost = [f"{each.role} on {registry.interface_name(each.ifindex)}"
                for each in attached.missing]  # fmt: skip
        return f"somebody had removed {', '.join(lost)}"
    return ""


def _attach(settings: Settings) -> list[str]:
    """Run `attach`; its warnings. Raises MohError with the first line of its error."""
    done = subprocess.run(
        [sys.executable, "-m", "moh_ebpf", "attach", "--config", "/dev/stdin"],
        cwd=Path(__file__).parent.parent,  # where this very package is found
        input=_toml(settings),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    said = [line.removeprefix("moh-ebpf: ") for line in done.stderr.splitlines()]
    warnings = [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]
    if done.returncode:
        errors = [line for line in said if not line.startswith(("warning: ", "waiting for "))]
        raise MohError(errors[0] if errors else f"attach ended with status {done.returncode}")
    return warnings


def _toml(settings: Settings) -> str:
    """The settings as a config file: JSON's strings, numbers and lists are TOML's, too."""
    return "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in settings.to_json().items() if value
    )


def _words(settings: Settings) -> str:
    """In a line: where it is attached, and how hold music leaves."""
    lan = f", lan {' '.join(settings.lan)}" if settings.lan else ""
    sources = ", ".join(f"{address}:{settings.port}" for address in settings.public)
    return f"wan {' '.join(settings.wan)}{lan}, hold music leaves as {sources}"


def _calls(attached: Attached) -> str:
    states = [each.state for each in attached.snapshot(forgotten_for=0).peers]
    return f"{states.count(State.MOH)} on hold, {states.count(State.TWO)} two-way"


class _Beat:
    """The service manager's watchdog and status text. `due` is None where nobody listens."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._interval = min(_STATUS_SECONDS, (systemd.watchdog_seconds() or 60.0) / 2)
        self._status_at = 0.0
        self.due = time.monotonic() if systemd.is_listening() else None

    def act(self) -> None:
        now = time.monotonic()
        if self.due is None or now < self.due:
            return
        systemd.notify(WATCHDOG=1)
        if now >= self._status_at:
            systemd.notify(STATUS=self._service.status())
            took = time.monotonic() - now
            self._status_at = now + max(_STATUS_SECONDS, took / _STATUS_SHARE)
        self.due = now + self._interval


@contextmanager
def _changes() -> Iterator[socket.socket]:
    """Readable when links, IPv4 addresses, qdiscs or filters of this namespace have changed."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _GROUPS))
        changes.setblocking(False)
        yield changes


def _drain(changes: socket.socket) -> None:
    """What they say is not read, for what is there is asked anew: a lost one does not matter."""
    while True:
        try:
            changes.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Readable when one of _SIGNALS came: a byte, its number, for each."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        reader.close()
        writer.close()
