"""The service's pace, by a clock of the test's own, and its log, which waits for nobody."""

import fcntl
import logging
import os
import sys
import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from moh_ebpf.attach import attachment
from moh_ebpf.errors import MohError
from moh_ebpf.registry.record import Place, Record
from moh_ebpf.service import keeper, systemd
from moh_ebpf.service.changes import News
from moh_ebpf.service.keeper import Keeper
from moh_ebpf.service.signals import Signals
from moh_ebpf.service.sums import Sums
from moh_ebpf.service.wanted import Wanted
from moh_ebpf.settings import Settings

SETTINGS = Settings(wan=("ppp0",), ucm=(IPv4Address("10.10.10.10"),))
RECORD = Record(SETTINGS, "1", wan=(7,), lan=(), clsact=(7,))


class Run:
    """A service whose kernel is this: what it would find, and what it has attached and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.wanted = Wanted(SETTINGS, RECORD, "somebody had removed learn on ppp0")
        self.attached: list[float] = []
        self.fails = False
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(keeper, "run_attach", self._attach)
        # No signal comes: the attach that would look for one is ours.
        signals: Signals = None  # type: ignore[assignment]
        self.service = Keeper(
            SETTINGS, logging.getLogger("test"), signals, Sums(), lambda settings: None
        )
        monkeypatch.setattr(self.service, "look", lambda at_start, needed: self.wanted)

    def _attach(self, *_: object) -> list[str]:
        self.attached.append(self.now)
        if self.fails:
            raise MohError("no memory")
        return []

    def change(self, news: News | None = None) -> float:
        """Something changes, and is acted upon until nothing is due; how long that took."""
        begun, times = self.now, len(self.attached)
        self.service.expect_change(news)
        while self.service.due is not None and len(self.attached) == times:
            self.now = max(self.now, self.service.due)
            self.service.act()
        return self.now - begun


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_what_is_removed_again_comes_back_ever_later(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    waits = [run.change() for _ in range(10)]
    assert waits[0] < 1
    assert waits == sorted(waits)
    assert waits[-1] == 60
    assert "again and again; attaching in 8 s" in caplog.text
    run.now += 100
    assert run.change() < 1


@pytest.fixture
def removed(run: Run, monkeypatch: pytest.MonkeyPatch) -> News:
    """The service holds the programs of RECORD, and puts back what is removed of them."""

    def put_back(*_: object) -> list[Place]:
        if run.fails:
            raise MohError("no memory")
        run.attached.append(run.now)
        return []

    monkeypatch.setattr(attachment, "put_back", put_back)
    monkeypatch.setattr(run.service, "held", Held())
    return News(filters={7})


class Held:
    """What the service asks of held programs."""

    record = RECORD
    interfaces = frozenset({7})
    closed = False

    def hooks_are_gone(self, ifindexes: set[int]) -> None:
        assert not ifindexes

    def close(self) -> None:
        self.closed = True


def test_what_is_put_back_is_so_at_once_and_never_seldom(run: Run, removed: News) -> None:
    waits = [run.change(removed) for _ in range(10)]
    assert waits[0] < 0.1
    assert 0.9 < waits[1] < 1.1
    assert waits == sorted(waits)
    assert waits[-1] <= 5
    for _ in range(10):
        run.now += 10
        assert run.change(removed) < 0.1


def test_a_change_that_removes_nothing_of_ours_has_time_to_settle(run: Run, removed: News) -> None:
    assert 0.1 < run.change(replace(removed, filters={8})) < 1


def test_what_cannot_be_put_back_is_attached_when_it_has_settled(
    run: Run, removed: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached: list[float] = []

    def attach(*_: object) -> list[str]:
        attached.append(run.now)
        return []

    monkeypatch.setattr(keeper, "run_attach", attach)
    run.fails = True
    begun = run.now
    run.service.expect_change(removed)
    while run.service.due is not None and not attached:
        run.now = run.service.due
        run.service.act()
    assert [each - begun for each in attached] == [pytest.approx(0.2)]


@pytest.mark.parametrize("news", [News(links={7}), News(lost=True)])
def test_programs_of_an_interface_that_went_are_let_go_of(
    run: Run, removed: News, monkeypatch: pytest.MonkeyPatch, news: News
) -> None:
    """Another may have its index by now. If messages were lost, that may have happened."""
    held = run.service.held
    assert isinstance(held, Held)
    run.service.expect_change(News(links={8}))
    assert not held.closed
    run.service.expect_change(news)
    assert held.closed
    assert run.service.held is None


def test_other_settings_are_not_put_back(run: Run, removed: News) -> None:
    run.wanted = run.wanted._replace(record=replace(RECORD, wan=(8,)))
    assert run.change(removed) >= 0.2


def test_news_wait_five_seconds_at_most(run: Run) -> None:
    """An interface that comes and goes, also while somebody else removes what we attach."""
    for index in range(10):
        run.wanted = run.wanted._replace(record=replace(RECORD, wan=(index,)))
        assert run.change() <= 5
    for _ in range(10):
        run.change()
    run.wanted = run.wanted._replace(record=replace(RECORD, wan=(99,)))
    assert run.change() <= 5


def test_a_change_is_looked_at_while_a_repair_waits(run: Run) -> None:
    for _ in range(10):
        run.change()
    run.service.expect_change()
    run.now = run.service.due or 0.0
    run.service.act()
    assert (run.service.due or 0) - run.now > 50
    run.wanted = Wanted(None, waits_for="ppp0")
    assert run.change() < 1
    assert "waiting for ppp0" in run.service.status()


def test_what_fails_is_told_once_and_tried_again(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.fails = True
    for _ in range(5):
        run.change()
    assert caplog.text.count("no memory") == 1
    run.fails = False
    run.change()
    run.fails = True
    run.change()
    assert caplog.text.count("no memory") == 2


def test_log_waits_for_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe: lines are lost, their number is told at their place, the others stay whole."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb") as end, os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(systemd, "_MOST_LINES", 20)
        with systemd.logger("test-log") as log:
            logged = 1000
            for number in range(logged):
                log.info("%s %04d", "x" * 1000, number)
            written = ""
            while "end" not in written:
                log.info("end")
                logged += 1
                written += os.read(reader, 4096).decode()
        stream.close()
        lines = (written + end.read().decode()).splitlines()
    expected = 0
    for line in lines:
        last = line.split()[-1]
        if "nobody read them" in line:
            expected += int(last)
            continue
        assert line == f"moh-ebpf: {'x' * 1000} {expected:04d}" or expected >= 1000, line
        expected += 1
    assert expected == logged


def test_log_minds_no_reader_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with systemd.logger("test-log") as log:
            log.info("nobody")
