"""A list from the kernel is whole, or it is asked for again."""

from collections.abc import Iterator

import pytest
from pyroute2 import NetlinkDumpInterrupted

from moh_ebpf import netlink
from moh_ebpf.errors import MohError


def test_asked_again_after_a_change() -> None:
    answers = iter([interrupted, lambda: iter([1, 2])])
    assert netlink.whole(lambda: next(answers)()) == [1, 2]


def interrupted() -> Iterator[int]:
    yield 1
    raise NetlinkDumpInterrupted


def test_changes_that_do_not_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "_PATIENCE_SECONDS", 0.01)
    with pytest.raises(MohError, match="keep changing"):
        netlink.whole(interrupted)
