"""What signalling says of endpoints, from sessions; and that strangers cannot ask for much."""

import tracemalloc
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_ebpf.calls import dialogs, sip
from moh_ebpf.calls.dialogs import Dialogs, Parties, Session, SessionChange
from moh_ebpf.calls.events import Key
from moh_ebpf.calls.sdp import Audio
from moh_ebpf.calls.signalled import Board, Said
from moh_ebpf.calls.transport import Transport
from moh_ebpf.kernel.capture import Segment
from moh_ebpf.layout import State
from moh_ebpf.settings import Settings
from tests.support.sip import Dialog, description

UCM, PHONE = IPv4Address("10.10.10.10"), IPv4Address("10.20.0.7")
SETTINGS = Settings(wan=("wan",), ucm=(UCM,))
ONE, OTHER = dialogs.Key(b"one", b"u", b"p"), dialogs.Key(b"other", b"u", b"p")


def endpoint(address: str = "203.0.113.10", port: int = 20000) -> Key:
    return IPv4Address(address).packed, port.to_bytes(2, "big")


def change(
    port: int | None,
    *,
    key: dialogs.Key = ONE,
    ucm: IPv4Address | None = UCM,
    at: str | None = "203.0.113.10",
    far: int = 20000,
) -> SessionChange:
    """UCM's port in a session; None: the session has ended."""
    session = None
    if port is not None:
        provider = IPv4Address(at) if at else None
        session = Session(Audio(ucm, port), Audio(provider, far))
    return SessionChange(key, session, Parties(b"", b""))


@pytest.fixture
def board() -> Board:
    return Board(SETTINGS)


def said(board: Board, at: Key | None = None) -> Said | None:
    """Without the dialog's name."""
    found = board.said(at or endpoint())
    return found and found._replace(dialog=0)


def state(board: Board, at: Key | None = None) -> State | None:
    said = board.said(at or endpoint())
    return said and said.state


def test_a_call_its_hold_and_its_end(board: Board) -> None:
    assert board.hear(change(24576)) == {endpoint()}
    call = (UCM.packed, (24576).to_bytes(2, "big"))
    assert said(board) == Said(State.TWO, 24576, call, b"one", b"", b"")
    board.hear(change(4000))
    assert said(board) == Said(State.MOH, 4000, call, b"one", b"", b"")
    assert board.hear(change(4000)) == {endpoint()}  # said again
    assert board.hear(change(None)) == {endpoint()}
    assert state(board) is None
    assert endpoint() not in board


@pytest.mark.parametrize("port", [4000, 4002, 4005])
def test_phantom_ports(board: Board, port: int) -> None:
    board.hear(change(port))
    assert state(board) is State.MOH


def test_media_of_a_phone_that_is_not_ucm(board: Board) -> None:
    """Its RTP is none of ours; the music of its hold is."""
    board.hear(change(24576, ucm=PHONE))
    assert said(board) == Said(State.TWO, 24576, None, b"one", b"", b"")
    board.hear(change(4000))
    assert state(board) is State.MOH


def test_ucm_names_the_public_address() -> None:
    """Behind static NAT it may; of several addresses of UCM's it is not known which one."""
    public = IPv4Address("198.51.100.2")
    for ucm, address in (((UCM,), UCM), ((UCM, PHONE), None)):
        board = Board(Settings(wan=("wan",), ucm=ucm, public=(public,)))
        board.hear(change(24576, ucm=public))
        found = board.said(endpoint())
        assert found
        source = address and (address.packed, (24576).to_bytes(2, "big"))
        assert found.source == source


def test_where_ucm_or_the_provider_names_nothing(board: Board) -> None:
    """A hold's first step, with c=0.0.0.0: what was said stays."""
    board.hear(change(24576))
    before = said(board)
    board.hear(change(24576, ucm=None))
    board.hear(change(24576, at=None))
    assert said(board) == before
    board.hear(change(4000, at=None))
    assert state(board) is State.MOH
    assert not board.hear(change(24576, key=OTHER, at=None))


def test_a_hold_that_is_not_ucms(board: Board) -> None:
    """Anybody in the LAN may speak SIP; port 4000 of another address is no hold of UCM's."""
    assert not board.hear(change(4000, ucm=PHONE))
    public = IPv4Address("198.51.100.2")
    behind = Board(Settings(wan=("wan",), ucm=(UCM,), public=(public,)))
    behind.hear(change(4000, ucm=public))
    assert state(behind) is State.MOH


