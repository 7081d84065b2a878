"""A lab lives as long as what is done in it; whatever ends that, nothing of the lab is left."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from moh_ebpf.errors import ExitStatus, MohError
from moh_ebpf.lab.topology import SIGNALS, Lab, LabExistsError, require

T = TypeVar("T")


def within(lab: Lab, act: Callable[[], T], keep: bool = False) -> T:
    """Build the lab, act in it, and destroy it, whatever happens in between.

    keep: destroy it only if something fails. A function, not a context manager: from a
    try statement's body no signal gets away, between a with statement and its manager one can.
    """
    require()
    if lab.exists:
        raise LabExistsError(lab.name)
    spare = False
    handlers = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        try:
            lab.build()
            result = act()
            spare = keep
        except LabExistsError:  # another process was faster
            spare = True
            raise
        finally:
            _ignore_signals()
    except _Interrupted as stopped:
        handlers.update(dict.fromkeys(SIGNALS, signal.SIG_IGN))  # until the process has ended
        raise _interrupted(stopped) from None
    finally:
        if not spare:
            lab.destroy()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return result


class _Interrupted(BaseException):
    """A signal arrived; no Exception, lest someone handles it on its way."""


def _stop(number: int, _frame: FrameType | None) -> None:
    """The first signal ends the act; more of them must not end the clean-up."""
    _ignore_signals()
    raise _Interrupted(signal.Signals(number).name)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, _overhear)


def _overhear(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN: with that, Python complains of a signal that was already on its way."""


def _interrupted(stopped: _Interrupted) -> MohError:
    error = MohError(f"stopped by {stopped}; the lab is gone")
    error.status = ExitStatus.INTERRUPTED
    return error
