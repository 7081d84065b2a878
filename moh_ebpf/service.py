"""`run`: the foreground service. It keeps attached what the config asks for, while interfaces come,
go and change.

One rule: when something changes, what should be attached is worked out anew, and where something
else is, `moh-ebpf attach` replaces it as a command would. That is a process of its own, for
compiling takes memory that a service would keep. Where nothing but filters is missing, the service
puts them back itself, with the programs that it holds open. The kernel stays the only registry: a
service that was killed finds everything as it was when it starts again.
"""

import errno
import itertools
import json
import logging
import math
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from moh_ebpf import attachment, earlier, network, registry, systemd
from moh_ebpf.chronicle import Chronicle, Sums
from moh_ebpf.errors import MohError
from moh_ebpf.kept import Kept
from moh_ebpf.layout import State
from moh_ebpf.lock import is_asked_by_root, only_service
from moh_ebpf.registry import Attached, Found, Record
from moh_ebpf.settings import Settings
from moh_ebpf.systemd import SERVICE_SIGNALS

Load = Callable[[], Settings]

# Netlink multicast groups (linux/rtnetlink.h): links, filters and qdiscs, IPv4 addresses.
_GROUPS = 0x1 | 0x8 | 0x10
# struct nlmsghdr; the index, and a tcmsg's parent, in what follows it (linux/rtnetlink.h). The
# parent is that of the clsact and ingress qdiscs.
_MESSAGE, _INDEX, _PARENT = struct.Struct("=IHHII"), struct.Struct("=4xi"), struct.Struct("=12xI")
_RTM_DELLINK, _RTM_DELQDISC, _RTM_DELTFILTER = 17, 37, 45
_TC_H_CLSACT = 0xFFFFFFF1

# What belongs together (an interface, its address) comes within a moment of each other.
_SETTLED_SECONDS = 0.2
# The same for a filter that was removed: whoever deletes a clsact may be about to make it anew.
_REMOVED_SECONDS = 0.05
# From one attach to the next; doubled while they follow each other this closely. The longest is
# for what we have attached already, and was removed, or has failed: it may be so for ever.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _CLOSE_SECONDS = 1.0, 60.0, 10.0
# For what is new, an interface or an address: music waits for that.
_LONGEST_PAUSE_FOR_NEWS_SECONDS = 5.0
# From one time that removed filters are put back to the next; doubled as above. It costs little.
_PUT_BACK_PAUSE_SECONDS, _LONGEST_PUT_BACK_PAUSE_SECONDS = 1.0, 5.0
# Between two looks at what runs before our programs: a bpf_link makes no netlink message.
_LOOKOUT_SECONDS = 10.0
# Between two looks at the calls, which take at most this share of a core.
_STATUS_SECONDS, _STATUS_SHARE = 10.0, 0.005
# What looking for changes may take of a core, and how late a change may be seen for that.
_LOOKING_SHARE, _LONGEST_LAG_SECONDS = 0.05, 5.0

# Not /dev/stdin, which a small /dev has not; /proc is there, for the lock is in it.
_STDIN = "/proc/self/fd/0"
_LONG_ATTACH_SECONDS = 10
_LONGEST_ERROR = 1000  # characters, of a compiler's or verifier's many lines


def run(load: Load, *, keep: bool = False, sums: Sums | None = None) -> None:
    """Attach and keep attached until SIGTERM or SIGINT; then detach, unless `keep`. SIGUSR1 ends it
    with everything left attached, for another to follow.

    `load` reads the settings: now, and at each SIGHUP. `sums` is where events are counted.

    Raises MohError if the settings are wrong now, if there is another `run` in this network
    namespace, or if attach fails now for another reason than an interface that is not there yet.
    """
    registry.require_root()
    with (
        systemd.logger("moh-ebpf") as log,
        only_service(log.warning) as name,
        _changes() as changes,
        _signals() as signals,
    ):
        sums = sums or Sums()
        service = Service(load(), log, signals, sums)
        with (
            suppress(_Stopped),
            selectors.DefaultSelector() as selector,
            closing(service),
            closing(Chronicle(log, selector, sums)) as chronicle,
        ):
            signals.raise_if_stopped()
            service.begin()
            chronicle.expect_change()
            systemd.notify(READY=1, STATUS=service.status())
            _stay(service, load, name, changes, signals, selector, chronicle)
        systemd.notify(STOPPING=1)
        if keep or signals.keep:
            log.info("stopped; what is attached stays")
        else:
            places = attachment.detach(log.info)
            log.info("stopped; %s", "detached" if places else "nothing was attached")


