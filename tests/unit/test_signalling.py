"""What SIP says of calls, from texts to changes."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_ebpf.calls import sdp, sip
from moh_ebpf.calls.dialogs import Dialogs, SessionChange
from moh_ebpf.calls.sdp import Audio
from moh_ebpf.calls.sip import Malformed, Message, Stream

UCM, PROVIDER = "10.10.10.10", "203.0.113.5"


def description(address: str, port: int, direction: str = "", *more: str) -> str:
    head = ["v=0", f"o=- 1 1 IN IP4 {address}", "s=-", f"c=IN IP4 {address}", "t=0 0"]
    audio = [f"m=audio {port} RTP/AVP 0 101", *([f"a={direction}"] if direction else [])]
    lines = [*head, *audio, *more]
    return "\r\n".join([*lines, ""])


def text(
    first: str,
    cseq: str,
    *,
    caller: str = "ucm",
    called: str = "",
    call_id: str = "call@ucm",
    body: str = "",
    more: tuple[str, ...] = (),
) -> bytes:
    head = [first, f"Via: SIP/2.0/UDP {UCM}:5060;branch=z9hG4bK-{cseq.replace(' ', '')}",
            f"From: <sip:1@a>;tag={caller}", f"To: <sip:2@b>{f';tag={called}' if called else ''}",
            f"Call-ID: {call_id}", f"CSeq: {cseq}", *more]  # fmt: skip
    if body:
        head.append("Content-Type: application/sdp")
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode()


class Call:
    """A call of UCM's, or with `by_provider` one that the provider makes; told to Dialogs."""

    def __init__(self, *, by_provider: bool = False) -> None:
        self.dialogs = Dialogs()
        self.by_provider = by_provider
        self.state: dict[bytes, int | None] = {}
        self.changes: list[SessionChange] = []

    def _say(self, data: bytes, from_ucm: bool) -> None:
        for change in self.dialogs.hear(sip.parse(data), from_ucm=from_ucm):
            self.changes.append(change)
            self.state[change.key.provider_tag] = change.session and change.session.ucm.port

    def ask(self, cseq: str, body: str = "", *, called: str = "", ucm: bool | None = None,
            more: tuple[str, ...] = ()) -> None:  # fmt: skip
        """A request, by who has made the call unless told otherwise."""
        by_ucm = (not self.by_provider) if ucm is None else ucm
        tags = ("maker", called) if by_ucm != self.by_provider else (called, "maker")
        method = cseq.split()[1]
        self._say(text(f"{method} sip:x@y SIP/2.0", cseq, caller=tags[0], called=tags[1], body=body,
                       more=more), by_ucm)  # fmt: skip

    def answer(self, status: int, cseq: str, body: str = "", *, called: str = "far",
               ucm: bool | None = None, more: tuple[str, ...] = ()) -> None:  # fmt: skip
        """A response to a request of whom `ask` would be by."""
        by_ucm = (not self.by_provider) if ucm is None else ucm
        tags = ("maker", called) if by_ucm != self.by_provider else (called, "maker")
        self._say(text(f"SIP/2.0 {status} X", cseq, caller=tags[0], called=tags[1], body=body,
                       more=more), not by_ucm)  # fmt: skip

    @property
    def port(self) -> int | None:
        """UCM's, in the one dialog that there is."""
        (port,) = self.state.values() or [None]
        return port


def up(port: int = 24576) -> Call:
    """A call of UCM's that is taken."""
    call = Call()
    call.ask("101 INVITE", description(UCM, port))
    assert call.changes == []
    call.answer(180, "101 INVITE")
    call.answer(200, "101 INVITE", description(PROVIDER, 20000))
    call.ask("101 ACK", called="far")
    assert call.port == port
    return call


def test_a_call() -> None:
    call = up()
    (change,) = call.changes
    assert change.session
    assert change.session.provider == Audio(IPv4Address(PROVIDER), 20000)
    call.ask("102 BYE", called="far", ucm=False)
    assert call.port is None
    assert len(call.dialogs) == 0


def test_an_answer_that_is_heard_after_the_end() -> None:
    """By an interface whose packets were kept until it was attached to."""
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.ask("101 ACK", called="far")
    call.ask("102 BYE", called="far")
    call.answer(200, "101 INVITE", description(PROVIDER, 20000))
    assert call.port is None
    assert len(call.dialogs) == 0


