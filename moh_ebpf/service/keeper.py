"""The steps by which what should be attached is attached, and kept so."""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from pyroute2 import IPRoute

from moh_ebpf.attach import attachment
from moh_ebpf.attach.held import Held
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import interfaces
from moh_ebpf.layout import State
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.record import Record
from moh_ebpf.registry.walk import Found
from moh_ebpf.service.changes import News
from moh_ebpf.service.child import run_attach
from moh_ebpf.service.lookout import Lookout
from moh_ebpf.service.pace import LONGEST_LAG_SECONDS, LOOKING_SHARE, SETTLED_SECONDS
from moh_ebpf.service.signals import Signals, Stopped
from moh_ebpf.service.sums import Sums
from moh_ebpf.service.wanted import (
    Wanted,
    find_wanted,
    interfaces_of,
    is_same,
)
from moh_ebpf.settings import Settings

Load = Callable[[], Settings]
# Told of what is about to be attached, which takes seconds.
Expect = Callable[[Settings], None]

# A filter that was removed settles sooner: whoever deletes a clsact may be about to make it anew.
_REMOVED_SECONDS = 0.05
# From one attach to the next; doubled while they follow each other this closely. The longest is
# for what we have attached already, and was removed, or has failed: it may be so for ever.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _CLOSE_SECONDS = 1.0, 60.0, 10.0
# For what is new, an interface or an address: music waits for that.
_LONGEST_PAUSE_FOR_NEWS_SECONDS = 5.0
# From one time that removed filters are put back to the next; doubled as above. It costs little.
_PUT_BACK_PAUSE_SECONDS, _LONGEST_PUT_BACK_PAUSE_SECONDS = 1.0, 5.0


