"""Loss, jitter and gaps of real streams: what the programs keep, and what tshark says of the same
packets, caught beside them."""

import itertools
import json
import random
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.telephony import Capture
from tests.support.wire import Wire, udp

MUSIC = f"{UCM}:24576"


@pytest.fixture(autouse=True)
def _tshark() -> None:
    if not shutil.which("tshark"):
        pytest.fail("this takes tshark: apt install tshark")


@dataclass(frozen=True)
class Line:
    """A stream in `tshark -z rtp,streams`; deltas and jitters in ms."""

    ssrc: int
    codec: str
    packets: int
    lost: int
    longest_gap: float
    mean_jitter: float
    max_jitter: float


def analysed(capture: Capture, port: int) -> dict[int, Line]:
    """By SSRC."""
    said = capture.tshark("-q", "-z", "rtp,streams", "-d", f"udp.port=={port},rtp")
    found = {}
    for row in (line.split() for line in said.splitlines() if " 0x" in line):
        # Start, end, from, port, to, port, SSRC, codec, packets, lost, (%), delta and jitter: min,
        # mean, max
        ssrc = int(row[6], 16)
        numbers = [float(each) for each in row[11:17]]
        found[ssrc] = Line(ssrc, row[7], int(row[8]), int(row[9]), numbers[2], *numbers[4:6])
    return found


def payload(sequence: int, timestamp: int, ssrc: int, payload_type: int) -> bytes:
    header = struct.pack("!BBHII", 0x80, payload_type, sequence % 65536, timestamp % 2**32, ssrc)
    return header + b"\xff" * 160


@dataclass(frozen=True)
class Stream:
    """20 ms a packet, sent up to `late` seconds after its time; numbers in `lost` are not sent."""

    ssrc: int
    first: int
    count: int
    payload_type: int = 0
    rate: int = 8000
    late: float = 0.0
    lost: frozenset[int] = frozenset()

    def play(self, wire: Wire, source: str, destination: str) -> float:
        """Returns for how many seconds it was held up, at most."""
        chance, start = random.Random(self.ssrc), time.monotonic()
        held_up = 0.0
        for n in range(self.count):
            packet = payload(
                self.first + n, 1000 + n * self.rate // 50, self.ssrc, self.payload_type
            )
            due = start + n * 0.02 + chance.random() * self.late
            time.sleep(max(0.0, due - time.monotonic()))  # that is the stream's own pace
            if n not in self.lost:
                wire.send(udp(source, destination, packet))
            held_up = max(held_up, time.monotonic() - due)
        return held_up


@contextmanager
def captured(fw: Firewall, interface: str, directory: Path) -> Iterator[Capture]:
    """To the last packet."""
    capture = Capture(fw.namespace, directory, interface, interface)
    try:
        yield capture
        capture.catch_up()
    finally:
        capture.close()


def only(fw: Firewall) -> dict[str, Any]:
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    return peer


def test_agrees_with_tshark(fw: Firewall, tmp_path: Path) -> None:
    """Both directions, each with a loss, jitter, a change of source and the end of 16 bits."""
    fw.attach("--timeout", "60s")
    destination = f"{PUBLIC}:4000"
    inbound = Stream(0xABCD1234, 65500, 100, late=0.012, lost=frozenset({7, 8, 60}))
    outbound = Stream(0x11112222, 40, 100, payload_type=8, late=0.03, lost=frozenset({50}))
    after = Stream(0x33334444, 9000, 60, payload_type=8, late=0.005, lost=frozenset({10, 20}))
    with captured(fw, "wan", tmp_path) as at_wan, captured(fw, "lan", tmp_path) as at_lan:
        inbound.play(fw.wan, PROVIDER, destination)
        outbound.play(fw.lan, MUSIC, PROVIDER)
        heard = only(fw)
        after.play(fw.lan, MUSIC, PROVIDER)
        then = only(fw)
        assert len(fw.wan.sent()) == 99 + 58

    line = analysed(at_wan, 4000)[inbound.ssrc]
    assert_agrees(heard["inbound"]["rtp"], line, expected=100)
    lines = analysed(at_lan, 24576)
    assert_agrees(heard["outbound"]["rtp"], lines[outbound.ssrc], expected=100)
    last = then["outbound"]["rtp"]
    assert (last["ssrc"], last["expected"], last["lost"]) == (after.ssrc, 160, 3)
    assert last["jitter_ms"] == pytest.approx(recomputed(at_lan, after), abs=0.3)
    assert heard["outbound"]["rtp"]["jitter_ms"] == pytest.approx(
        recomputed(at_lan, outbound), abs=0.3
    )
    assert heard["inbound"]["rtp"]["jitter_ms"] == pytest.approx(
        recomputed(at_wan, inbound), abs=0.3
    )