def _stay(
    service: "Service",
    load: Load,
    name: socket.socket,
    changes: socket.socket,
    signals: "_Signals",
    selector: selectors.BaseSelector,
    chronicle: Chronicle,
) -> None:
    """Until a signal to stop. Raises _Stopped."""
    beat, deaf_until, untold = _Beat(service), None, False
    for each in (name, changes, signals.wakes):
        selector.register(each, selectors.EVENT_READ)
    while True:
        times = (service.due, service.lookout.due, beat.due, deaf_until, chronicle.due)
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
            service.expect_change(_drain(changes))
            untold = True
        service.act()
        if untold and service.due is None:
            # Not before what was removed is back, with its ring: the events go on.
            chronicle.expect_change()
            untold = False
        chronicle.act(ready)
        beat.act()
        service.lookout.act()


class Service:
    """What is to be attached, and the steps there. `due`: when the next one is, by
    time.monotonic(); None while nothing is to be done. `lookout` has what it has attached."""

    def __init__(
        self, settings: Settings, log: logging.Logger, signals: "_Signals", sums: Sums
    ) -> None:
        self._settings = settings
        self._log = log
        self._signals = signals
        self._sums = sums
        self._waits_for = ""
        self._failed = ""
        self._attached_at = -_LONGEST_PAUSE_SECONDS
        self._tried: Record | None = None
        self._attached: Record | None = None
        self._pause = _PAUSE_SECONDS
        self._told_to_wait = False
        self._not_before = 0.0
        self._settled_at = 0.0
        self._kept: Kept | None = None
        self._put_back_at = -_LONGEST_PUT_BACK_PAUSE_SECONDS
        self._put_back_pause = _PUT_BACK_PAUSE_SECONDS
        self.lookout = Lookout(log)
        self.due: float | None = None

    def close(self) -> None:
        """Let go of the programs that are held open."""
        if self._kept:
            self._kept.close()
        self._kept = None

    def begin(self) -> None:
        """The first step, whose errors are the service's own: MohError, OSError."""
        if not self._step("attached", at_start=True).has_news:
            self._log.info("what is attached already is right, and stays")

    def reload(self, load: Load) -> None:
        """Take new settings. Where they are wrong or cannot be attached, the old ones stay."""
        before, waited_for = self._settings, self._waits_for
        try:
            self._settings = load()
            self._refuse_unknown_interfaces(before)
            new = _interfaces(self._settings) - _interfaces(before)
            wanted = self._step("config reloaded", needed=new)
            if not wanted.settings and _interfaces(self._settings) != _interfaces(before):
                raise MohError(f"it would wait for {wanted.waits_for}")
            if not wanted.reason:
                self._log.info("config reloaded: nothing to change")
        except _Stopped:
            raise
        except Exception as error:  # whatever a file may do to us, the old settings are good
            self._settings, self._waits_for = before, waited_for
            self.expect_change()
            self._log.error("config not reloaded, the old one stays in force: %s", _text(error))

    def expect_change(self, news: "_News | None" = None) -> None:
        """Something may have to be done, when it has settled; sooner if what was attached was
        removed."""
        now = time.monotonic()
        if now >= self._settled_at:
            self._settled_at = now + _SETTLED_SECONDS
        soon = max(now + self._settles_in(news or _News()), self._not_before)
        self.due = soon if self.due is None else min(self.due, soon)
        self.lookout.expect_change()

    def _settles_in(self, news: "_News") -> float:
        if self._kept is None:
            return _SETTLED_SECONDS
        if news.lost or news.links & self._kept.interfaces:
            # Another interface may have the index of one that is gone.
            self.close()
            return _SETTLED_SECONDS
        self._kept.hooks_are_gone(news.hooks)
        removed = (news.hooks | news.filters) & self._kept.interfaces
        return _REMOVED_SECONDS if removed else _SETTLED_SECONDS

    def act(self) -> None:
        """The next step, if it is due. What fails is logged, and tried again after a pause."""
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        try:
            self._step("attached", patient=True)
            if self.due is None:
                self._failed = ""
        except _Stopped:
            raise
        except Exception as error:  # the kernel's answers are many, and nobody restarts us
            self._lengthen_pause()
            if _text(error) != self._failed:
                self._failed = _text(error)
                self._log.error("%s (trying again, every %.0f s at last)", self._failed,
                                _LONGEST_PAUSE_SECONDS)  # fmt: skip
            self.due = time.monotonic() + self._pause

    def status(self) -> str:
        """One line for `systemctl status`."""
        try:
            with registry.attached_or_error() as attached:
                calls = _calls(attached)
        except (MohError, OSError) as error:
            calls = str(error)
        return f"{calls}; waiting for {self._waits_for}" if self._waits_for else calls

    def _step(
        self,
        verb: str,
        *,
        at_start: bool = False,
        patient: bool = False,
        needed: Collection[str] = (),
    ) -> "_Wanted":
        """Attach what should be, if it is not; where `patient`, later, if it was just now. WANs
        that cannot be attached to are left out, but not the `needed`.

        Raises MohError, OSError, NetlinkError.
        """
        wanted = self._look(at_start, needed)
        if self._put_back(wanted, patient):
            return wanted
        if patient and time.monotonic() < self._settled_at:
            self.due = max(self._settled_at, self._not_before)
            return wanted
        present = _interfaces(wanted.settings) if wanted.settings else set()
        self._sums.interfaces_missing = len(_interfaces(self._settings) - present)
        if wanted.waits_for != self._waits_for:
            if wanted.waits_for:
                self._log.warning("waiting for %s", wanted.waits_for)
            elif not wanted.reason:
                self._log.info("%s is there again, and attached still", self._waits_for)
            self._waits_for = wanted.waits_for
        if wanted.record and not wanted.reason:
            self._attached = wanted.record
        self.lookout.record = None if wanted.reason else wanted.record
        if wanted.settings and wanted.record and wanted.reason:
            if patient and self._must_wait(wanted.record, wanted.reason):
                return wanted
            self._count_attempt(wanted.record)
            # With the addresses that were seen: by now there may be others, which are other news.
            warnings = _attach(wanted.record.settings, self._signals, self._log)
            self._attached = self.lookout.record = wanted.record
            self._log.info("%s (%s): %s", verb, wanted.reason, _words(wanted.record.settings))
            for warning in self.lookout.untold(warnings):
                self._log.warning("%s", warning)
            with suppress(MohError, OSError):  # it is attached; another look will do
                self._look(False, ())  # holds the new programs open
        return wanted

    def _put_back(self, wanted: "_Wanted", patient: bool) -> bool:
        """Put back what somebody has removed, if that is all there is to do; where `patient`,
        later, if it was just now. False: it cannot be done."""
        kept = self._kept
        if not (kept and wanted.record and wanted.reason and _is_same(kept.record, wanted.record)):
            return False
        now = time.monotonic()
        if patient and now < self._put_back_at + self._put_back_pause:
            self.due = self._put_back_at + self._put_back_pause
            return True
        try:
            attachment.put_back(kept, self._log.warning)
        except (MohError, OSError):
            return False  # attach tells what is wrong, if that stays
        if now - self._put_back_at < self._put_back_pause + _CLOSE_SECONDS:
            longer = 2 * self._put_back_pause
            self._put_back_pause = min(longer, _LONGEST_PUT_BACK_PAUSE_SECONDS)
        else:
            self._put_back_pause = _PUT_BACK_PAUSE_SECONDS
        self._put_back_at = now
        self._attached = self.lookout.record = wanted.record
        self._log.info("put back (%s): %s", wanted.reason, _words(wanted.record.settings))
        return True

    def _look(self, at_start: bool, needed: Collection[str]) -> "_Wanted":
        begun = time.monotonic()
        try:
            with IPRoute() as ipr, registry.found(ipr) as found:
                if self._kept and not self._kept.has_all_of(found.filters):
                    self.close()
                wanted = _wanted(ipr, self._settings, found, at_start, needed)
                if wanted.record and not wanted.reason and found.attached:
                    self._keep(found.attached)
                if wanted.reason and self._is_somebody_else_s(found):
                    return wanted._replace(reason="somebody had attached other settings")
                return wanted
        finally:
            # Where others keep changing a thousand interfaces, looking must not take a core.
            took = time.monotonic() - begun
            self._not_before = begun + min(took / _LOOKING_SHARE, _LONGEST_LAG_SECONDS)

    def _keep(self, attached: Attached) -> None:
        if self._kept:
            self._kept.is_whole()
            return
        with suppress(MohError, OSError):  # replaced meanwhile, or no memory: compiled if need be
            self._kept = Kept(attached)

    def _is_somebody_else_s(self, found: Found) -> bool:
        there = found.attached and found.attached.record
        return bool(there and self._attached and not _is_same(there, self._attached))

    def _must_wait(self, record: Record, reason: str) -> bool:
        """Is it too soon after the last attach? Then `due` is when it no longer is."""
        longest = _longest_pause(record, self._tried)
        at = self._attached_at + min(self._pause, longest)
        wait = at - time.monotonic()
        if wait <= 0:
            return False
        self.due = at
        if wait > _LONGEST_PAUSE_FOR_NEWS_SECONDS and not self._told_to_wait and not self._failed:
            self._told_to_wait = True
            self._log.warning("%s, again and again; attaching in %.0f s", reason, wait)
        return True

    def _count_attempt(self, record: Record) -> None:
        """Against somebody who takes away what we attach, or an error that stays, be patient."""
        now = time.monotonic()
        if now - self._attached_at < self._pause + _CLOSE_SECONDS:
            self._lengthen_pause(_longest_pause(record, self._tried))
        else:
            self._pause = _PAUSE_SECONDS
        self._attached_at, self._tried = now, record
        self._told_to_wait = False

    def _lengthen_pause(self, longest: float = _LONGEST_PAUSE_SECONDS) -> None:
        self._pause = max(self._pause, min(2 * self._pause, longest))

    def _refuse_unknown_interfaces(self, before: Settings) -> None:
        """One that comes and goes is waited for; one that a new config brings up must exist."""
        with IPRoute() as ipr:
            links = network.links_by_name(ipr)
            for option, names, known in (
                ("--wan", self._settings.wan, before.wan),
                ("--lan", self._settings.lan, before.lan),
            ):
                network.interfaces(ipr, links, option, set(names) - set(known))