def test_a_call_of_the_providers() -> None:
    call = Call(by_provider=True)
    call.ask("1 INVITE", description(PROVIDER, 20000))
    call.answer(200, "1 INVITE", description(UCM, 24576))
    (change,) = call.changes
    assert change.session
    assert (change.key.provider_tag, change.key.ucm_tag) == (b"maker", b"far")
    assert (change.session.ucm.port, change.session.provider.port) == (24576, 20000)


def test_a_hold_and_its_end_by_delayed_offers() -> None:
    """As UCM does it: the offer is in the response, the answer in the ACK."""
    call = up()
    call.ask("102 INVITE", description(UCM, 24576, "inactive"), called="far")
    call.answer(200, "102 INVITE", description(PROVIDER, 20000, "inactive"))
    call.ask("102 ACK", called="far")
    call.ask("103 INVITE", called="far")
    call.answer(200, "103 INVITE", description(PROVIDER, 20000))
    assert call.port == 24576
    call.ask("103 ACK", description(UCM, 4000, "sendonly"), called="far")
    assert call.port == 4000
    call.ask("104 INVITE", description(UCM, 24600), called="far")
    call.answer(200, "104 INVITE", description(PROVIDER, 20000))
    assert call.port == 24600


def test_a_hold_by_update() -> None:
    call = up()
    call.ask("102 UPDATE", description(UCM, 4000, "sendonly"), called="far")
    assert call.port == 24576
    call.answer(200, "102 UPDATE", description(PROVIDER, 20000, "recvonly"))
    assert call.port == 4000


@pytest.mark.parametrize("status", [488, 491, 408, 503])
def test_a_hold_that_is_refused_leaves_what_was(status: int) -> None:
    call = up()
    call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
    call.answer(status, "102 INVITE")
    call.ask("102 ACK", called="far")
    assert call.port == 24576
    call.answer(200, "102 INVITE", description(PROVIDER, 20000))
    assert call.port == 24576


def test_what_a_provisional_answer_has_changed_is_taken_back() -> None:
    call = up()
    call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
    call.answer(183, "102 INVITE", description(PROVIDER, 20000))
    assert call.port == 4000
    call.answer(488, "102 INVITE")
    assert call.port == 24576


def test_early_media_and_a_call_that_is_not_taken() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000))
    assert call.port == 24576
    call.ask("101 CANCEL")
    call.answer(487, "101 INVITE")
    assert call.port is None
    assert len(call.dialogs) == 0


def test_a_fork_has_two_calls_until_one_is_taken() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000), called="one")
    call.answer(183, "101 INVITE", description(PROVIDER, 30000), called="two")
    assert call.state == {b"one": 24576, b"two": 24576}
    call.answer(200, "101 INVITE", description(PROVIDER, 30000), called="two")
    assert call.state == {b"one": None, b"two": 24576}
    call.answer(200, "101 INVITE", description(PROVIDER, 20000), called="one")
    assert call.state == {b"one": 24576, b"two": 24576}  # both have taken it
    call.ask("102 BYE", called="two")
    assert call.state == {b"one": 24576, b"two": None}


def test_a_call_that_is_taken_elsewhere_than_its_announcement_came_from() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000))
    call.answer(200, "101 INVITE", description(PROVIDER, 30000))
    sessions = [each.session for each in call.changes]
    assert [each and each.provider.port for each in sessions] == [20000, 30000]
    call.answer(200, "101 INVITE", description(PROVIDER, 30000))  # once more
    assert len(call.changes) == 2


def test_what_is_heard_once_more_changes_nothing() -> None:
    call = up()
    for _ in range(2):
        call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
        call.answer(200, "102 INVITE", description(PROVIDER, 20000, "recvonly"))
        call.ask("102 ACK", called="far")
        call.ask("101 ACK", called="far")
        call.answer(200, "101 INVITE", description(PROVIDER, 20000))
        assert call.port == 4000


def test_a_dialog_that_is_not_there_any_more() -> None:
    call = up()
    call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
    call.answer(481, "102 INVITE")
    assert call.port is None


