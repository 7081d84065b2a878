"""`run`: the foreground service. It keeps attached what the config asks for, while interfaces come,
go and change.

One rule: when something changes, what should be attached is worked out anew, and where something
else is, `moh-ebpf attach` replaces it as a command would. That is a process of its own, for
compiling takes memory that a service would keep. Where nothing but filters is missing, the service
puts them back itself, with the programs that it holds open. The kernel stays the only registry: a
service that was killed finds everything as it was when it starts again.
"""

import math
import selectors
import socket
import time
from contextlib import closing, suppress

from moh_ebpf.attach import attachment
from moh_ebpf.kernel import requirements
from moh_ebpf.kernel.lock import is_asked_by_root, only_service
from moh_ebpf.service import systemd
from moh_ebpf.service.changes import drain, kernel_changes
from moh_ebpf.service.eventlog import EventLog
from moh_ebpf.service.keeper import Keeper, Load
from moh_ebpf.service.pace import STATUS_SHARE
from moh_ebpf.service.signals import Signals, Stopped, handled_signals
from moh_ebpf.service.sip_process import SipProcess
from moh_ebpf.service.sums import Sums

# Between two looks at the calls, for the status.
_STATUS_SECONDS = 10.0


def run(load: Load, *, keep: bool = False, sums: Sums | None = None) -> None:
    """Attach and keep attached until SIGTERM or SIGINT; then detach, unless `keep`. SIGUSR1 ends it
    with everything left attached, for another to follow.

    `load` reads the settings: now, and at each SIGHUP. `sums` is where events are counted.

    Raises MohError if the settings are wrong now, if there is another `run` in this network
    namespace, or if attach fails now for another reason than an interface that is not there yet.
    """
    requirements.require_root()
    with (
        systemd.logger("moh-ebpf") as log,
        only_service(log.warning) as name,
        kernel_changes() as changes,
        handled_signals() as signals,
    ):
        sums = sums or Sums()
        settings = load()
        with (
            suppress(Stopped),
            selectors.DefaultSelector() as selector,
            closing(EventLog(log, selector, sums)) as event_log,
            closing(SipProcess(log, selector, sums)) as sip,
            closing(Keeper(settings, log, signals, sums, sip.expect)) as service,
        ):
            signals.raise_if_stopped()
            service.begin()
            event_log.expect_change()
            systemd.notify(READY=1, STATUS=service.status())
            _stay(service, load, name, changes, signals, selector, event_log, sip)
        systemd.notify(STOPPING=1)
        if keep or signals.keep:
            log.info("stopped; what is attached stays")
        else:
            places = attachment.detach(log.info)
            log.info("stopped; %s", "detached" if places else "nothing was attached")


def _stay(
    service: Keeper,
    load: Load,
    name: socket.socket,
    changes: socket.socket,
    signals: Signals,
    selector: selectors.BaseSelector,
    event_log: EventLog,
    sip: SipProcess,
) -> None:
    """Until a signal to stop. Raises Stopped."""
    beat, deaf_until, attaches = _Beat(service), None, 0
    for each in (name, changes, signals.wakes):
        selector.register(each, selectors.EVENT_READ)
    while True:
        if service.attaches != attaches:
            attaches = service.attaches
            sip.attached(reads=service.reads_sip)
        times = (service.due, service.lookout.due, beat.due, deaf_until, event_log.due, sip.due)
        due = min(each for each in times if each is not None)
        timeout = max(0.0, due - time.monotonic()) if due < math.inf else None
        ready = {key.fileobj for key, _ in selector.select(timeout)}
        if signals.reload_asked():
            systemd.notify_reloading()
            service.reload(load)
            systemd.notify(READY=1)
        if name in ready and not is_asked_by_root(name):
            # Whoever may connect could keep us busy.
            selector.unregister(name)
            deaf_until = time.monotonic() + 1.0
        elif deaf_until is not None and time.monotonic() >= deaf_until:
            selector.register(name, selectors.EVENT_READ)
            deaf_until = None
        if changes in ready:
            service.expect_change(drain(changes))
            event_log.expect_change()
        service.act()
        event_log.act(ready)
        sip.act(ready)
        beat.act()
        service.lookout.act()


class _Beat:
    """The service manager's watchdog and status text. `due` is None where nobody listens."""

    def __init__(self, service: Keeper) -> None:
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
            self._status_at = now + max(_STATUS_SECONDS, took / STATUS_SHARE)
        self.due = now + self._interval
