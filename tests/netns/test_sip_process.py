"""The process that reads SIP, as `run` keeps it: it may end, hang, or be too slow to be told."""

import logging
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from moh_ebpf.service import sip_process
from moh_ebpf.service.sip_process import SipProcess
from moh_ebpf.service.sums import Sums
from tests.support.firewall import Firewall
from tests.support.waiting import until


class Run:
    """What `run` does with it, step by step."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector, self.sums = selector, Sums()
        self.sip = SipProcess(logging.getLogger("moh-ebpf-test"), selector, self.sums)

    def step(self) -> None:
        self.sip.act({key.fileobj for key, _ in self._selector.select(0.05)})

    def until(self, what: str, probe: Callable[[], object]) -> None:
        def stepped() -> object:
            self.step()
            return probe()

        until(what, stepped)

    @property
    def pid(self) -> int:
        assert self.sip.pid
        return self.sip.pid

    def reads_again(self, before: int) -> None:
        self.until("another one reads", lambda: self.sums.reads_sip and self.pid != before)


@pytest.fixture
def run(fw: Firewall, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(sip_process, "_ASK_SECONDS", 0.2)
    monkeypatch.setattr(sip_process, "_FIRST_PAUSE_SECONDS", 0.1)
    with fw.namespace.entered(), selectors.DefaultSelector() as selector:
        made = Run(selector)
        with closing(made.sip):
            made.sip.attached(reads=True)
            made.until("it reads", lambda: made.sums.reads_sip)
            yield made


def test_one_that_hangs_is_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = run.pid
    os.kill(hung, signal.SIGSTOP)
    monkeypatch.setattr(sip_process, "_ANSWER_SECONDS", 0.5)
    run.until("it is given up", lambda: not run.sums.reads_sip)
    monkeypatch.setattr(sip_process, "_ANSWER_SECONDS", 30.0)
    run.reads_again(hung)


def test_one_that_answers_stays(run: Run) -> None:
    """Whether it has read anything or not."""
    first, answers = run.pid, 0
    for _ in range(3):
        run.until("it is asked", lambda: run.sip.is_asked)
        run.until("it answers", lambda: not run.sip.is_asked)
        answers += 1
    assert (run.pid, answers) == (first, 3)


def test_one_that_has_ended_before_it_is_told(run: Run) -> None:
    """Of an attach, which takes seconds: its end is noticed afterwards."""
    dead = run.pid
    os.kill(dead, signal.SIGKILL)
    os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
    run.sip.attached(reads=True)
    run.reads_again(dead)


def test_it_ends_when_it_is_not_wanted(run: Run) -> None:
    pid = run.pid
    run.sip.attached(reads=False)
    assert (run.sip.pid, run.sums.reads_sip) == (None, None)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
