"""Loss and jitter of each stream, as the programs keep them, beside RFC 3550's own words."""

import itertools
import math
import struct
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moh_ebpf.calls.peers import Peer
from moh_ebpf.calls.rtp import Rtp
from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import udp


def media(
    sequence: int, ssrc: int = 7, payload_type: int = 0, marker: bool = False, size: int = 160,
    stamp: int | None = None,
) -> bytes:  # fmt: skip
    """A packet of a stream of 20 ms each, or with another timestamp than that makes."""
    stamp = (sequence * 160 if stamp is None else stamp) % 2**32
    second = payload_type | 0x80 * marker
    return struct.pack("!BBHII", 0x80, second, sequence % 65536, stamp, ssrc) + bytes(size)


def hear(programs: Bench, *packets: bytes, port: int = 4000) -> Rtp | None:
    for packet in packets:
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:{port}", packet))
    return only(programs).in_rtp


def play(programs: Bench, *packets: bytes, role: Role = Role.BYPASS) -> Rtp | None:
    for packet in packets:
        programs.run(role, udp(f"{UCM}:24576", PROVIDER, packet))
    return only(programs).out_rtp


def only(programs: Bench) -> Peer:
    (peer,) = programs.all_peers()
    return peer


def counts(rtp: Rtp | None) -> tuple[int, int]:
    assert rtp
    return rtp.expected, rtp.lost


STREAMS = [
    ("in order", [1, 2, 3, 4], (4, 0)),
    ("one lost", [1, 2, 4, 5], (5, 1)),
    ("many lost", [1, 2, 1002], (1002, 999)),
    ("late", [1, 2, 4, 3, 5], (5, 0)),
    ("twice", [1, 2, 2, 3], (3, -1)),
    ("over the end of 16 bits", [65534, 65535, 0, 1, 3], (6, 1)),
    ("twice over", [59999, 60000, 62000, 64000, 500, 2500, 2501], (8039, 8032)),
    ("late over the end", [65533, 65534, 0, 65535, 1], (5, 0)),
    ("one that does not fit", [1, 2, 40000, 3, 4], (4, 0)),
    ("one that does not fit, and comes to fit", [1, 2, 3100, 2500, 3101], (3101, 3097)),
    ("begins anew", [1, 2, 40000, 40001, 40002], (5, 0)),
    ("begins anew, and far back", [30000, 30001, 5, 6, 8], (6, 1)),
    ("begins with a loss", [1, 3, 4], (2, 0)),
]


@pytest.mark.parametrize(("what", "numbers", "wanted"), STREAMS, ids=lambda v: str(v)[:30])
def test_expected_and_lost(
    programs: Bench, what: str, numbers: list[int], wanted: tuple[int, int]
) -> None:
    assert counts(hear(programs, *map(media, numbers))) == wanted
    assert counts(play(programs, *map(media, numbers))) == wanted


BATCHES = [
    ("come late", [1, 5, 13, 9, 17], (20, 0)),
    ("begin anew", [1, 5, 30000, 30004, 30008], (20, 0)),
]


@pytest.mark.parametrize(("what", "numbers", "wanted"), BATCHES)
def test_packets_of_four_datagrams(
    programs: Bench, what: str, numbers: list[int], wanted: tuple[int, int]
) -> None:
    """As GRO makes them: each has the header of its first."""
    for number in numbers:
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:4000", media(number)), segments=4)
    assert counts(only(programs).in_rtp) == wanted


def test_another_source_goes_on_from_the_sums(programs: Bench) -> None:
    """As hold music does with each hold: another SSRC, another beginning."""
    hear(programs, media(100), media(101), media(103))
    rtp = hear(programs, media(9000, ssrc=8, payload_type=8), media(9001, ssrc=8, payload_type=8))
    assert rtp
    assert (rtp.ssrc, rtp.payload_type, rtp.codec) == (8, 8, "PCMA")
    assert counts(rtp) == (6, 1)


def test_the_sums_over_all_streams(programs: Bench) -> None:
    hear(programs, *map(media, [1, 2, 4, 3, 7]))
    play(programs, *map(media, [1, 2, 4]))
    assert programs.rtp_counters() == {
        "rtp_in_expected": 7, "rtp_in_lost": 3, "rtp_in_late": 1,
        "rtp_out_expected": 4, "rtp_out_lost": 1,
    }  # fmt: skip


