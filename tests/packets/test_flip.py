"""--flip-hold: the sendonly of a hold on its way out, and the provider's answer on its way in."""

import errno
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from moh_ebpf import layout
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.registry.record import Role
from tests.packets.bench import COMPLETE, UNSPEC, Bench, bench
from tests.support.firewall import PUBLIC, UCM, firewall

PROVIDER = "203.0.113.5"
HOLD = ["m=audio 4000 RTP/AVP 0 101", "a=rtpmap:0 PCMU/8000", "a=ptime:20", "a=sendonly"]
CALL = ["m=audio 24576 RTP/AVP 0", "a=rtpmap:0 PCMU/8000", "a=sendrecv"]
HOLDS = struct.Struct("=2Q")  # struct sip_holds: how many, the last one in ns
ANSWER = ["m=audio 30000 RTP/AVP 0", "a=sendrecv"]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with firewall() as fw, bench(fw, flip_hold=True, sip_ports=[5060, 5070]) as made:
        yield made


@pytest.fixture
def sip(loaded: Bench) -> Bench:
    forget(loaded)
    return loaded


def forget(loaded: Bench) -> None:
    """As if no packet had come yet: the same connection may begin anew."""
    loaded.clear()
    set_holding(loaded, 0)
    for name in ("dialogs", "segments", "segments_back", "cut_lines", "cut_lines_back"):
        each = loaded.loaded.maps.opened[name]
        for keys, _ in list(libbpf.entries(each)):
            for at in range(0, len(keys), each.key_size):
                libbpf.call("bpf_map_delete_elem", each.fd, keys[at : at + each.key_size])


def test_layout(loaded: Bench) -> None:
    maps = loaded.loaded.maps.opened
    sizes = maps["segments"].key_size, maps["segments"].value_size, maps["holding"].value_size
    assert sum(sizes) == layout.SIP.size


def message(
    sdp: list[str],
    start: str = "INVITE sip:100@203.0.113.5 SIP/2.0",
    call_id: str = "Call-ID: a1b2c3@10.10.10.10",
    end: str = "\r\n",
    length: str = "Content-Length: {}",
    session: tuple[str, ...] = (),
) -> bytes:
    """SIP with these m= sections of SDP, or with none."""
    before = ["v=0", "o=UCM 1 1 IN IP4 10.10.10.10", "s=-", "c=IN IP4 10.10.10.10", "t=0 0"]
    body = end.join([*before, *session, *sdp, ""]) if sdp else ""
    headers = [start, "Via: SIP/2.0/UDP 10.10.10.10:5060;branch=z9hG4bK1", "From: <sip:1@x>;tag=1",
               "To: <sip:2@x>", call_id, "CSeq: 101 INVITE", "Content-Type: application/sdp",
               length.format(len(body)), "", ""]  # fmt: skip
    return (end.join(headers) + body).encode()


def out_udp(payload: bytes, source: str = PUBLIC, **ip: Any) -> Packet:
    return IP(src=source, dst=PROVIDER, **ip) / UDP(sport=5060, dport=5060) / Raw(payload)


def in_udp(payload: bytes) -> Packet:
    return IP(src=PROVIDER, dst=PUBLIC) / UDP(sport=5060, dport=5060) / Raw(payload)


def out_tcp(payload: bytes, sequence: int = 1000, source: str = PUBLIC, **tcp: Any) -> Packet:
    return (
        IP(src=source, dst=PROVIDER)
        / TCP(sport=45678, dport=5060, seq=sequence, flags="PA", **tcp)
        / Raw(payload)
    )


def in_tcp(payload: bytes, sequence: int = 1000) -> Packet:
    return (
        IP(src=PROVIDER, dst=PUBLIC)
        / TCP(sport=5060, dport=45678, seq=sequence, flags="PA")
        / Raw(payload)
    )


def after(sip: Bench, role: Role, packet: Packet, size: int = 0) -> bytes:
    """The text after it. Nothing but the text and the checksum may change, which must be right. As
    GRO makes it, it is of segments of that size."""
    sent = sip.firewall.wan.frame(packet)
    verdict, frame = sip.run(role, sent, size=size)
    assert verdict == UNSPEC
    made = Ether(frame)
    layer = TCP if TCP in made else UDP
    text = bytes(made[layer].payload)
    expected = sent.copy()
    expected[layer].remove_payload()
    expected = expected / Raw(text)
    assert frame == bytes(expected)
    return text


def flip(sip: Bench, packet: Packet, size: int = 0) -> bytes:
    return after(sip, Role.ENFORCE, packet, size)


def restore(sip: Bench, packet: Packet) -> bytes:
    return after(sip, Role.LEARN, packet)


def flipped(payload: bytes) -> bytes:
    assert payload.count(b"a=sendonly") == 1
    return payload.replace(b"a=sendonly", b"a=sendrecv")


