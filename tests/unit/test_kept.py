"""Packets that are kept until an attach says whose they are: few, and not for long."""

import time

import pytest

from moh_ebpf.kernel.capture import Segment
from moh_ebpf.service import kept
from moh_ebpf.service.kept import Kept


def segment(data: bytes) -> Segment:
    return Segment((b"\xcb\0\x71\x0a", 5060), (b"\xc6\x33\x64\x02", 5060), False, data)


def test_they_are_taken_once_in_their_order() -> None:
    packets = Kept()
    for data in (b"INVITE", b"BYE"):
        packets.put(segment(data))
    assert [each.data for each in packets.take()] == [b"INVITE", b"BYE"]
    assert packets.take() == []


@pytest.mark.parametrize("data", [b"x", 60_000 * b"x"])
def test_the_oldest_make_room(data: bytes) -> None:
    packets = Kept()
    for _ in range(2 * kept.MOST):
        packets.put(segment(data))
    packets.put(segment(b"last"))
    taken = packets.take()
    assert taken[-1].data == b"last"
    assert len(taken) <= kept.MOST
    assert sum(len(each.data) for each in taken) <= kept.MOST_BYTES
    packets.put(segment(b"next"))
    assert [each.data for each in packets.take()] == [b"next"]


def test_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    packets = Kept()
    for after, data in ((0.0, b"first"), (1.0, b"second")):
        monkeypatch.setattr(time, "monotonic", lambda after=after: now + after)
        packets.put(segment(data))
    monkeypatch.setattr(time, "monotonic", lambda: now + kept.SECONDS + 0.5)
    assert [each.data for each in packets.take()] == [b"second"]
