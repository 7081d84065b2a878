"""What is made of a struct rtp: counts, names, and the estimate."""

import pytest

from moh_ebpf import layout
from moh_ebpf.calls import rtp
from moh_ebpf.calls.rtp import Rtp
from tests.support.samples import about


def made(**fields: object) -> bytes:
    values: dict[str, object] = dict.fromkeys(layout.RTP_FIELDS, 0)
    return layout.RTP.pack(
        *(values | {"ssrc": b"\x11\x22\x33\x44", "odd_ssrc": bytes(4)} | fields).values()
    )


def stream(payload_type: int = 0, loss: float = 0.0, jitter: float | None = 0.0) -> Rtp:
    return Rtp(7, payload_type, 1000, round(loss * 1000), jitter, 0.02)


def test_nothing_seen_is_nothing() -> None:
    assert rtp.decode(made()) is None


def test_decode() -> None:
    decoded = rtp.decode(
        made(received=8, expected=15, last_sequence=65535, tick=125000, payload_type=18,
             jitter=16 * 2_500_000, longest_gap=41_000_000)
    )  # fmt: skip
    assert decoded == Rtp(0x11223344, 18, 15, 7, about(0.0025), about(0.041))


def test_json_has_the_fields_of_the_interface() -> None:
    assert stream(jitter=0.00123456).to_json() == {
        "ssrc": 7, "payload_type": 0, "expected": 1000, "lost": 0, "jitter_ms": 1.235,
        "longest_gap_ms": 20.0, "mos_estimate": 4.39,
    }  # fmt: skip
    assert stream(jitter=None).to_json()["jitter_ms"] is None


def test_mos_of_the_codecs_at_their_best() -> None:
    """Without loss and jitter: G.711 as good as a call gets, G.729 below."""
    assert (
        rtp.estimated_mos(stream(0)) == rtp.estimated_mos(stream(8)) == pytest.approx(4.4, abs=0.02)
    )
    assert rtp.estimated_mos(stream(18)) == pytest.approx(4.1, abs=0.05)


def mos(of: Rtp) -> float:
    estimated = rtp.estimated_mos(of)
    assert estimated is not None
    return estimated


def test_mos_falls_with_loss_and_with_jitter() -> None:
    by_loss = [mos(stream(loss=loss)) for loss in (0, 0.01, 0.05, 0.2, 0.9)]
    by_jitter = [mos(stream(jitter=each)) for each in (0, 0.02, 0.1, 0.5)]
    for values in (by_loss, by_jitter):
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == len(values)
        assert all(1 <= each <= 4.41 for each in values)


def test_mos_of_a_codec_without_figures() -> None:
    assert rtp.estimated_mos(stream(9)) is None
    assert rtp.estimated_mos(stream(111)) is None


def test_more_than_was_expected_is_no_loss() -> None:
    assert Rtp(7, 0, 10, -3, 0.0, 0.0).loss == 0
