"""A list from the kernel is whole, or it is asked for again."""

import errno
from collections.abc import Iterator

import pytest
from pyroute2 import NetlinkDumpInterrupted, NetlinkError

from moh_ebpf.errors import MohError
from moh_ebpf.kernel import netlink


def test_asked_again_after_a_change() -> None:
    """Of which pyroute2 tells by an exception or by a flag."""
    answers = iter([interrupted, lambda: iter([message(), message(0x12)]), lambda: [message()]])
    assert netlink.whole(lambda: next(answers)()) == [message()]
    assert next(answers, None) is None


def message(flags: int = 2) -> dict[str, dict[str, int]]:
    return {"header": {"flags": flags}}


def interrupted() -> Iterator[object]:
    yield message()
    raise NetlinkDumpInterrupted


def test_the_kernels_errors_are_oserrors() -> None:
    def refused() -> Iterator[object]:
        raise NetlinkError(errno.ENODEV)

    with pytest.raises(OSError, match="No such device") as raised:
        netlink.whole(refused)
    assert raised.value.errno == errno.ENODEV


def test_changes_that_do_not_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_PATIENCE_SECONDS", 0.01)
    with pytest.raises(MohError, match="keep changing"):
        netlink.whole(interrupted)