class _Wanted(NamedTuple):
    """The settings to attach with, None if none can be; the `record` they come to; the `reason` to
    attach, empty if that is what is attached; and what is missing, empty if nothing is."""

    settings: Settings | None
    record: Record | None = None
    reason: str = ""
    waits_for: str = ""

    @property
    def has_news(self) -> bool:
        return bool(self.reason or self.waits_for)


def _longest_pause(record: Record, before: Record | None) -> float:
    """Before this is attached, if that was `before`: the same again is somebody's or some fault's
    doing, anything else is news."""
    same = before is not None and _is_same(record, before)
    return _LONGEST_PAUSE_SECONDS if same else _LONGEST_PAUSE_FOR_NEWS_SECONDS


def _is_same(one: Record, other: Record) -> bool:
    return (one.wan, one.lan, one.settings) == (other.wan, other.lan, other.settings)


def _interfaces(settings: Settings) -> set[str]:
    return {*settings.wan, *settings.lan}


def _wanted(
    ipr: IPRoute, settings: Settings, found: Found, at_start: bool, needed: Collection[str]
) -> _Wanted:
    """What is to be attached. A WAN that cannot be attached to, a port of a bridge by now for
    instance, shall not keep the others from it: it is waited for. Raises MohError if it is the only
    one, or one of the `needed`, or if the LAN is unfit."""
    try:
        return _wanted_of_all(ipr, settings, found, at_start)
    except MohError:
        unfit = _unfit(ipr, settings, found, at_start)
        fit = tuple(name for name in settings.wan if name not in unfit)
        if not fit or not unfit or unfit.keys() & needed:
            raise
    wanted = _wanted_of_all(ipr, replace(settings, wan=fit), found, at_start)
    reasons = [wanted.waits_for, *unfit.values()]
    return wanted._replace(waits_for="; ".join(filter(None, reasons)))


