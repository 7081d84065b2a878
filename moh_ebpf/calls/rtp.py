"""How a stream of RTP sounds: what the kernel has kept of it (bpf/rtp.h), and an estimate.

Pure: nothing here asks the kernel or the clock.
"""

from typing import Any, NamedTuple

from moh_ebpf import layout

# RFC 3551, tables 4 and 5: the static payload types.
CODECS = {
    0: "PCMU", 3: "GSM", 4: "G723", 5: "DVI4/8000", 6: "DVI4/16000", 7: "LPC", 8: "PCMA", 9: "G722",
    10: "L16/2", 11: "L16", 12: "QCELP", 13: "CN", 14: "MPA", 15: "G728", 16: "DVI4/11025",
    17: "DVI4/22050", 18: "G729", 25: "CelB", 26: "JPEG", 28: "nv", 31: "H261", 32: "MPV",
    33: "MP2T", 34: "H263",
}  # fmt: skip

# ITU-T G.113, appendix I: a codec's equipment impairment Ie and its robustness to loss Bpl, the
# latter with the receiver's concealment of lost packets.
_IMPAIRMENTS = {0: (0.0, 25.1), 8: (0.0, 25.1), 18: (11.0, 19.0), 4: (15.0, 16.1)}

# ITU-T G.107, all else at its default: R of a call without delay, loss and codec.
_BEST = 93.2
# From mouth to ear without the network: 20 ms in a packet, and as much in either device.
_DEVICES_MS = 40.0
# A playout buffer that loses next to nothing is about so many times as long as the jitter.
_BUFFER_JITTERS = 2.0


class Rtp(NamedTuple):
    """One direction of an endpoint's RTP, over all streams since the endpoint became known.

    `ssrc`, `payload_type` and `jitter` are the present stream's. `expected` and `lost` are packets
    by their sequence numbers (RFC 3550, A.3): packets that come twice make `lost` smaller.
    `jitter` (A.8) and `longest_gap` are in seconds; `jitter` is None while the media clock of a
    dynamic payload type is not known yet.
    """

    ssrc: int
    payload_type: int
    expected: int
    lost: int
    jitter: float | None
    longest_gap: float

    @property
    def codec(self) -> str:
        """The payload type's name in RFC 3551, or its number."""
        return CODECS.get(self.payload_type, str(self.payload_type))

    @property
    def loss(self) -> float:
        """Lost packets by expected ones, 0 to 1."""
        return max(self.lost, 0) / self.expected if self.expected else 0.0

    def to_json(self) -> dict[str, Any]:
        """`rtp` in `peers --json`."""
        mos = estimated_mos(self)
        return {
            "ssrc": self.ssrc,
            "payload_type": self.payload_type,
            "expected": self.expected,
            "lost": self.lost,
            "jitter_ms": None if self.jitter is None else round(self.jitter * 1e3, 3),
            "longest_gap_ms": round(self.longest_gap * 1e3, 3),
            "mos_estimate": None if mos is None else round(mos, 2),
        }


def decode(data: bytes) -> Rtp | None:
    """From a struct rtp; None if it has seen no packet."""
    values = layout.RTP.unpack(data)
    _, gap, jitter, _, _, _, _, ssrc, *_, expected, received, tick, _, payload_type = values
    if not received:
        return None
    return Rtp(
        int.from_bytes(ssrc, "big"),
        payload_type,
        expected,
        expected - received,
        jitter / 16e9 if tick else None,
        gap * 1e-9,
    )


def estimated_mos(stream: Rtp) -> float | None:
    """The mean opinion score that ITU-T's E-model (G.107) gives for this loss and jitter, 1 to 4.4.

    An estimate: delay beyond the jitter is not known here, loss is taken for random, and the
    receiver is taken to conceal it. R = 93.2 - Id - Ie_eff, with Id by Cole and Rosenbluth ("Voice
    over IP performance monitoring", 2001), Ie_eff by G.107 (7-29) and MOS by G.107 (B-4). None:
    G.113 has no figures for the codec, or the jitter is not known.
    """
    if stream.payload_type not in _IMPAIRMENTS or stream.jitter is None:
        return None
    codec, robustness = _IMPAIRMENTS[stream.payload_type]
    loss = 100.0 * stream.loss
    delay = _DEVICES_MS + _BUFFER_JITTERS * stream.jitter * 1e3
    by_delay = 0.024 * delay + 0.11 * max(delay - 177.3, 0.0)
    by_loss = codec + (95.0 - codec) * loss / (loss + robustness)
    r = min(max(_BEST - by_delay - by_loss, 0.0), 100.0)
    return max(1.0 + 0.035 * r + r * (r - 60.0) * (100.0 - r) * 7e-6, 1.0)