FLIPS = [
    ("an offer", message(HOLD)),
    ("an answer", message(HOLD, start="SIP/2.0 200 OK")),
    ("early media", message(HOLD, start="SIP/2.0 183 Session Progress")),
    ("the ACK of a delayed offer", message(HOLD, start="ACK sip:100@203.0.113.5 SIP/2.0")),
    ("an update", message(HOLD, start="UPDATE sip:100@203.0.113.5 SIP/2.0")),
    ("LF alone", message(HOLD, end="\n")),
    ("compact headers", message(HOLD, call_id="i: x@y", length="l: {}")),
    ("direction first", message([HOLD[0], "a=sendonly", "a=rtpmap:0 PCMU/8000"])),
    ("a second m= line of video", message([*HOLD, "m=video 5000 RTP/AVP 97", "a=inactive"])),
    ("a first m= line of video", message(["m=video 5000 RTP/AVP 97", "a=recvonly", *HOLD])),
    ("two ports", message(["m=audio 4000/2 RTP/AVP 0", "a=sendonly"])),
    ("SAVP", message(["m=audio 4000 RTP/SAVP 0", "a=sendonly"])),
    ("no end of line", message(HOLD)[:-2]),
    ("of the session", message(HOLD[:3], session=("a=sendonly",))),
]  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("what", "payload"), FLIPS, ids=lambda v: str(v)[:30])
def test_flips(sip: Bench, what: str, payload: bytes, shift: int) -> None:
    """At an even offset and at an odd one: the checksum's words are swapped there."""
    payload = payload.replace(b"tag=1", b"tag=1" + b"2" * shift)
    for number, packet in enumerate((out_udp(payload), out_tcp(payload)), 1):
        assert flip(sip, packet) == flipped(payload), what
        assert sip.counters() == {"sip_flipped": number}


LEFT = [
    ("a call", message(CALL)),
    ("sendonly on another port", message(["m=audio 24576 RTP/AVP 0", "a=sendonly"])),
    ("a port that begins alike", message(["m=audio 40000 RTP/AVP 0", "a=sendonly"])),
    ("a port that ends alike", message(["m=audio 400 RTP/AVP 0", "a=sendonly"])),
    ("video on the port", message(["m=video 4000 RTP/AVP 97", "a=sendonly"])),
    ("video's direction", message(["m=audio 4000 RTP/AVP 0", "m=video 5000 RTP/AVP 97",
                                   "a=sendonly"])),
    ("its own direction, not the session's", message(["m=audio 4000 RTP/AVP 0", "a=inactive"],
                                                     session=("a=sendonly",))),
    ("the session's, of two", message(["m=audio 4000 RTP/AVP 0", "m=audio 24576 RTP/AVP 0"],
                                      session=("a=sendonly",))),
    ("inactive", message([*HOLD[:3], "a=inactive"])),
    ("recvonly", message([*HOLD[:3], "a=recvonly"])),
    ("not at a line's begin", message([*HOLD[:3], "x a=sendonly"])),
    ("a longer word", message([*HOLD[:3], "a=sendonlyx"])),
    ("another case", message([*HOLD[:3], "A=SENDONLY"])),
    ("no SDP", message([])),
    ("a keepalive", b"\r\n\r\n"),
    ("one byte", b"x"),
    ("binary", bytes(range(256)) * 5),
]  # fmt: skip


@pytest.mark.parametrize(("what", "payload"), LEFT, ids=lambda v: str(v)[:30])
def test_leaves_alone(sip: Bench, what: str, payload: bytes) -> None:
    for packet in (out_udp(payload), out_tcp(payload)):
        assert flip(sip, packet) == payload, what
    assert sip.counters() == {}