def test_a_reliable_response_offers_and_prack_answers() -> None:
    call = Call()
    call.ask("101 INVITE")
    call.answer(183, "101 INVITE", description(PROVIDER, 20000), more=("RSeq: 7",))
    assert call.changes == []
    call.ask("102 PRACK", description(UCM, 24576), called="far", more=("RAck: 7 101 INVITE",))
    assert call.port == 24576
    call.answer(200, "102 PRACK")
    call.ask("103 PRACK", description(UCM, 24600), called="far", more=("RAck: 8 101 INVITE",))
    assert call.port == 24576
    call.answer(200, "103 PRACK", description(PROVIDER, 20002))
    assert call.port == 24600
    call.answer(200, "101 INVITE")
    call.ask("101 ACK", called="far")
    assert call.port == 24600


def test_an_unreliable_response_offers_nothing() -> None:
    call = Call()
    call.ask("101 INVITE")
    call.answer(183, "101 INVITE", description(PROVIDER, 20000))
    call.answer(200, "101 INVITE", description(PROVIDER, 20002))
    call.ask("101 ACK", description(UCM, 24576), called="far")
    (change,) = call.changes
    assert change.session
    assert change.session.provider.port == 20002


def test_both_ask_at_once() -> None:
    call = up()
    call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
    call.ask("102 INVITE", description(PROVIDER, 20002), called="far", ucm=False)
    call.answer(491, "102 INVITE", ucm=False)
    assert call.port == 24576
    call.answer(200, "102 INVITE", description(PROVIDER, 20000))
    assert call.port == 4000


def test_messages_that_come_twice_change_nothing() -> None:
    call = up()
    for _ in range(2):
        call.ask("102 INVITE", description(UCM, 4000, "sendonly"), called="far")
    for _ in range(3):
        call.answer(200, "102 INVITE", description(PROVIDER, 20000))
        call.ask("102 ACK", called="far")
    assert (call.port, len(call.changes)) == (4000, 2)


def test_an_ack_that_names_what_it_is_for() -> None:
    """In its CSeq, where ACK should stand: SIPp's scenarios do, and some phones."""
    message = sip.parse(text("ACK sip:x@y SIP/2.0", "101 INVITE", called="far"))
    assert (message.method, message.cseq) == ("ACK", 101)
    with pytest.raises(Malformed):
        sip.parse(text("BYE sip:x@y SIP/2.0", "101 INVITE", called="far"))


def test_a_dialog_joined_in_its_middle() -> None:
    """By its next offer and answer; half of them say nothing."""
    call = Call()
    call.answer(200, "101 INVITE", description(PROVIDER, 20000))
    call.ask("101 ACK", called="far")
    assert call.changes == []
    call.ask("102 INVITE", description(UCM, 4000), called="far")
    assert call.changes == []
    call.answer(200, "102 INVITE", description(PROVIDER, 20000))
    assert call.port == 4000


def test_a_proxy_that_tries_elsewhere() -> None:
    """By the same request: one gateway fails, the next one answers."""
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(503, "101 INVITE", called="one")
    call.answer(200, "101 INVITE", description(PROVIDER, 20000), called="two")
    assert call.state == {b"two": 24576}
    call.answer(487, "101 INVITE", called="one")  # of a branch that the proxy has cancelled
    assert call.state == {b"two": 24576}


def test_a_failure_that_names_no_dialog_ends_the_early_ones() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000))
    call.answer(487, "101 INVITE", called="")
    assert call.state == {b"far": None}
    call.ask("102 INVITE", description(UCM, 24576))
    call.answer(407, "101 INVITE", called="")
    call.answer(200, "102 INVITE", description(PROVIDER, 20000), called="new")
    assert call.state == {b"far": None, b"new": 24576}


def test_an_early_dialog_with_prack_and_update_is_early_still() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000), called="one", more=("RSeq: 1",))
    call.ask("102 PRACK", called="one", more=("RAck: 1 101 INVITE",))
    call.answer(200, "102 PRACK", called="one")
    call.ask("103 UPDATE", description(UCM, 24600), called="one")
    call.answer(200, "103 UPDATE", description(PROVIDER, 20000), called="one")
    assert call.port == 24600
    call.answer(200, "101 INVITE", description(PROVIDER, 20000), called="two")
    assert call.state == {b"one": None, b"two": 24576}
    call.answer(183, "101 INVITE", description(PROVIDER, 20000), called="one")
    assert call.state == {b"one": None, b"two": 24576}