def test_what_nobody_is_told_of_is_no_figure(programs: Bench) -> None:
    """Anybody can send numbers. From the first packet of UCM's on, all of its stream counts."""
    numbers = [1, 2, 3, 1000, 3000]
    for number in numbers:
        programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24576", media(number)))
    assert programs.rtp_counters() == {}
    play(programs, media(1))
    assert programs.rtp_counters() == {"rtp_in_expected": 3000, "rtp_in_lost": 2995}
    programs.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24576", media(3002)))
    assert programs.rtp_counters() == {"rtp_in_expected": 3002, "rtp_in_lost": 2996}


def test_two_streams_that_take_turns(programs: Bench) -> None:
    """As of two sources of one endpoint: each is believed, though none follows itself at once."""
    turns = [media(number, ssrc=ssrc) for number in range(1, 20) for ssrc in (7, 8)]
    rtp = hear(programs, *turns)
    assert rtp
    assert rtp.lost == 0
    assert rtp.expected >= 30


NOISE = [
    ("random SSRCs", [media(number, ssrc=number * 7919) for number in range(1, 100)]),
    ("random numbers", [media(number * 7919) for number in range(1, 100)]),
    ("all the same", [media(1)] * 100),
    ("ESP in UDP", [struct.pack("!IIQ", 0x9A60_1234, number, number * 2**40 + 5) + bytes(64)
                    for number in range(1, 100)]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "packets"), NOISE, ids=lambda value: str(value)[:20])
def test_what_is_no_stream_is_no_figure(programs: Bench, what: str, packets: list[bytes]) -> None:
    assert hear(programs, *packets) is None, what
    assert play(programs, *packets) is None, what
    assert programs.rtp_counters() == {}
    assert (programs.shown(), programs.events()) == ({}, [])


@pytest.mark.parametrize("role", [Role.BYPASS, Role.ENFORCE])
@pytest.mark.parametrize("state", [State.MOH, State.TWO])
def test_outbound_in_either_state(programs: Bench, role: Role, state: State) -> None:
    programs.set_peer(
        PROVIDER, PeerState(state, f"{PUBLIC}:{4000 if state is State.MOH else 24576}")
    )
    assert counts(play(programs, media(1), media(2), media(4), role=role)) == (4, 1)
    assert only(programs).in_rtp is None


def test_outbound_age(programs: Bench) -> None:
    hear(programs, media(1))
    assert only(programs).out_age is None
    play(programs, media(1))
    age = only(programs).out_age
    assert age is not None
    assert 0 <= age < 5


def test_forgotten_endpoint_begins_anew(programs: Bench) -> None:
    hear(programs, media(1), media(2))
    play(programs, media(1), media(2))
    programs.age_all(30)
    assert counts(hear(programs, media(9), media(10))) == (2, 0)
    assert only(programs).out_rtp is None


NO_MEDIA = [
    ("a sender report", b"\x80\xc8\0\6" + bytes(24)),
    ("a goodbye", b"\x81\xcb\0\1" + bytes(4)),
    ("no whole header", b"\x80\0\0\1" + bytes(7)),
]


@pytest.mark.parametrize(("what", "payload"), NO_MEDIA)
def test_what_is_no_media(programs: Bench, what: str, payload: bytes) -> None:
    programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000"))
    for _ in range(3):
        assert hear(programs, payload) is None
        assert play(programs, payload) is None
    assert programs.rtp_counters() == {}


def test_the_shortest_rtp(programs: Bench) -> None:
    assert counts(hear(programs, media(1, size=0), media(2, size=0))) == (2, 0)


def test_marker_is_no_part_of_the_payload_type(programs: Bench) -> None:
    rtp = hear(programs, *[media(n, payload_type=18, marker=True) for n in (1, 2)])
    assert rtp
    assert (rtp.payload_type, rtp.codec, rtp.ssrc) == (18, "G729", 7)


def test_a_media_clock_that_is_not_known_yet(programs: Bench) -> None:
    """It takes half a second to tell, which a busy machine may take for two packets."""
    took = math.inf
    while took >= 0.5:
        programs.clear()
        begun = time.monotonic()
        rtp = hear(programs, media(1, payload_type=111), media(2, payload_type=111))
        took = time.monotonic() - begun
    assert rtp
    assert (rtp.codec, rtp.jitter) == ("111", None)


# Of PCMU's clock, in ticks: little that a test run may take is much beside it.
HOUR = 3600 * 8000


