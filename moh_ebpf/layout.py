"""The Python side of bpf/layout.h: the maps' keys and values, and what each counter counts.

tests/packets/test_layout.py compares the two field by field; compiler.py refuses to go on
where the counters differ.
"""

import struct
import zlib
from enum import IntEnum


class State(IntEnum):
    """What a provider endpoint is in (enum state)."""

    MOH = 1
    TWO = 2


# struct endpoint: address and port in network byte order, two bytes of padding.
ENDPOINT = struct.Struct("=4s2s2x")

# struct heard: public address and port in network byte order, state, index of the WAN.
HEARD = struct.Struct("=4s2sBB")

# struct peer, in its order; times are ns of CLOCK_MONOTONIC, bytes those of whole IP packets.
PEER_FIELDS = (
    "heard",
    "last_seen",
    "since",
    "longest_gap",
    "in_packets",
    "in_bytes",
    "out_packets",
    "out_bytes",
    "hop_checked",
    "hop_dst",
    "hop_src",
)
PEER = struct.Struct(f"={HEARD.size}s{len(PEER_FIELDS) - 1}Q")

# struct prefix: length in bits, address in network byte order.
PREFIX = struct.Struct("=I4s")

# struct counters, in its order, and the one meaning of each.
COUNTERS = {
    "learned_moh": "endpoints that became known, or known again, by RTP to the phantom port",
    "learned_two": "endpoints that became known, or known again, by RTP to another port",
    "moh_to_two": "endpoints that went from hold to a two-way call",
    "two_to_moh": "endpoints that went from a two-way call on hold",
    "learn_failed": "inbound packets whose endpoint could not be stored (no memory)",
    "consumed": "inbound packets to the phantom ports, which end at the firewall",
    "rewritten": "hold music packets given their public source, by bypass or enforce",
    "bypassed": "of those, the ones that bypass sent straight to the WAN",
    "passed_two": "UCM's packets to endpoints in a two-way call",
    "passed_unnatted": "such packets seen leaving a WAN with UCM's own address",
    "dropped_unidentified": "UCM's packets to endpoints not known (yet): dropped",
    "dropped_too_big": "hold music too long for the WAN, without DF: dropped",
    "dropped_no_route": "hold music whose WAN has no route to its endpoint: dropped",
    "dropped_failed": "hold music whose rewrite failed (no memory): dropped",
    "left_to_stack": "hold music the firewall itself must answer: TTL over, not forwarded",
    "fragments": "UDP fragments to or from us: never touched, for they carry no ports",
}
COUNTERS_VALUE = struct.Struct(f"={len(COUNTERS)}Q")

# Names this layout in an attachment's record: maps of another are neither read nor shared.
ID = f"{zlib.crc32(repr([ENDPOINT.format, HEARD.format, PEER_FIELDS, *COUNTERS]).encode()):08x}"