def test_what_is_over_does_not_come_back() -> None:
    call = up()
    call.ask("102 BYE", called="far")
    call.answer(200, "101 INVITE", description(PROVIDER, 20000))
    assert call.port is None
    assert len(call.dialogs) == 0


@pytest.mark.parametrize("method", ["CANCEL", "PRACK", "NOTIFY", "INFO"])
def test_what_comes_too_late_ends_no_dialog(method: str) -> None:
    call = up()
    call.answer(481, f"102 {method}")
    assert call.port == 24576


def test_an_answer_that_is_repeated_takes_no_update_back() -> None:
    call = Call()
    call.ask("101 INVITE", description(UCM, 24576))
    call.answer(183, "101 INVITE", description(PROVIDER, 20000), more=("RSeq: 1",))
    call.ask("102 UPDATE", description(UCM, 4000), called="far")
    call.answer(200, "102 UPDATE", description(PROVIDER, 20000))
    assert call.port == 4000
    call.answer(200, "101 INVITE", description(PROVIDER, 20000))
    assert call.port == 4000


def test_an_old_transaction_changes_nothing() -> None:
    """Its failure, its answer, and all of it once more."""
    call = up()
    call.ask("102 INVITE", description(UCM, 24600), called="far")
    call.ask("103 INVITE", description(UCM, 4000), called="far")
    call.answer(200, "103 INVITE", description(PROVIDER, 20000))
    call.answer(408, "102 INVITE")
    assert call.port == 4000
    call.ask("102 INVITE", description(UCM, 24600), called="far")
    call.answer(200, "102 INVITE", description(PROVIDER, 20000))
    assert call.port == 4000


@pytest.mark.parametrize("status", [183, 200])
def test_the_first_copy_of_a_message_counts(status: int) -> None:
    """A proxy has it pass again, with other addresses."""
    call = up()
    call.ask("102 INVITE", description(UCM, 24600), called="far")
    call.ask("102 INVITE", description("198.51.100.2", 24600), called="far")
    call.answer(status, "102 INVITE", description(PROVIDER, 20000))
    call.answer(status, "102 INVITE", description("198.51.100.9", 30000))
    (*_, change) = call.changes
    assert change.session
    addresses = change.session.ucm.address, change.session.provider.address
    assert addresses == (IPv4Address(UCM), IPv4Address(PROVIDER))


def test_the_medium_that_both_have_taken() -> None:
    call = Call(by_provider=True)
    two = description(PROVIDER, 20000) + "m=audio 20002 RTP/AVP 0\r\n"
    call.ask("1 INVITE", two)
    call.answer(200, "1 INVITE", description(UCM, 0) + "m=audio 24576 RTP/AVP 0\r\n")
    (change,) = call.changes
    assert change.session
    assert (change.session.ucm.port, change.session.provider.port) == (24576, 20002)


def test_strangers_push_out_no_call() -> None:
    """Dialogs without a session, and invitations, of whoever likes."""
    dialogs = Dialogs(most=10)
    offer = text("INVITE sip:x@y SIP/2.0", "1 INVITE", body=description(UCM, 24576))
    answer = text("SIP/2.0 200 OK", "1 INVITE", called="far", body=description(PROVIDER, 20000))
    dialogs.hear(sip.parse(offer), from_ucm=True)
    for number in range(100):
        for called in ("", "x"):
            stranger = text("INVITE sip:x@y SIP/2.0", "7 INVITE", call_id=f"{number}@there",
                            called=called, body=description(PROVIDER, 20000))  # fmt: skip
            dialogs.hear(sip.parse(stranger), from_ucm=False)
    assert dialogs.hear(sip.parse(answer), from_ucm=False)
    for number in range(100):
        stranger = text("INVITE sip:x@y SIP/2.0", "7 INVITE", call_id=f"{number}@there", called="x")
        dialogs.hear(sip.parse(stranger), from_ucm=False)
    assert len(dialogs) == 10 + 1
    bye = text("BYE sip:x@y SIP/2.0", "2 BYE", called="far")
    (change,) = dialogs.hear(sip.parse(bye), from_ucm=True)
    assert change.session is None
    assert len(dialogs) == 10


