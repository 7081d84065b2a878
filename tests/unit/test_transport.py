"""SIP from packets: what is taken, what is left out and counted, and that it is bounded."""

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_ebpf.calls import sip, transport
from moh_ebpf.calls.sip import Message
from moh_ebpf.calls.transport import Transport
from moh_ebpf.kernel.capture import Segment
from tests.support.sip import Dialog, description

UCM, PROVIDER = (b"\x0a\x0a\x0a\x0a", 5060), (b"\xcb\0\x71\x0a", 5060)
INVITE = Dialog().ask("INVITE", description("10.10.10.10:24576"))


def datagram(data: bytes) -> Segment:
    return Segment(UCM, PROVIDER, False, data)


def segments(data: bytes, size: int = 100, *, port: int = 5060) -> list[Segment]:
    """A connection that says this, from its first segment on."""
    way = (UCM[0], port), PROVIDER
    first = Segment(*way, True, b"", 0xFFFFFF00, begins=True)
    return [first] + [
        Segment(*way, True, data[at : at + size], (0xFFFFFF01 + at) % 2**32)
        for at in range(0, len(data), size)
    ]


def heard(of: Transport, given: Iterable[Segment]) -> list[Message]:
    return [message for each in given for message in of.messages(each)]


def test_datagrams() -> None:
    of = Transport()
    found = heard(of, map(datagram, (INVITE, b"\r\n\r\n", b"\0", b"", INVITE[:200], b"rubbish")))
    assert [each.method for each in found] == ["INVITE"]
    assert of.counts == {"read": 1, "malformed": 2}


@pytest.mark.parametrize("size", [1, 7, 100, 1460, 100_000])
def test_a_connection(size: int) -> None:
    of = Transport()
    assert len(heard(of, segments(b"\r\n\r\n" + INVITE * 3, size))) == 3
    assert of.counts["malformed"] == 0


def test_segments_out_of_order_and_twice() -> None:
    first, *rest = segments(INVITE * 3)
    of = Transport()
    assert len(heard(of, [first, *reversed(rest), *rest])) == 3


def test_a_lost_segment_costs_its_message_alone() -> None:
    parts = segments(INVITE * 300)
    del parts[5]
    of = Transport()
    assert len(heard(of, parts)) == 299
    assert of.counts["segments_missing"] == 1


def test_a_connection_joined_in_its_middle() -> None:
    of = Transport()
    assert len(heard(of, segments(INVITE * 3)[3:])) == 2


def test_an_end_forgets_it() -> None:
    of = Transport()
    first, *rest = segments(INVITE)
    heard(of, [first, rest[0]])
    heard(of, [rest[1]._replace(ends=True)])
    assert of.connections == 0


def test_many_connections_that_say_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """From many strangers, each with a message that does not end: the oldest are dropped."""
    monkeypatch.setattr(transport, "_MOST_BYTES", 1 << 20)
    of = Transport()
    endless = b"INVITE sip:x@y SIP/2.0\r\n" + b"X: " + b"x" * 30_000
    tracemalloc.start()
    for port in range(300):
        heard(of, segments(endless, 1460, port=port))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 << 20
    assert of.connections < 60
    assert of.counts["connections_dropped"] > 240
    assert len(heard(of, segments(INVITE, port=9999))) == 1


def test_what_says_nothing_of_a_dialog_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip, "parse", lambda data: pytest.fail("it is parsed"))
    of = Transport()
    trying = Segment(PROVIDER, UCM, False, b"SIP/2.0 100 Trying\r\nVia: x\r\n\r\n")
    assert heard(of, [trying]) == []
    assert of.counts == {"read": 1}


def test_many_connections_that_say_nothing() -> None:
    of = Transport()
    for port in range(1, 20_000):
        heard(of, segments(b"x", port=port))
    assert of.connections <= 4096


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=80)), max_size=20))
def test_rubbish_in_segments(parts: list[tuple[int, bytes]]) -> None:
    heard(Transport(), (Segment(UCM, PROVIDER, True, data, at) for at, data in parts))