def _unfit(ipr: IPRoute, settings: Settings, found: Found, at_start: bool) -> dict[str, str]:
    """The WANs that cannot be attached to, and why not."""
    unfit = {}
    for name in settings.wan:
        try:
            _wanted_of_all(ipr, replace(settings, wan=(name,)), found, at_start)
        except MohError as error:
            unfit[name] = str(error)
    return unfit


def _wanted_of_all(ipr: IPRoute, settings: Settings, found: Found, at_start: bool) -> _Wanted:
    if found.filters and not found.attached and not at_start:
        return _Wanted(None, waits_for="a restart: another version's programs are attached")
    attached_to = {place.ifindex for place in found.filters}
    links = network.links_by_name(ipr)
    there = network.usable(links, _interfaces(settings), attached_to)
    wan = tuple(name for name in settings.wan if name in there)
    lan = tuple(name for name in settings.lan if name in there)
    absent = ", ".join(name for name in (*settings.wan, *settings.lan) if name not in there)
    if not wan or bool(lan) != bool(settings.lan):
        return _Wanted(None, waits_for=absent)
    present = replace(settings, wan=wan, lan=lan)
    try:
        plan = attachment.make_plan(ipr, present, attached_to, links)
    except attachment.NoAddressError:
        return _Wanted(None, waits_for=f"an IPv4 address on {' or '.join(wan)}")
    record = attachment.make_record(ipr, plan, found)
    attachment.refuse_foreign(ipr, record)
    return _Wanted(present, record, _difference(found, record, at_start), absent)