def assert_agrees(rtp: dict[str, Any], line: Line, expected: int) -> None:
    assert rtp["ssrc"] == line.ssrc
    assert (rtp["expected"], rtp["lost"]) == (expected, line.lost)
    assert line.codec == {0: "g711U", 8: "g711A"}[rtp["payload_type"]]
    assert rtp["longest_gap_ms"] == pytest.approx(line.longest_gap, abs=0.5)
    assert 0 < rtp["jitter_ms"] <= line.max_jitter + 0.3
    assert 1 < rtp["mos_estimate"] < 4.4


def recomputed(capture: Capture, stream: Stream) -> float:
    """RFC 3550, A.8, in ms, from the capture's times of this stream's packets. Those with the
    timestamp of the one before are of the same frame, or digit (RFC 4733)."""
    port = 4000 if capture.file.name.startswith("wan") else 24576
    said = capture.tshark(
        "-d", f"udp.port=={port},rtp", "-Y", f"rtp.ssrc=={stream.ssrc:#x}",
        "-T", "fields", "-e", "frame.time_epoch", "-e", "rtp.timestamp",
    )  # fmt: skip
    rows = [line.split() for line in said.splitlines()]
    times = [(float(at), int(stamp)) for at, stamp in rows]
    jitter = 0.0
    firsts = [next(same) for _, same in itertools.groupby(times, key=lambda each: each[1])]
    for (before, old), (now, new) in itertools.pairwise(firsts):
        jitter += (abs(now - before - (new - old) / stream.rate) - jitter) / 16
    return jitter * 1e3


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_clock_of_a_dynamic_payload_type(fw: Firewall, tmp_path: Path, rate: int) -> None:
    """By another one, each packet would add some ms. What was before it was known is forgotten."""
    fw.attach("--timeout", "60s")
    for ssrc in range(0x5555, 0x555F):
        stream = Stream(ssrc, 1, 200, payload_type=111, rate=rate, late=0.004)
        with captured(fw, "wan", tmp_path) as at_wan:
            held_up = stream.play(fw.wan, PROVIDER, f"{PUBLIC}:4000")
        if held_up < 0.1:  # which would be another clock for a while
            break
    rtp = only(fw)["inbound"]["rtp"]
    assert rtp["jitter_ms"] == pytest.approx(recomputed(at_wan, stream), abs=0.3)
    assert rtp["mos_estimate"] is None


def test_a_dtmf_digit_is_no_jitter(fw: Firewall, tmp_path: Path) -> None:
    """RFC 4733: all packets of a digit have its beginning for their timestamp. Each of them would
    have added 20 ms, and the next of voice 400 ms."""
    fw.attach("--timeout", "60s")
    start, stream = time.monotonic(), Stream(9, 0, 60)
    with captured(fw, "wan", tmp_path) as at_wan:
        for n in range(stream.count):
            digit = 20 <= n < 40
            stamp = (20 if digit else n) * 160
            time.sleep(max(0.0, start + n * 0.02 - time.monotonic()))
            packet = payload(n, stamp, stream.ssrc, 101 if digit else 0)
            fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000", packet))
    rtp = only(fw)["inbound"]["rtp"]
    assert rtp["jitter_ms"] == pytest.approx(recomputed(at_wan, stream), abs=0.3)


def test_switched_off(fw: Firewall) -> None:
    fw.attach("--timeout", "60s", "--no-quality")
    fw.wan.send(*[udp(PROVIDER, f"{PUBLIC}:4000")] * 2)
    fw.lan.send(udp(MUSIC, PROVIDER))
    peer = only(fw)
    assert (peer["inbound"]["packets"], peer["inbound"]["rtp"]) == (2, None)
    assert (peer["outbound"]["packets"], peer["outbound"]["rtp"]) == (1, None)
    assert peer["outbound"]["age"] < 10


def test_switched_on_and_off_under_a_stream(fw: Firewall) -> None:
    """A replacing attach goes on with the peers, whichever it was."""
    fw.attach("--timeout", "60s")
    for n in range(3):
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000", payload(n, n * 160, 9, 0)))
    fw.attach("--timeout", "60s", "--no-quality")
    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000", payload(3, 3 * 160, 9, 0)))
    fw.attach("--timeout", "60s")
    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000", payload(4, 4 * 160, 9, 0)))
    rtp = only(fw)["inbound"]["rtp"]
    assert (rtp["expected"], only(fw)["inbound"]["packets"]) == (5, 5)