def test_so_many_calls_and_no_more() -> None:
    dialogs = Dialogs(most=10)
    for number in range(1000):
        call_id = f"{number}@ucm"
        offer = text("INVITE sip:x@y SIP/2.0", "1 INVITE", call_id=call_id,
                     body=description(UCM, 24576))  # fmt: skip
        answer = text("SIP/2.0 200 OK", "1 INVITE", called="far", call_id=call_id,
                      body=description(PROVIDER, 20000))  # fmt: skip
        dialogs.hear(sip.parse(offer), from_ucm=True)
        assert dialogs.hear(sip.parse(answer), from_ucm=False)
    assert len(dialogs) == 10


MESSAGES = [
    text("INVITE sip:x@y SIP/2.0", "1 INVITE", body=description(UCM, 24576)),
    text("SIP/2.0 100 Trying", "1 INVITE"),
    text("SIP/2.0 200 OK", "1 INVITE", called="far", body=description(PROVIDER, 20000)),
    text("ACK sip:x@y SIP/2.0", "1 ACK", called="far"),
]


def read(stream: Stream, parts: Iterator[bytes]) -> list[Message]:
    return [message for part in parts for message in stream.feed(part)]


@given(st.lists(st.integers(1, 400), min_size=1))
def test_a_stream_is_read_however_it_is_cut(sizes: list[int]) -> None:
    whole = b"\r\n\r\n".join(MESSAGES) + b"\r\n\r\n"

    def parts() -> Iterator[bytes]:
        at, number = 0, 0
        while at < len(whole):
            size = sizes[number % len(sizes)]
            yield whole[at : at + size]
            at, number = at + size, number + 1

    stream = Stream()
    assert read(stream, parts()) == [sip.parse(each) for each in MESSAGES]
    assert stream.lost == 0


@given(st.integers(0, len(MESSAGES[0]) - 1))
def test_a_stream_joined_in_its_middle(at: int) -> None:
    found = read(Stream(), iter([b"".join(MESSAGES)[at:]]))
    assert found[-3:] == [sip.parse(each) for each in MESSAGES[1:]]


@given(st.binary(max_size=300), st.integers(0, len(MESSAGES[0]) - 1), st.integers(0, 30))
def test_rubbish_is_malformed_or_nothing(rubbish: bytes, at: int, length: int) -> None:
    broken = MESSAGES[0][:at] + rubbish + MESSAGES[0][at + length :]
    for data in (rubbish, broken):
        try:
            message = sip.parse(data)
        except Malformed:
            continue
        try:
            if message.sdp is not None:
                sdp.audio(message.sdp)
        except ValueError:
            continue
    list(Stream().feed(broken))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["c=IN IP4 192.0.2.1"], Audio(IPv4Address("192.0.2.1"), 20000)),
        (["a=sendonly"], Audio(IPv4Address(PROVIDER), 20000)),
        (["c=IN IP4 192.0.2.1\r "], Audio(IPv4Address("192.0.2.1"), 20000)),
        (["c=IN  IP4\t192.0.2.1/127"], Audio(None, 20000)),
        ([" c=IN IP4 192.0.2.1"], Audio(IPv4Address(PROVIDER), 20000)),
        (["C=IN IP4 192.0.2.1"], Audio(IPv4Address(PROVIDER), 20000)),
        (["c="], Audio(None, 20000)),
        (["c=IN IP4 0.0.0.0\rx"], Audio(None, 20000)),
        (["c=IN IP4 " + 60_000 * "1"], Audio(None, 20000)),
        (["c=IN IP4 0.0.0.0"], Audio(None, 20000)),
        (["c=IN IP4 224.2.1.1/127"], Audio(None, 20000)),
        (["c=IN IP6 2001:db8::1"], Audio(None, 20000)),
        (["c=IN IP4 example.com"], Audio(None, 20000)),
    ],
)
def test_of_a_medium_before_the_sessions(lines: list[str], expected: Audio) -> None:
    assert sdp.audio(description(PROVIDER, 20000, "", *lines).encode())[0] == expected


