"""The Python side of bpf/layout.h: the maps' keys and values.

tests/packets/test_layout.py compares the two field by field; compiler.py refuses to go on
where the counters differ.
"""

import struct
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """What an event tells (enum event_kind)."""

    LEARNED = 1
    CHANGED = 2
    MUSIC = 3
    UNHEARD = 4
    BLIND = 5
    SEEING = 6
    UNSIGNALLED = 7


class State(IntEnum):
    """What a provider endpoint is in (enum state)."""

    MOH = 1
    TWO = 2


class Evidence(IntEnum):
    """By what an endpoint's state is known (enum evidence)."""

    RTP = 1
    RTCP = 2
    SIGNALLING = 3


# struct endpoint: address and port in network byte order, two bytes of padding.
ENDPOINT = struct.Struct("=4s2s2x")

# struct anothers: address, port and public port in network byte order.
ANOTHERS = struct.Struct("=4s2s2s")

# struct report: struct heard, and ns of CLOCK_MONOTONIC.
REPORT = struct.Struct("=8sQ")

# struct heard: public address and port in network byte order, state, index of the WAN.
HEARD = struct.Struct("=4s2sBB")
HEARD_STATE = 6  # the offset of its state; a state of 0: never heard

# struct rtp, in its order; times are ns, the SSRC is in network byte order.
RTP_FIELDS = (
    "arrival",
    "longest_gap",
    "jitter",
    "began",
    "timed",
    "timestamp",
    "first_timestamp",
    "ssrc",
    "odd_ssrc",
    "odd_sequence",
    "odd_datagrams",
    "odd_others",
    "expected",
    "received",
    "tick",
    "last_sequence",
    "payload_type",
)
RTP = struct.Struct("=5Q2I4s4s2H4I2H")

# struct peer, in its order; times are ns of CLOCK_MONOTONIC, bytes those of whole IP packets.
PEER_FIELDS = (
    "heard",
    "last_seen",
    "since",
    "told",
    "signalled",
    "signalled_at",
    "signalled_until",
    "turned",
    "gainsaid",
    "moved",
    "moved_ssrc",
    "moved_sequence",
    "by_rtcp",
    "rtcp_at",
    "longest_gap",
    "in_packets",
    "in_bytes",
    "in_rtp",
    "out_packets",
    "out_bytes",
    "out_last",
    "out_first",
    "out_from",
    "out_before",
    "new_since",
    "new_last",
    "new_held",
    "hop_checked",
    "hop_dst",
    "hop_src",
    "out_rtp",
)
PEER = struct.Struct(
    f"={HEARD.size}s3Q{HEARD.size}s5Q4sI{HEARD.size}s4Q{RTP.size}s4Q{ENDPOINT.size}s{ENDPOINT.size}s6Q{RTP.size}s"
)


def by_field(peer: tuple[Any, ...]) -> dict[str, Any]:
    """An unpacked struct peer by the names of its fields."""
    return dict(zip(PEER_FIELDS, peer, strict=True))


# struct event, in its order; times are ns, address and port in network byte order.
EVENT_FIELDS = (
    "time",
    "heard",
    "lasted",
    "dropped",
    "address",
    "port",
    "kind",
    "before",
    "evidence",
)
EVENT = struct.Struct(f"=Q{HEARD.size}sQQ4s2sBBQ")

# struct waiting, in its order: when UCM's first and last packet came, in ns of CLOCK_MONOTONIC, how
# many were dropped, when the first one passed (0: none), WAITING_ flags; of the last packet UCM's
# struct endpoint, SSRC (network byte order), the sequence number after it, payload type.
WAITING = struct.Struct(f"=5Q{ENDPOINT.size}s4s2H")
WAITING_NO_MEDIA = 2 | 4  # of RTCP alone, or of a flow that is not RTP

# struct signalled, in its order: struct heard, UCM's struct endpoint, since when and until when in
# ns of CLOCK_MONOTONIC, the dialog's name; the Call-ID, and the numbers of caller and called, zeros
# at their ends.
SIGNALLED_FIELDS = ("heard", "from", "at", "until", "dialog", "call_id", "caller", "called")
SIGNALLED = struct.Struct(f"={HEARD.size}s{ENDPOINT.size}sQQQ128s32s32s")
NO_WAN = 0xFF  # in a struct heard of signalling: the routes say by which WAN

# struct wan, in its order; times are ns of CLOCK_MONOTONIC, 0: never.
WAN_FIELDS = ("learn_at", "open_at", "stale_from", "blind_since")
WAN = struct.Struct("=4Q")


def index(number: int) -> bytes:
    """A key of an array: a u32 of this machine."""
    return struct.pack("=I", number)


# struct prefix: length in bits, address in network byte order.
PREFIX = struct.Struct("=I4s")

# struct sip_segment, sip_context and sip_holds (bpf/sip.h), which no command reads.
SIP = struct.Struct("=4s4s2s2sI128sQ5I12B8B2Q")