@pytest.mark.parametrize(
    "hours",
    [range(10), range(0, -10, -1), [0, 1, 3, 2, 4, 5, 7, 6, 6, 8]],
    ids=["forwards", "backwards", "some come late"],
)
def test_jitter(programs: Bench, hours: Sequence[int]) -> None:
    """Packets hours apart by their timestamps, and at once by our clock: A.8 adds a sixteenth of
    that, less a sixteenth of what there was. That some are late by their number is no matter."""
    jitter = 0.0
    hear(programs, media(99, stamp=2**31))
    for before, now in itertools.pairwise([hours[0], *hours]):
        rtp = hear(programs, media(100 + abs(now), stamp=2**31 + now * HOUR))
        assert rtp
        jitter += (abs(now - before) - jitter) / 16 if now != before else 0
        assert rtp.jitter == pytest.approx(3600 * jitter, rel=0.02)


def test_packets_of_one_frame_have_no_jitter_among_them(programs: Bench) -> None:
    """Nor have those of a DTMF digit, which have its beginning's timestamp (RFC 4733)."""
    before = hear(programs, *[media(number, stamp=number * HOUR) for number in (1, 2, 3)])
    after = hear(programs, *[media(number, stamp=3 * HOUR) for number in range(4, 40)])
    assert before
    assert after
    assert after.jitter is not None
    assert before.jitter == after.jitter > 0


def test_another_payload_type_may_have_another_clock(programs: Bench) -> None:
    """G.722's is 8 kHz, as RFC 3551 explains; L16's is not. A digit's is the stream's."""
    packets = [
        media(number, payload_type=payload_type, stamp=number * HOUR)
        for number, payload_type in enumerate((0, 9, 101, 0))
    ]
    same = hear(programs, *packets[:3])
    back = hear(programs, packets[3])
    assert same
    assert back
    assert back.jitter is not None
    assert same.jitter is not None
    assert back.jitter > same.jitter > 0  # it goes on
    other = hear(programs, media(4, payload_type=11))
    assert other
    assert (other.jitter, other.payload_type) == (0, 11)


def test_a_dynamic_clock_is_measured_as_long_as_it_goes_on(programs: Bench) -> None:
    """Of 48 kHz, with comfort noise amid it, whose type says 8 kHz."""
    seconds = 100  # a test run takes little of them
    hear(programs, media(1, payload_type=111, stamp=0))
    for number, payload_type in ((2, 13), (3, 111)):
        hear(programs, media(number, payload_type=payload_type, stamp=number * 960))
    programs.age_streams(seconds)
    rtp = hear(programs, media(53, payload_type=111, stamp=3 * 960 + seconds * 48000))
    assert rtp
    assert rtp.jitter == 0
    rtp = hear(programs, media(103, payload_type=111, stamp=3 * 960 + 2 * seconds * 48000))
    assert rtp
    assert rtp.jitter == pytest.approx(seconds / 16, rel=0.1)


class Receiver:
    """RFC 3550, A.1 and A.3: a stream begins with two packets in sequence, between which one of
    another stream may come."""

    def __init__(self) -> None:
        self.received = self.before = 0
        self.base, self.highest = 0, -1
        self.ssrc = -1
        self.bad: tuple[int, int] | None = None
        self.others = 0

    def begin(self, sequence: int, ssrc: int) -> None:
        self.before += self.highest - self.base + 1
        self.ssrc, self.base, self.highest, self.bad = ssrc, sequence - 1, sequence, None
        self.received += 2

    def hear(self, sequence: int, ssrc: int) -> None:
        ahead = (sequence - self.highest) % 65536
        is_known = ssrc == self.ssrc
        if is_known and (ahead < 3000 or ahead > 65536 - 100):
            self.highest += ahead if ahead < 3000 else 0
            self.received += 1
        elif self.bad == (ssrc, sequence):
            self.begin(sequence, ssrc)
        elif self.bad and self.bad[0] != ssrc and not self.others:
            self.others = 1
        else:
            self.bad, self.others = (ssrc, (sequence + 1) % 65536), 0

    @property
    def counts(self) -> tuple[int, int]:
        expected = self.before + self.highest - self.base + 1
        return expected, expected - self.received


STEPS = st.one_of(
    st.just(1), st.integers(-3, 5), st.integers(-120, 3100), st.integers(-40000, 40000)
)


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 65535), st.lists(st.tuples(STEPS, st.sampled_from([7] * 9 + [8])), max_size=60)
)
def test_any_sequence(programs: Bench, first: int, steps: list[tuple[int, int]]) -> None:
    programs.clear()
    model, at, packets = Receiver(), first, []
    for step, ssrc in [(0, 7), *steps]:
        at = (at + step) % 65536
        model.hear(at, ssrc)
        packets.append(media(at, ssrc))
    rtp = hear(programs, *packets)
    assert counts(rtp) == model.counts if model.received else rtp is None