NOT_SIP = [
    ("another port", IP(src=PUBLIC, dst=PROVIDER) / UDP(sport=5061, dport=5061)
     / Raw(message(HOLD))),
    ("another host's", IP(src="198.51.100.77", dst=PROVIDER) / UDP(sport=5060, dport=5060)
     / Raw(message(HOLD))),
    ("a later fragment", IP(src=PUBLIC, dst=PROVIDER, frag=3, proto=17) / Raw(bytes(8)
     + message(HOLD))),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packet"), NOT_SIP, ids=lambda v: str(v)[:20])
def test_what_is_no_sip_of_ours(sip: Bench, what: str, packet: Packet) -> None:
    frame = bytes(sip.firewall.wan.frame(packet))
    assert sip.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert sip.counters() == {}


def test_from_ucm_itself_and_on_another_port(sip: Bench) -> None:
    payload = message(HOLD)
    packet = IP(src=UCM, dst=PROVIDER) / UDP(sport=5070, dport=6000) / Raw(payload)
    assert flip(sip, packet) == flipped(payload)


def test_headers_of_any_length(sip: Bench) -> None:
    payload = message(HOLD)
    assert flip(sip, out_udp(payload, options=[IPOption_NOP()] * 40)) == flipped(payload)
    packet = out_tcp(payload, options=[("NOP", None)] * 40)
    assert flip(sip, packet) == flipped(payload)


def test_no_udp_checksum_stays_none(sip: Bench) -> None:
    payload = message(HOLD)
    packet = IP(src=PUBLIC, dst=PROVIDER) / UDP(sport=5060, dport=5060, chksum=0) / Raw(payload)
    assert flip(sip, packet) == flipped(payload)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_sum_of_the_whole_packet_stays_right(sip: Bench, shift: int) -> None:
    """CHECKSUM_COMPLETE: the kernel checks it after the run."""
    payload = message(HOLD).replace(b"tag=1", b"tag=1" + b"2" * shift)
    for packet in (out_udp(payload), out_tcp(payload)):
        try:
            frame = sip.run(Role.ENFORCE, packet, flags=COMPLETE)[1]
        except OSError as error:
            if error.errno == errno.EINVAL:
                pytest.skip("this kernel's test runs know no CHECKSUM_COMPLETE")
            raise
        assert b"a=sendrecv" in frame


def test_long_messages(sip: Bench) -> None:
    """As long as a test run takes; tests/netns/test_flip.py has longer ones."""
    payload = message(HOLD).replace(b"Via", b"X: " + b"x" * 2800 + b"\r\nVia")
    assert flip(sip, out_tcp(payload)) == flipped(payload)


def test_many_short_lines(sip: Bench) -> None:
    lines = [f"a=x:{n}" for n in range(100)]
    payload = message([HOLD[0], *lines, "a=sendonly"])
    assert flip(sip, out_udp(payload)) == flipped(payload)


def test_more_lines_than_are_read(sip: Bench) -> None:
    """Left, and counted; so is what the next segment has, of which nothing is known."""
    payload = message([HOLD[0], *["a="] * 500, "a=sendonly"])
    assert flip(sip, out_udp(payload)) == payload
    assert sip.counters() == {"sip_split": 1}
    for each in segments(payload, len(payload) - 20):
        flip(sip, each)
    assert sip.counters() == {"sip_split": 3}


# The way back


def test_the_answer_is_restored(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    answer = message(ANSWER, start="SIP/2.0 200 OK")
    for _ in range(2):  # a retransmission, too
        assert restore(sip, in_udp(answer)) == answer.replace(b"a=sendrecv", b"a=recvonly")
    assert sip.counters() == {"sip_flipped": 1, "sip_restored": 2}


@pytest.mark.parametrize(
    ("out", "back"),
    [("Call-ID: a@b", "Call-ID: a@b"), ("Call-ID: a@b", "i: a@b"), ("i:a@b", "CALL-ID:   a@b"),
     ("Call-ID : a@b", "call-id:\ta@b "), ("Call-ID: " + "x" * 190, "Call-ID: " + "x" * 190)],
)  # fmt: skip
def test_call_ids_as_they_may_be_written(sip: Bench, out: str, back: str) -> None:
    flip(sip, out_udp(message(HOLD, call_id=out)))
    restore(sip, in_udp(message(ANSWER, start="SIP/2.0 200 OK", call_id=back)))
    assert sip.counters() == {"sip_flipped": 1, "sip_restored": 1}


def test_only_in_that_dialog(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    answer = message(ANSWER, start="SIP/2.0 200 OK", call_id="Call-ID: another@10.10.10.10")
    assert restore(sip, in_udp(answer)) == answer


@pytest.mark.parametrize(
    "next_sdp", [CALL, [*HOLD[:3], "a=inactive"], ["m=audio 24576 RTP/AVP 0"], HOLD[:3]]
)
def test_until_ucm_holds_no_more(sip: Bench, next_sdp: list[str]) -> None:
    flip(sip, out_udp(message(HOLD)))
    flip(sip, out_udp(message(next_sdp)))
    answer = message(ANSWER, start="SIP/2.0 200 OK")
    assert restore(sip, in_udp(answer)) == answer


def test_an_offer_that_ucm_has_asked_for_is_left(sip: Bench) -> None:
    """Resumed by an INVITE without SDP: were the provider's offer recvonly, the call would be one
    way for good."""
    flip(sip, out_udp(message(HOLD)))
    flip(sip, out_udp(message([])))
    offer = message(ANSWER, start="SIP/2.0 200 OK")
    assert restore(sip, in_udp(offer)) == offer
    flip(sip, out_udp(message(HOLD, start="ACK sip:x SIP/2.0")))
    again = message(ANSWER)  # the provider's own re-INVITE, during the hold
    assert restore(sip, in_udp(again)) == again.replace(b"a=sendrecv", b"a=recvonly")


def is_on_hold(sip: Bench) -> bool:
    """Is the provider's answer in this dialog changed?"""
    return b"recvonly" in restore(sip, in_udp(message(ANSWER, start="SIP/2.0 200 OK")))


UNREAD = [
    ("a first fragment with its headers alone", message(CALL), out_udp, {"flags": "MF"}, 300),
    ("one that ends within the section", message(CALL), out_udp, {"flags": "MF"}, -14),
    ("an ACK's", message(CALL, start="ACK sip:100@203.0.113.5 SIP/2.0"), out_udp, {"flags": "MF"},
     300),
    ("an answer's", message(CALL, start="SIP/2.0 200 OK"), out_udp, {"flags": "MF"}, 300),
    ("a TCP segment that came second", message(CALL), out_tcp, {}, 300),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "payload", "packet", "more", "end"), UNREAD, ids=[each[0] for each in UNREAD]
)
def test_what_is_not_read_to_its_end_ends_a_hold(
    sip: Bench,
    what: str,
    payload: bytes,
    packet: Callable[..., Packet],
    more: dict[str, Any],
    end: int,
) -> None:
    """FIELD's H5: a resume that is cut, and the provider's sendrecv reached UCM as recvonly."""
    flip(sip, out_udp(message(HOLD)))
    assert is_on_hold(sip)
    flip(sip, packet(payload[:end], **more))
    assert not is_on_hold(sip), what


def test_a_resume_whose_second_segment_comes_first(sip: Bench) -> None:
    flip(sip, out_tcp(message(HOLD)))
    resume, cut = message(CALL), 330
    flip(sip, out_tcp(resume[cut:], sequence=5000 + cut))
    flip(sip, out_tcp(resume[:cut], sequence=5000))
    assert not is_on_hold(sip)


def test_a_hold_in_two_segments_is_one(sip: Bench) -> None:
    """Its first segment is not the end of it; nor is that of a session refresh."""
    hold, cut = message(HOLD), 330
    for sequence in (5000, 9000):
        flip(sip, out_tcp(hold[:cut], sequence=sequence))
        flip(sip, out_tcp(hold[cut:], sequence=sequence + cut))
        assert is_on_hold(sip)


REFUSALS = ["SIP/2.0 488 Not Acceptable Here", "SIP/2.0 491 Request Pending", "SIP/2.0 500 Error",
            "SIP/2.0 603 Decline", "BYE sip:1@198.51.100.2 SIP/2.0"]  # fmt: skip


@pytest.mark.parametrize("start", REFUSALS)
def test_a_hold_that_is_refused_is_none(sip: Bench, start: str) -> None:
    flip(sip, out_udp(message(HOLD)))
    restore(sip, in_udp(message([], start=start, call_id="Call-ID: another@10.10.10.10")))
    assert is_on_hold(sip), "of another dialog"
    restore(sip, in_udp(message([], start=start)))
    assert not is_on_hold(sip)


@pytest.mark.parametrize("start", ["SIP/2.0 100 Trying", "SIP/2.0 200 OK", "INFO sip:1@x SIP/2.0"])
def test_a_hold_that_is_not_refused_goes_on(sip: Bench, start: str) -> None:
    flip(sip, out_udp(message(HOLD)))
    restore(sip, in_udp(message([], start=start)))
    assert is_on_hold(sip)


def test_who_hangs_up_holds_no_more(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    flip(sip, out_udp(message([], start="BYE sip:100@203.0.113.5 SIP/2.0")))
    assert not is_on_hold(sip)


def holding(sip: Bench) -> int:
    number, _ = HOLDS.unpack(libbpf.lookup(sip.loaded.maps.opened["holding"], layout.index(0)))
    return number


def set_holding(sip: Bench, number: int, age: float = 0.0) -> None:
    """So many dialogs on hold, the last one since `age` seconds."""
    last = (kernel_ns() - int(age * 1e9)) % 2**64  # perhaps before the machine's start
    holds = HOLDS.pack(number, last)
    libbpf.update(sip.loaded.maps.opened["holding"], layout.index(0), holds)


def test_dialogs_on_hold_are_counted(sip: Bench) -> None:
    """Each once, however often its hold is said, and its end."""
    calls = [f"Call-ID: {number}@10.10.10.10" for number in range(3)]
    for _ in range(2):
        for call_id in calls:
            flip(sip, out_udp(message(HOLD, call_id=call_id)))
    assert holding(sip) == 3
    for _ in range(2):
        for call_id in calls[:2]:
            flip(sip, out_udp(message(CALL, call_id=call_id)))
    assert holding(sip) == 1


def test_nothing_is_read_while_nobody_is_on_hold(sip: Bench) -> None:
    """FIELD's H10: a segment that is read leaves what the next one is to know."""
    answer = message(ANSWER, start="SIP/2.0 200 OK")[:300]
    segments = sip.loaded.maps.opened["segments_back"]

    def known() -> int:
        return sum(len(keys) for keys, _ in libbpf.entries(segments))

    restore(sip, in_tcp(answer))
    assert known() == 0
    flip(sip, out_udp(message(HOLD)))
    restore(sip, in_tcp(answer))
    assert known() > 0


def test_networks_that_sip_comes_from(sip: Bench) -> None:
    hold, answer = message(HOLD), message(ANSWER, start="SIP/2.0 200 OK")
    for network, is_listed in (("203.0.113.0/29", True), ("203.0.113.8/29", False)):
        with bench(sip.firewall, flip_hold=True, sip_from=[network]) as made:
            assert (flip(made, out_udp(hold)) == flipped(hold)) is is_listed
            set_holding(made, 1)
            assert (b"recvonly" in restore(made, in_udp(answer))) is is_listed


@pytest.mark.parametrize("blank", [" ", "\t", "  "])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_blank_at_a_line_s_end(sip: Bench, blank: str, end: str) -> None:
    """FIELD's F06."""
    hold = message([*HOLD[:-1], f"a=sendonly{blank}"], end=end)
    assert flip(sip, out_udp(hold)) == flipped(hold)
    answer = message([ANSWER[0], f"a=sendrecv{blank}"], start="SIP/2.0 200 OK", end=end)
    assert restore(sip, in_udp(answer)) == answer.replace(b"sendrecv", b"recvonly")


def test_a_body_that_is_promised_and_not_there(sip: Bench) -> None:
    """FIELD's F09: the SDP is in the second fragment, of offers and of answers."""
    headers = message(HOLD).index(b"v=0")
    flip(sip, out_udp(message(HOLD)[:headers], flags="MF"))
    assert sip.counters() == {"sip_split": 1}
    flip(sip, out_udp(message([])[:-4], flags="MF"))  # it promises none
    assert sip.counters() == {"sip_split": 1}
    flip(sip, out_udp(message(HOLD)))
    answer = message(ANSWER, start="SIP/2.0 200 OK")
    fragment = IP(src=PROVIDER, dst=PUBLIC, flags="MF") / UDP(sport=5060, dport=5060)
    restore(sip, fragment / Raw(answer[: answer.index(b"v=0")]))
    assert sip.counters()["sip_split"] == 2


def test_an_answer_without_a_direction_is_counted(sip: Bench) -> None:
    """FIELD's F12: it means sendrecv, and has no word to be changed."""
    answer = message(["m=audio 30000 RTP/AVP 0", "a=ptime:20"], start="SIP/2.0 200 OK")
    assert restore(sip, in_udp(answer)) == answer
    assert sip.counters() == {}, "nobody is on hold"
    flip(sip, out_udp(message(HOLD)))
    for packet in (in_udp(answer), in_tcp(answer)):
        assert restore(sip, packet) == answer
    restore(sip, in_udp(message(["m=audio 30000 RTP/AVP 0", "a=recvonly"], start="SIP/2.0 200 OK")))
    assert sip.counters() == {"sip_flipped": 1, "sip_undirected": 2}


def test_requests_without_sdp_change_nothing(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    for start in ("ACK sip:x SIP/2.0", "OPTIONS sip:x SIP/2.0", "SIP/2.0 200 OK"):
        flip(sip, out_udp(message([], start=start)))
    restore(sip, in_udp(message(ANSWER, start="SIP/2.0 200 OK")))
    assert sip.counters()["sip_restored"] == 1


def test_answers_that_are_not_sendrecv_are_left(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    for direction in ("a=recvonly", "a=inactive", "a=sendonly"):
        answer = message(["m=audio 30000 RTP/AVP 0", direction], start="SIP/2.0 200 OK")
        assert restore(sip, in_udp(answer)) == answer
    assert sip.counters() == {"sip_flipped": 1}


# Two packets


def segments(payload: bytes, *cuts: int) -> list[Packet]:
    edges = [0, *cuts, len(payload)]
    return [
        out_tcp(payload[begin:end], sequence=(2**32 - 100 + begin) % 2**32)
        for begin, end in itertools.pairwise(edges)
    ]


def test_two_segments_cut_anywhere(sip: Bench) -> None:
    """Changed as a whole or not at all; where it is not, that is counted."""
    payload = message(HOLD)
    word = payload.index(b"a=sendonly")
    for cut in range(1, len(payload)):
        forget(sip)
        texts = [flip(sip, each) for each in segments(payload, cut)]
        if not word < cut < word + 10:
            assert b"".join(texts) == flipped(payload), cut
            assert sip.counters() == {"sip_flipped": 1}, cut
        else:
            assert b"".join(texts) == payload, cut
            assert sip.counters() == {"sip_split": 1}, cut


def test_the_call_id_is_known_in_the_next_segment(sip: Bench) -> None:
    payload = message(HOLD)
    for each in segments(payload, payload.index(b"v=0")):
        flip(sip, each)
    restore(sip, in_tcp(message(ANSWER, start="SIP/2.0 200 OK")))
    assert sip.counters() == {"sip_flipped": 1, "sip_restored": 1}


def test_a_segment_sent_again_is_changed_again(sip: Bench) -> None:
    payload = message(HOLD)
    first, second = segments(payload, payload.index(b"a=rtpmap"))
    flip(sip, first)
    assert flip(sip, second) == flip(sip, second)
    assert sip.counters() == {"sip_flipped": 2}


def test_a_line_in_two_segments_is_left_when_both_come_again_as_one(sip: Bench) -> None:
    """Whoever has got the first of them takes the rest alone. That the second was lost before it
    came to us is no matter."""
    payload = message(HOLD)
    word = payload.index(b"a=sendonly")
    for cut, count in itertools.product(range(word + 1, word + 10), (1, 2)):
        forget(sip)
        for each in segments(payload, cut)[:count]:
            flip(sip, each)
        (whole,) = segments(payload)
        assert flip(sip, whole) == payload, cut
        assert sip.counters()["sip_split"] == count


@pytest.mark.parametrize("direction", ["out", "out, behind video", "back"])
def test_a_packet_of_segments_of_which_one_comes_again(sip: Bench, direction: str) -> None:
    """Cut into segments behind us (GSO), one may be lost, and is sent again alone: what the other
    end puts together is changed as a whole or not at all."""
    make: Callable[[bytes, int], Packet]
    role, make, old, new = Role.ENFORCE, out_tcp, b"a=sendonly", b"a=sendrecv"
    payload = message(["m=video 5000 RTP/AVP 97", old.decode()] * ("video" in direction) + HOLD)
    if direction == "back":
        role, make, old, new = Role.LEARN, in_tcp, b"a=sendrecv", b"a=recvonly"
        payload = message(ANSWER, start="SIP/2.0 200 OK")
    at = payload.rindex(old)
    for size in range(payload.index(b"v=0"), len(payload)):
        forget(sip)
        if direction == "back":
            flip(sip, out_udp(message(HOLD)))
        whole = after(sip, role, make(payload), size)
        again = after(sip, role, make(payload[size:], 1000 + size))
        is_cut = at < size < at + 10
        assert whole == (payload if is_cut else payload[:at] + new + payload[at + 10 :]), size
        assert whole[:size] + again == whole, size
        if role is Role.ENFORCE and not is_cut:
            assert restores(sip, "i: a1b2c3@10.10.10.10"), size


def test_a_segment_whose_forerunner_is_not_known(sip: Bench) -> None:
    payload = message(HOLD)
    second = segments(payload, payload.index(b"a=rtpmap"))[1]
    assert flip(sip, second) == bytes(second[TCP].payload)
    assert sip.counters() == {"sip_split": 1}


def test_another_connection_knows_nothing_of_it(sip: Bench) -> None:
    payload = message(HOLD)
    first, second = segments(payload, payload.index(b"a=rtpmap"))
    second[TCP].sport = 45679
    flip(sip, first)
    assert flip(sip, second) == bytes(second[TCP].payload)


def test_a_cut_m_line_of_another_section(sip: Bench) -> None:
    """What follows it is not the phantom section's."""
    payload = message([*HOLD[:3], "m=video 5000 RTP/AVP 97", "a=sendonly"])
    for cut in range(payload.index(b"m=video") + 1, payload.index(b"a=sendonly") + 1):
        assert b"".join(flip(sip, each) for each in segments(payload, cut)) == payload


def test_the_answer_in_two_segments(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    answer = message(ANSWER, start="SIP/2.0 200 OK")
    cut = answer.index(b"m=audio")
    texts = [
        restore(sip, in_tcp(answer[:cut])), restore(sip, in_tcp(answer[cut:], 1000 + cut)),
    ]  # fmt: skip
    assert b"".join(texts) == answer.replace(b"a=sendrecv", b"a=recvonly")


SESSION = message([*HOLD[:3], "m=video 5000 RTP/AVP 97"], session=("a=sendonly",))


def test_a_direction_before_a_section_that_is_in_the_next_segment(sip: Bench) -> None:
    """It is that section's as well. A sender pushes when it has written all there is."""
    for cut in range(SESSION.index(b"a=sendonly") + 10, len(SESSION)):
        forget(sip)
        first, second = segments(SESSION, cut)
        first[TCP].flags = "A"
        assert flip(sip, first) + flip(sip, second) == SESSION
        assert "sip_flipped" not in sip.counters()


def test_a_direction_before_a_section_that_is_in_the_next_fragment(sip: Bench) -> None:
    text = SESSION[: SESSION.index(b"m=video")]
    frame = first_fragment(sip, out_udp(SESSION), len(text))
    assert sip.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert sip.counters() == {"sip_split": 1}


@pytest.mark.parametrize("more", [b"", b"a=ptime:20\r\n", b"a=send"])
def test_a_first_fragment_of_the_answer(sip: Bench, more: bytes) -> None:
    flip(sip, out_udp(message(HOLD)))
    whole = message(ANSWER, start="SIP/2.0 200 OK")
    text = whole[: whole.index(b"a=sendrecv")] + more
    frame = first_fragment(sip, in_udp(text + bytes(400)), len(text))
    assert sip.run(Role.LEARN, frame) == (UNSPEC, frame)
    assert sip.counters() == {"sip_flipped": 1, "sip_split": 1, "fragments": 1}


def first_fragment(sip: Bench, packet: Packet, length: int) -> bytes:
    """The frame of a packet's first fragment, with so much of its text. The checksum is that of the
    whole datagram; it carries the ports, the rest does not."""
    datagram = bytes(packet)[20:]
    head = IP(src=packet[IP].src, dst=packet[IP].dst, flags="MF", proto=17)
    return bytes(sip.firewall.wan.frame(head / Raw(datagram[: 8 + length])))


@pytest.mark.parametrize("more", [b"", b"a=ptime:20\r\n", b"a=send"])
def test_a_first_fragment(sip: Bench, more: bytes) -> None:
    whole = message(HOLD)
    text = whole[: whole.index(b"a=sendonly")] + more
    frame = first_fragment(sip, out_udp(text + bytes(400)), len(text))
    assert sip.run(Role.ENFORCE, frame) == (UNSPEC, frame)
    assert sip.counters() == {"sip_split": 1}


def test_a_hold_within_a_first_fragment(sip: Bench) -> None:
    text = message(HOLD)
    frame, expected = (
        first_fragment(sip, out_udp(each + bytes(400)), len(text)) for each in (text, flipped(text))
    )
    assert sip.run(Role.ENFORCE, frame) == (UNSPEC, expected)


# Several messages in one packet: a connection carries all calls of a trunk, and GRO merges segments


def restores(sip: Bench, call_id: str) -> bool:
    """Is the provider's sendrecv changed in this dialog?"""
    answer = message(ANSWER, start="SIP/2.0 200 OK", call_id=call_id)
    return restore(sip, in_udp(answer)) != answer


def test_two_holds_in_one_packet(sip: Bench) -> None:
    payload = message(HOLD, call_id="Call-ID: A") + message(HOLD, call_id="Call-ID: B")
    text = flip(sip, out_tcp(payload))
    assert text == payload.replace(b"a=sendonly", b"a=sendrecv")
    assert sip.counters() == {"sip_flipped": 2}
    assert restores(sip, "i: A")
    assert restores(sip, "i: B")


def test_two_sections_in_one_message(sip: Bench) -> None:
    """The first is changed, the second counted."""
    text = flip(sip, out_udp(message([*HOLD, *HOLD])))
    assert text.count(b"a=sendrecv") == 1
    assert sip.counters() == {"sip_flipped": 1, "sip_split": 1}


OTHERS = [
    message([], start="OPTIONS sip:x SIP/2.0", call_id="Call-ID: B"),
    message([], start="SUBSCRIBE sip:x SIP/2.0", call_id="Call-ID: B"),
    message([], start="REGISTER sip:x SIP/2.0", call_id="Call-ID: B"),
    message([], start="SIP/2.0 100 Trying", call_id="i: B"),
    message(CALL, call_id="Call-ID: B"),
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda text: text[:7].decode())
def test_a_hold_is_of_its_own_dialog(sip: Bench, other: bytes) -> None:
    hold = message(HOLD, call_id="Call-ID: A")
    for payload in (hold + other, other + hold, hold[:-2] + other):
        forget(sip)
        flip(sip, out_udp(message(CALL, call_id="Call-ID: A")))
        text = flip(sip, out_tcp(payload))
        if payload.startswith(hold[:-1]):
            assert text == payload.replace(hold, flipped(hold))
        elif b"a=sendonly" in text:  # cut off from its line's end by a message that follows
            continue
        assert not restores(sip, "Call-ID: B")
        assert restores(sip, "Call-ID: A")


def test_the_end_of_a_hold_is_of_its_own_dialog(sip: Bench) -> None:
    for call_id in ("A", "B"):
        flip(sip, out_udp(message(HOLD, call_id=f"Call-ID: {call_id}")))
    ack = message([], start="ACK sip:x SIP/2.0", call_id="Call-ID: B")
    flip(sip, out_tcp(message(CALL, call_id="Call-ID: A") + ack))
    assert not restores(sip, "Call-ID: A")
    assert restores(sip, "Call-ID: B")


def test_a_direction_of_the_session_behind_another_message(sip: Bench) -> None:
    hold = message(HOLD[:3], session=("a=sendonly",), call_id="Call-ID: B")
    call = message(CALL, call_id="Call-ID: A")
    assert flip(sip, out_tcp(call + hold)) == call + flipped(hold)


def test_a_body_without_a_line_end_before_the_next_message(sip: Bench) -> None:
    """Its segment ends there, too; what comes is a message, whatever was before."""
    notify = message([], start="NOTIFY sip:x SIP/2.0", call_id="i: B") + b"<xml/>"
    hold = message(HOLD, call_id="i: A")
    assert flip(sip, out_tcp(notify)) == notify
    assert flip(sip, out_tcp(hold, 1000 + len(notify))) == flipped(hold)
    assert restores(sip, "i: A")
    flip(sip, out_tcp(notify + message(HOLD, call_id="i: C")))
    assert restores(sip, "i: C")
    assert not restores(sip, "i: B")


@pytest.mark.parametrize("method", ["OPTIONS", "INVITE", "BYE"])
def test_an_sdp_without_a_line_end_before_the_next_message(sip: Bench, method: str) -> None:
    """The next message's first line is not seen then, but its Call-ID is: it may end the hold."""
    hold = message(HOLD, call_id="i: B")
    flip(sip, out_udp(hold))
    other = message([], start=f"{method} sip:x SIP/2.0", call_id="i: B")
    flip(sip, out_tcp(message(CALL, call_id="i: A")[:-2] + other))
    assert not restores(sip, "i: B")
    text = flip(sip, out_tcp(message(CALL, call_id="i: A")[:-2] + hold, 90000))
    assert text.endswith(flipped(hold))
    assert restores(sip, "i: B")


@pytest.mark.parametrize("start", ["SIP/2.0 488 Not Acceptable Here", "BYE sip:x SIP/2.0"])
def test_a_provider_s_body_without_a_line_end(sip: Bench, start: str) -> None:
    flip(sip, out_udp(message(HOLD, call_id="i: B")))
    answer = message(ANSWER, start="SIP/2.0 200 OK", call_id="i: A")[:-2]
    restore(sip, in_tcp(answer + message([], start=start, call_id="i: B")))
    assert holding(sip) == 0


def test_what_anybody_sends_pushes_out_no_line_of_ucm_s(sip: Bench) -> None:
    """UCM's word is cut, and sent again in one piece: who has the first half takes only the rest of
    it, so it must stay as it is."""
    hold = message(HOLD)
    at = hold.index(b"a=sendonly") + 7
    flip(sip, out_udp(message(HOLD, call_id="i: B")))  # somebody is on hold, so that learn reads
    flip(sip, out_tcp(hold[:at]))
    flip(sip, out_tcp(hold[at:], 1000 + at))
    noise = IP(src="198.18.0.0", dst=PUBLIC) / TCP(sport=5060, dport=5060, seq=1, flags="PA")
    frame = bytes(sip.firewall.wan.frame(noise / Raw(b"SIP/2.0 200 OK\r\nab")))
    for number in range(3 * 4096):  # each from an address of its own
        sip.run(Role.LEARN, frame[:28] + number.to_bytes(2, "big") + frame[30:])
    assert flip(sip, out_tcp(hold)) == hold


@pytest.mark.parametrize(("age", "is_read"), [(3.9 * 3600, True), (4.1 * 3600, False)])
def test_a_hold_whose_end_was_not_seen(sip: Bench, age: float, is_read: bool) -> None:
    """It does not keep learn reading for ever."""
    flip(sip, out_udp(message(HOLD, call_id="i: A")))
    set_holding(sip, 3, age)
    assert restores(sip, "i: A") is is_read
    flip(sip, out_udp(message(HOLD, call_id="i: B")))
    assert holding(sip) == (4 if is_read else 1)
    assert restores(sip, "i: B")


CAPITALS = [
    "SUPPORTED: timer",
    "SUBJECT : x",
    "PRIORITY: sip",
    "DIVERSION: <tel:1>",
    "CALL ME: tel",
]


@pytest.mark.parametrize("header", CAPITALS)
def test_a_header_in_capitals_begins_no_message(sip: Bench, header: str) -> None:
    hold = message(HOLD).replace(b"CSeq", f"{header}\r\nCSeq".encode())
    answer = message(ANSWER, start="SIP/2.0 200 OK").replace(b"CSeq", f"{header}\r\nCSeq".encode())
    assert flip(sip, out_udp(hold)) == flipped(hold)
    assert restore(sip, in_udp(answer)) == answer.replace(b"a=sendrecv", b"a=recvonly")


METHODS = ["ACK", "BYE", "INFO", "PRACK", "INVITE", "OPTIONS", "REGISTER", "SUBSCRIBE"]


@pytest.mark.parametrize("uri", ["sip:x", "SIPS:x", "tel:+1"])
@pytest.mark.parametrize("method", METHODS)
def test_methods_begin_a_message(sip: Bench, method: str, uri: str) -> None:
    other = message([], start=f"{method} {uri} SIP/2.0", call_id="i: B")
    flip(sip, out_tcp(message(HOLD, call_id="i: A") + other))
    assert restores(sip, "i: A")
    assert not restores(sip, "i: B")


def test_more_messages_than_are_told_apart(sip: Bench) -> None:
    ack = b"ACK sip:x SIP/2.0\r\ni: B\r\nl: 0\r\n\r\n"
    hold = message(HOLD, call_id="i: A")
    for count in range(12):
        forget(sip)
        text = flip(sip, out_tcp(ack * count + hold))
        assert text == ack * count + (flipped(hold) if count < 8 else hold)
        assert not restores(sip, "i: B")


# What the next segment goes on with


def test_a_direction_that_is_not_the_last_line(sip: Bench) -> None:
    """Wherever the message is cut, the dialog is remembered, and the way back changed."""
    payload = message([HOLD[0], "a=sendonly", "a=ptime:20"])
    word = payload.index(b"a=sendonly")
    for cut in range(1, len(payload)):
        forget(sip)
        for each in segments(payload, cut):
            flip(sip, each)
        assert restores(sip, "i: a1b2c3@10.10.10.10") == (not word < cut < word + 10), cut
        flip(sip, out_udp(message(CALL)))


@pytest.mark.parametrize(
    "length", ["Content-Length: {}", "l: {}", "content-length:{}", "CONTENT-LENGTH \t:   {}"]
)
def test_an_invite_without_sdp_cut_anywhere(sip: Bench, length: str) -> None:
    payload = message([], length=length)
    for cut in range(len("SIP/2.0 200 OK"), len(payload)):
        forget(sip)
        flip(sip, out_udp(message(HOLD)))
        for each in segments(payload, cut):
            flip(sip, each)
        assert not restores(sip, "i: a1b2c3@10.10.10.10"), cut


def test_a_segment_that_looks_like_a_message(sip: Bench) -> None:
    """Cut within a line, before a word in capitals."""
    for words in (b"AVP 0 101", b"UCM 1 1", b"INVITE\r\nContent"):
        forget(sip)
        payload = message(HOLD).replace(b"o=UCM", b"o=x UCM")
        texts = [flip(sip, each) for each in segments(payload, payload.index(words))]
        assert b"".join(texts) == flipped(payload)
        assert restores(sip, "i: a1b2c3@10.10.10.10")
        flip(sip, out_udp(message(CALL)))


def test_an_invite_without_a_length(sip: Bench) -> None:
    flip(sip, out_udp(message(HOLD)))
    flip(sip, out_udp(message([], length="X: {}")))
    assert not restores(sip, "i: a1b2c3@10.10.10.10")


def test_what_is_behind_a_datagram(sip: Bench) -> None:
    """Is no part of it, nor of its checksum."""
    payload = message(HOLD)
    packet = IP(src=PUBLIC, dst=PROVIDER) / UDP(sport=5060, dport=5060, len=108) / Raw(payload)
    frame = bytes(sip.firewall.wan.frame(packet))
    assert sip.run(Role.ENFORCE, frame) == (UNSPEC, frame)


@pytest.mark.parametrize("call_id", ["Call-ID:", "Call-ID:          x", "i:\t\t", "i: :", "i:\x01"])
def test_a_call_id_that_is_none(sip: Bench, call_id: str) -> None:
    """All of those are not one dialog."""
    flip(sip, out_udp(message(HOLD, call_id=call_id)))
    assert sip.counters() == {"sip_flipped": 1}
    assert not restores(sip, "Call-ID:           y")


TEXTS = st.lists(
    st.one_of(
        st.sampled_from([*HOLD, *CALL, *ANSWER, "", "m=", "a=", "a=send", "Call-ID:", "i:", "l: 0",
                         "INVITE x", "Content-Length: 0", "m=audio 4000", "m=audio 4000/"]),
        st.text(alphabet=st.characters(max_codepoint=255), max_size=40),
    ),
    max_size=30,
)  # fmt: skip


@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TEXTS, st.sampled_from(["\r\n", "\n", "\r"]), st.binary(max_size=3))
def test_any_text(sip: Bench, lines: list[str], end: str, last: bytes) -> None:
    """Whatever it is, nothing is changed but words at a line's begin, one for each section."""
    payload = end.join(lines).encode("latin-1") + last
    if not payload:
        return
    word, other = b"a=sendonly", b"a=sendrecv"
    for packet in (out_udp(payload), out_tcp(payload)):
        text = flip(sip, packet)
        begins = [each.end() - 10 for each in re.finditer(rb"(?:\A|\n)" + word, payload)]
        changed = [at for at in begins if text[at : at + 10] == other]
        for at in changed:
            text = text[:at] + word + text[at + 10 :]
        assert text == payload
        assert len(changed) <= payload.count(b"m=audio 4000")