class Keeper:
    """What is to be attached, and the steps there. `due`: when the next one is, by
    time.monotonic(); None while nothing is to be done. `lookout` has what it has attached."""

    def __init__(
        self,
        settings: Settings,
        log: logging.Logger,
        signals: Signals,
        sums: Sums,
        expect: Expect,
    ) -> None:
        self._settings = settings
        self._expect = expect
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
        self.held: Held | None = None
        self._put_back_at = -_LONGEST_PUT_BACK_PAUSE_SECONDS
        self._put_back_pause = _PUT_BACK_PAUSE_SECONDS
        self.lookout = Lookout(log)
        self.attaches = 0  # how often something was attached, or found attached at the start
        self.due: float | None = None

    @property
    def reads_sip(self) -> bool:
        """Do the settings of what is attached say so?"""
        return self._attached is not None and self._attached.settings.signalling

    def close(self) -> None:
        """Let go of the programs that are held open."""
        if self.held:
            self.held.close()
        self.held = None

    def begin(self) -> None:
        """The first step, whose errors are the service's own: MohError, OSError."""
        self.attaches += 1
        if not self._step("attached", at_start=True).has_news:
            self._log.info("what is attached already is right, and stays")

    def reload(self, load: Load) -> None:
        """Take new settings. Where they are wrong or cannot be attached, the old ones stay."""
        before, waited_for = self._settings, self._waits_for
        try:
            self._settings = load()
            self._refuse_unknown_interfaces(before)
            new = interfaces_of(self._settings) - interfaces_of(before)
            wanted = self._step("config reloaded", needed=new)
            if not wanted.settings and interfaces_of(self._settings) != interfaces_of(before):
                raise MohError(f"it would wait for {wanted.waits_for}")
            if not wanted.reason:
                self._log.info("config reloaded: nothing to change")
        except Stopped:
            raise
        except Exception as error:  # whatever a file may do to us, the old settings are good
            self._settings, self._waits_for = before, waited_for
            self.expect_change()
            self._log.error("config not reloaded, the old one stays in force: %s", _text(error))

    def expect_change(self, news: News | None = None) -> None:
        """Something may have to be done, when it has settled; sooner if what was attached was
        removed."""
        now = time.monotonic()
        if now >= self._settled_at:
            self._settled_at = now + SETTLED_SECONDS
        soon = max(now + self._settles_in(news or News()), self._not_before)
        self.due = soon if self.due is None else min(self.due, soon)
        self.lookout.expect_change()

    def _settles_in(self, news: News) -> float:
        if self.held is None:
            return SETTLED_SECONDS
        if news.lost or news.links & self.held.interfaces:
            # Another interface may have the index of one that is gone.
            self.close()
            return SETTLED_SECONDS
        self.held.hooks_are_gone(news.hooks)
        removed = (news.hooks | news.filters) & self.held.interfaces
        return _REMOVED_SECONDS if removed else SETTLED_SECONDS

    def act(self) -> None:
        """The next step, if it is due. What fails is logged, and tried again after a pause."""
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        try:
            self._step("attached", patient=True)
            if self.due is None:
                self._failed = ""
        except Stopped:
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
            with walk.attached_or_error() as attached:
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
    ) -> Wanted:
        """Attach what should be, if it is not; where `patient`, later, if it was just now. WANs
        that cannot be attached to are left out, but not the `needed`.

        Raises MohError, OSError, NetlinkError.
        """
        wanted = self.look(at_start, needed)
        if self._put_back(wanted, patient):
            return wanted
        if patient and time.monotonic() < self._settled_at:
            self.due = max(self._settled_at, self._not_before)
            return wanted
        present = interfaces_of(wanted.settings) if wanted.settings else set()
        self._sums.interfaces_missing = len(interfaces_of(self._settings) - present)
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
            self._expect(wanted.record.settings)
            # With the addresses that were seen: by now there may be others, which are other news.
            warnings = run_attach(wanted.record.settings, self._signals, self._log)
            self._attached = self.lookout.record = wanted.record
            self.attaches += 1
            self._log.info("%s (%s): %s", verb, wanted.reason, _words(wanted.record.settings))
            for warning in self.lookout.untold(warnings):
                self._log.warning("%s", warning)
            with suppress(MohError, OSError):  # it is attached; another look will do
                self.look(False, ())  # holds the new programs open
        return wanted

    def _put_back(self, wanted: Wanted, patient: bool) -> bool:
        """Put back what somebody has removed, if that is all there is to do; where `patient`,
        later, if it was just now. False: it cannot be done."""
        held = self.held
        if not (held and wanted.record and wanted.reason and is_same(held.record, wanted.record)):
            return False
        now = time.monotonic()
        if patient and now < self._put_back_at + self._put_back_pause:
            self.due = self._put_back_at + self._put_back_pause
            return True
        try:
            attachment.put_back(held, self._log.warning)
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

    def look(self, at_start: bool, needed: Collection[str]) -> Wanted:
        begun = time.monotonic()
        try:
            with IPRoute() as ipr, walk.found(ipr) as found:
                if self.held and not self.held.has_all_of(found.filters):
                    self.close()
                wanted = find_wanted(ipr, self._settings, found, at_start, needed)
                if wanted.record and not wanted.reason and found.attached:
                    self._keep(found.attached)
                if wanted.reason and self._is_somebody_else_s(found):
                    return wanted._replace(reason="somebody had attached other settings")
                return wanted
        finally:
            # Where others keep changing a thousand interfaces, looking must not take a core.
            took = time.monotonic() - begun
            self._not_before = begun + min(took / LOOKING_SHARE, LONGEST_LAG_SECONDS)

    def _keep(self, attached: Attached) -> None:
        if self.held:
            self.held.is_whole()
            return
        with suppress(MohError, OSError):  # replaced meanwhile, or no memory: compiled if need be
            self.held = Held(attached)

    def _is_somebody_else_s(self, found: Found) -> bool:
        there = found.attached and found.attached.record
        return bool(there and self._attached and not is_same(there, self._attached))

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
            links = interfaces.links_by_name(ipr)
            for option, names, known in (
                ("--wan", self._settings.wan, before.wan),
                ("--lan", self._settings.lan, before.lan),
            ):
                interfaces.named(ipr, links, option, set(names) - set(known))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, MohError | OSError) else repr(error)


def _words(settings: Settings) -> str:
    """In a line: where it is attached, and how hold music leaves."""
    lan = f", lan {' '.join(settings.lan)}" if settings.lan else ""
    return f"wan {' '.join(settings.wan)}{lan}, {settings.leaves_as()}"


def _calls(attached: Attached) -> str:
    now = attached.snapshot(forgotten_for=0)
    states = [each.state for each in now.peers]
    blind = "".join(f"; learn sees nothing on {wan.interface}" for wan in now.wans if wan.is_blind)
    return f"{states.count(State.MOH)} on hold, {states.count(State.TWO)} two-way{blind}"


def _longest_pause(record: Record, before: Record | None) -> float:
    """Before this is attached, if that was `before`: the same again is somebody's or some fault's
    doing, anything else is news."""
    same = before is not None and is_same(record, before)
    return _LONGEST_PAUSE_SECONDS if same else _LONGEST_PAUSE_FOR_NEWS_SECONDS