def _difference(found: Found, record: Record, at_start: bool) -> str:
    """Why what is found must be replaced to be as the record has it; empty if it need not.

    The version counts at the start alone: if another one has been installed since, `attach` is of
    that, and we would never agree.
    """
    attached = found.attached
    if not found.filters:
        return "nothing was attached"
    if attached is None or (at_start and attached.record.version != record.version):
        return "it was another version"
    if (attached.record.wan, attached.record.lan) != (record.wan, record.lan):
        return "interfaces have changed"
    if attached.record.settings.public != record.settings.public:
        return "addresses have changed"
    if attached.missing:
        lost = [
            f"{each.role} on {registry.interface_name(each.ifindex)}" for each in attached.missing
        ]
        return f"somebody had removed {', '.join(lost)}"
    if attached.record.settings != record.settings:
        return "settings have changed"
    return ""


def _attach(settings: Settings, signals: "_Signals", log: logging.Logger) -> list[str]:
    """Run `attach`; its warnings. Raises MohError with its error, _Stopped if that is asked for
    meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-m", "moh_ebpf", "attach", "--json", "--config", _STDIN],
        cwd=Path(__file__).parent.parent,  # where this very package is found
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # a Ctrl-C is for us to answer
    ) as process:
        stdout, stderr = _finished(process, _toml(settings), signals, log)
    report = _report(stdout)
    if process.returncode:
        # Without a report, it has ended before it could say why: the last line tells the most.
        last = [line.removeprefix("moh-ebpf: ") for line in stderr.splitlines()[-1:]]
        text = report.get("error") or " ".join(last)
        text = text.replace(f"--config {_STDIN}: ", "").replace("\n", " ")
        raise MohError(text[:_LONGEST_ERROR] or f"attach ended with status {process.returncode}")
    return [str(each) for each in report.get("warnings", [])]


def _report(text: str) -> dict[str, Any]:
    """What `attach --json` says; empty if it has said nothing."""
    try:
        report = json.loads(text)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _finished(
    process: "subprocess.Popen[str]", text: str, signals: "_Signals", log: logging.Logger
) -> tuple[str, str]:
    """Its stdout and stderr, when it has ended; the watchdog is fed while it runs. Raises
    _Stopped."""
    given: str | None = text
    for seconds in itertools.count(1):
        try:
            return process.communicate(given, timeout=1.0)
        except subprocess.TimeoutExpired:
            given = None  # that is on its way
            systemd.notify(WATCHDOG=1)
            if signals.stop:
                process.terminate()
                process.communicate()
                raise _Stopped from None
            if seconds == _LONG_ATTACH_SECONDS:
                log.warning("attach takes long; is another moh-ebpf command at work?")
    raise AssertionError


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, MohError | OSError) else repr(error)


def _toml(settings: Settings) -> str:
    """The settings as a config file: JSON's strings, numbers and lists are TOML's, too."""
    return "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
        for name, value in settings.to_json().items()
        if value != []
    )


def _words(settings: Settings) -> str:
    """In a line: where it is attached, and how hold music leaves."""
    lan = f", lan {' '.join(settings.lan)}" if settings.lan else ""
    return f"wan {' '.join(settings.wan)}{lan}, {settings.leaves_as()}"


def _calls(attached: Attached) -> str:
    now = attached.snapshot(forgotten_for=0)
    states = [each.state for each in now.peers]
    blind = "".join(f"; learn sees nothing on {wan.interface}" for wan in now.wans if wan.is_blind)
    return f"{states.count(State.MOH)} on hold, {states.count(State.TWO)} two-way{blind}"


class Lookout:
    """Tells of what comes to run before the programs of `record`, and of what no longer does.
    `due` is by time.monotonic(); nothing is looked at while `record` is None."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._there: dict[earlier.Earlier, str] = {}
        self._told: set[str] = set()
        self._not_before = 0.0
        self.record: Record | None = None
        self.due = time.monotonic()

    def expect_change(self) -> None:
        """Something may have come or gone: look when that has settled."""
        self.due = min(self.due, max(time.monotonic() + _SETTLED_SECONDS, self._not_before))

    def untold(self, warnings: list[str]) -> list[str]:
        """The warnings of attach without those that the log has already. The others are not
        repeated here."""
        self._told.update(warnings)
        return [each for each in warnings if each not in self._there.values()]

    def act(self) -> None:
        """Look, if it is due."""
        begun = time.monotonic()
        if begun < self.due:
            return
        if self.record:
            with suppress(MohError, OSError):  # interfaces that keep changing: the next look
                self._look(self.record)
        took = time.monotonic() - begun
        self._not_before = begun + min(took / _LOOKING_SHARE, _LONGEST_LAG_SECONDS)
        self.due = begun + max(_LOOKOUT_SECONDS, took / _STATUS_SHARE)

    def _look(self, record: Record) -> None:
        with IPRoute() as ipr:
            now = {each: str(each) for each in earlier.found(ipr, record)}
        for each, text in now.items():
            if each not in self._there and text not in self._told:
                self._log.warning("%s", text)
        for each in self._there.keys() - now.keys():
            self._log.info("%s", each.gone)
        self._there, self._told = now, set()


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