@pytest.mark.parametrize("at", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1", "0.1.2.3"])
def test_who_may_not_be_learned(board: Board, at: str) -> None:
    assert not board.hear(change(24576, at=at))


def test_listed_providers() -> None:
    listed = (IPv4Network("203.0.113.0/28"), IPv4Network("192.168.7.0/24"))
    board = Board(Settings(wan=("wan",), ucm=(UCM,), provider=listed))
    for number, at in enumerate(("203.0.113.10", "192.168.7.1", "203.0.113.20")):
        board.hear(change(24576, key=dialogs.Key(b"%d" % number, b"", b""), at=at))
    assert sorted(board) == sorted([endpoint(), endpoint("192.168.7.1")])


def test_two_dialogs_of_one_endpoint(board: Board) -> None:
    board.hear(change(24576))
    board.hear(change(24600, key=OTHER))
    assert state(board) is State.TWO
    assert board.hear(change(4000)) == {endpoint()}
    assert state(board) is None
    assert endpoint() in board
    board.hear(change(None, key=OTHER))
    assert state(board) is State.MOH


def test_an_endpoint_moves_within_a_dialog(board: Board) -> None:
    board.hear(change(24576))
    assert board.hear(change(24576, far=30000)) == {endpoint(), endpoint(port=30000)}
    assert (state(board), state(board, endpoint(port=30000))) == (None, State.TWO)


def test_what_was_said_before(board: Board) -> None:
    """By a reader before this one: until its very dialog is heard of again."""
    board.hear(change(4000))
    before = board.said(endpoint())
    assert before
    adopting = Board(SETTINGS)
    for at in (endpoint(), endpoint(port=7)):  # a fork
        adopting.adopt(at, before)
    assert adopting.said(endpoint()) == before
    for other in (dialogs.Key(b"one", b"u", b"x"), dialogs.Key(b"one", b"p", b"u")):
        assert not adopting.hear(change(None, key=other))
    assert adopting.said(endpoint()) == before
    assert adopting.hear(change(24576)) == {endpoint(), endpoint(port=7)}
    assert (state(adopting), state(adopting, endpoint(port=7))) == (State.TWO, None)
    adopting.adopt(endpoint(port=9), before)
    adopting.forget(endpoint(port=9))
    assert list(adopting) == [endpoint()]


def test_numbers_if_they_are_wanted(board: Board) -> None:
    board.hear(change(24576)._replace(parties=Parties(b"100", b"200")))
    found = board.said(endpoint())
    assert found
    assert (found.caller, found.called) == (b"100", b"200")


class Reading:
    """All that lies between a packet and what is said, but for the kernel."""

    def __init__(self, most: int) -> None:
        self.transport, self.dialogs, self.board = Transport(), Dialogs(most), Board(SETTINGS)

    def hear(self, data: bytes, *, from_ucm: bool) -> None:
        way = (UCM.packed, 5060), (IPv4Address("203.0.113.10").packed, 5060)
        for message in self.transport.messages(Segment(*way, False, data)):
            try:
                changes = self.dialogs.hear(message, from_ucm=from_ucm)
            except ValueError:
                continue
            for each in changes:
                self.board.hear(each)

    def call(self, call_id: str, far: str) -> None:
        dialog = Dialog(call_id)
        self.hear(dialog.ask("INVITE", description("10.10.10.10:24576")), from_ucm=True)
        self.hear(dialog.answer(description(far)), from_ucm=False)
        self.hear(dialog.ask("ACK"), from_ucm=True)


def far(number: int) -> str:
    return f"203.0.113.{number % 250}:{1024 + number // 250}"


def test_five_thousand_calls_fit_into_32_mib() -> None:
    """A fifth of them into a fifth of it."""
    reading = Reading(16384)
    tracemalloc.start()
    for number in range(1000):
        reading.call(f"f3a4b280-1dd1f3f8-{number:x}-a0a0a0a@10.10.10.10", far(number))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(reading.board)) == 1000
    assert held < (32 << 20) / 5


def test_a_hundred_thousand_calls_are_bounded() -> None:
    """The oldest go first, and what they said with them."""
    reading = Reading(500)
    for number in range(100_000 // 20):
        reading.call(f"{number}@ucm", far(number))
        assert len(reading.dialogs) <= 500
    assert len(list(reading.board)) == 500
    assert state(reading.board, _packed(far(4999))) is State.TWO


def _packed(at: str) -> Key:
    address, port = at.split(":")
    return endpoint(address, int(port))


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_hostile_conversations(seed: int, length: int) -> None:
    """Messages of both sides in any order, broken in any way: never an error, and only UCM's word
    says that somebody is on hold."""
    random = Random(seed)
    reading, dialog = Reading(20), Dialog("one@ucm")
    bodies = ["", description("203.0.113.10:20000"), description("203.0.113.10:4000", "sendonly")]
    for _ in range(length):
        dialog.cseq = random.randrange(100, 104)
        method = random.choice(["INVITE", "ACK", "UPDATE", "PRACK", "BYE", "CANCEL", "INFO"])
        body, by_provider = random.choice(bodies), random.random() < 0.5
        if random.random() < 0.5:
            data = dialog.ask(method, body, by_provider=by_provider)
        else:
            status = random.choice([100, 180, 183, 200, 302, 408, 481, 487, 491])
            data = dialog.answer(body, status=status, method=method, by_provider=by_provider)
        at = random.randrange(len(data))
        data = random.choice([data, data, data[:at], data[:at] + random.randbytes(4) + data[at:]])
        # All of it is the provider's; UCM says nothing with a description.
        reading.hear(data, from_ucm=b"m=audio" not in data and random.random() < 0.5)
    assert {each.state for each in map(reading.board.said, reading.board) if each} <= {State.TWO}
    assert len(reading.dialogs) <= 20


def test_a_message_in_no_time() -> None:
    """No text makes the parser look at it again and again."""
    for text in (
        b"INVITE sip:" + b"a" * 60_000,
        b"INVITE sip:x SIP/2.0\r\n" + b"A:" + b" " * 60_000,
        b'INVITE sip:x SIP/2.0\r\nFrom: "' + b'\\"' * 30_000,
        b"INVITE sip:x SIP/2.0\r\n" + b"\r\n " * 20_000,
        b"\n" * 60_000 + b"INVITE",
        b"INVITE sip:x SIP/2.0\r\nFrom: " + b";tag=" * 12_000 + b"\r\n\r\n",
    ):
        stream = sip.Stream()
        for at in range(0, len(text), 1460):
            list(stream.feed(text[at : at + 1460]))
        with pytest.raises(sip.Malformed):
            sip.parse(text)