@pytest.mark.parametrize(
    ("media", "port"),
    [
        ("m=audio 0 RTP/AVP 0\r\nm=audio 20002 RTP/AVP 0\r\n", [None, 20002]),
        ("m=video 20004 RTP/AVP 96\r\nm=audio 20002 RTP/SAVP 0\r\n", [None, 20002]),
        ("m=audio 20000 UDP/TLS/RTP/SAVP 0\r\nm=audio 20002/2 RTP/AVP 0\r\n", [20000, 20002]),
        ("m=image 20004 udptl t38\r\n", [None]),
        ("m=audio 0 RTP/AVP 0\r\n", [None]),
    ],
)
def test_media_in_their_order(media: str, port: list[int | None]) -> None:
    head = "v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
    found = sdp.audio((head + media).encode())
    assert [each and each.port for each in found] == port


@pytest.mark.parametrize(
    "lines",
    [["a=sendonly", "a=recvonly"], ["c=IN IP4 192.0.2.1", "c=IN IP4 192.0.2.2"]],
)
def test_two_things_at_once_say_nothing(lines: list[str]) -> None:
    with pytest.raises(ValueError, match="two things"):
        sdp.audio(description(PROVIDER, 20000, "", *lines).encode())


@pytest.mark.parametrize(
    "headers",
    [
        "i: call@ucm\r\nf : <sip:1@a>;tag=ucm\r\nT:\r\n <sip:2@b>\r\nv: SIP/2.0/UDP x;branch=b\r\n"
        "cseq:  1\t INVITE",
        'Call-ID: call@ucm\r\nFrom: "a;tag=no>" <sip:1@a;tag=no>;x;tag=ucm\r\nTo: sip:2@b\r\n'
        "Via: SIP/2.0/UDP x;branch=b;rport, SIP/2.0/UDP y;branch=c\r\nCSeq: 1 INVITE",
    ],
)
def test_headers_in_their_many_forms(headers: str) -> None:
    message = sip.parse(f"INVITE sip:x@y SIP/2.0\r\n{headers}\r\n\r\n".encode())
    expected = Message("INVITE", 0, b"call@ucm", b"ucm", b"", 1)
    assert message._replace(from_=b"", to=b"") == expected
    assert (sip.number(message.from_), sip.number(message.to)) == (b"1", b"2")


@pytest.mark.parametrize(
    ("party", "number"),
    [
        (b'"sip:7@x" <sips:+4930123;phone-context=x@a>;tag=1', b"+4930123"),
        (b"<tel:+4930123>;tag=1", b"+4930123"),
        (b"<sip:example.org>;tag=1", b""),
        (b"<sip:bob:secret@example.org>", b"bob"),
        (b"tel:110", b"110"),
        (b"<sip:@example.org>", b""),
        (b"nobody", b""),
    ],
)
def test_the_number_of_a_party(party: bytes, number: bytes) -> None:
    assert sip.number(party) == number


def test_a_description_among_other_parts() -> None:
    parts = ("--x\r\nContent-Type: application/isup\r\n\r\n\x01\r\n--x\r\nContent-Type: "
             f"application/sdp\r\n\r\n{description(UCM, 24576)}\r\n--x--\r\n")  # fmt: skip
    data = text("INVITE sip:x@y SIP/2.0", "1 INVITE", body=parts).replace(
        b"application/sdp\r\nContent-Length", b'multipart/mixed;boundary="x"\r\nContent-Length'
    )
    found = sip.parse(data).sdp
    assert found
    assert sdp.audio(found) == [Audio(IPv4Address(UCM), 24576)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Call-ID: call@ucm\r\n", ""),
        ("Call-ID: call@ucm", "Call-ID: call@ucm\r\nCall-ID: other@ucm"),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE"),
        ("CSeq: 1 INVITE", "CSeq: one INVITE"),
        (";tag=ucm", ""),
        (";tag=ucm", ";tag=a;tag=b"),
        ("SIP/2.0\r\n", "SIP/3.0\r\n"),
        ("Content-Length: ", "Content-Length: 9"),
        ("application/sdp", "application/sdp\r\nContent-Encoding: gzip"),
    ],
)
def test_what_can_be_read_in_two_ways_is_malformed(old: str, new: str) -> None:
    data = MESSAGES[0].replace(old.encode(), new.encode(), 1)
    assert data != MESSAGES[0]
    with pytest.raises(Malformed):
        sip.parse(data)