@dataclass
class _News:
    """The ifindexes of deleted links, of those whose clsact or ingress qdisc was deleted, and of
    those where a filter was; and whether messages were lost."""

    links: set[int] = field(default_factory=set)
    hooks: set[int] = field(default_factory=set)
    filters: set[int] = field(default_factory=set)
    lost: bool = False

    def add(self, data: bytes) -> None:
        """Take what a datagram's messages say."""
        while len(data) >= _MESSAGE.size + _PARENT.size:
            length, kind, *_ = _MESSAGE.unpack_from(data)
            (ifindex,) = _INDEX.unpack_from(data, _MESSAGE.size)
            (parent,) = _PARENT.unpack_from(data, _MESSAGE.size)
            if kind == _RTM_DELLINK:
                self.links.add(ifindex)
            elif kind == _RTM_DELQDISC and parent == _TC_H_CLSACT:
                self.hooks.add(ifindex)
            elif kind == _RTM_DELTFILTER:
                self.filters.add(ifindex)
            data = data[max(_MESSAGE.size, (length + 3) & ~3) :]


def _drain(changes: socket.socket) -> _News:
    """What was deleted: how soon to look, and whether kept programs can still be trusted. The rest
    is asked anew."""
    news = _News()
    while True:
        try:
            news.add(changes.recv(1 << 16))
        except BlockingIOError:
            return news
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            news.lost = True


class _Stopped(Exception):
    """A signal has asked us to stop."""


class _Signals:
    """What signals have asked for. `wakes` is readable when there is something new."""

    def __init__(self, wakes: socket.socket) -> None:
        self.wakes = wakes
        self.stop = False
        self.keep = False
        self._reload = False

    def received(self, number: int, _frame: object) -> None:
        """The handler: many of a kind are as one."""
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self.stop = True
            self.keep = number == signal.SIGUSR1

    def raise_if_stopped(self) -> None:
        """Raises _Stopped."""
        if self.stop:
            raise _Stopped

    def reload_asked(self) -> bool:
        """Is a reload asked for, since the last call? Raises _Stopped: that goes first."""
        with suppress(BlockingIOError):
            self.wakes.recv(4096)
        self.raise_if_stopped()
        asked, self._reload = self._reload, False
        return asked


@contextmanager
def _signals() -> Iterator[_Signals]:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signals = _Signals(reader)
    handlers = {each: signal.signal(each, signals.received) for each in SERVICE_SIGNALS}
    # Full: then there is something to read, which is all that it is for.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # They have waited since the start of the program (__main__.py).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVICE_SIGNALS)
    try:
        yield signals
    finally:
        signal.set_wakeup_fd(before)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        reader.close()
        writer.close()
