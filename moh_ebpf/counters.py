"""The counters, a row each: what one counts, its metric, whether it means trouble.

The programs count per CPU, in struct counters (bpf/layout.h), whose order is that of the rows.
"""

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Counter:
    """`family` is that of its metric; where several share one, `label` is its own there, its name
    if it is empty. `is_trouble`: it ought not to grow. `remedy`: what to try then, for doctor."""

    name: str
    family: str
    meaning: str
    label: str = ""
    is_trouble: bool = False
    remedy: str = ""


# fmt: off
_ROWS = (
    Counter("learned_moh", "state_changes",
        meaning="endpoints told of that became known, or known again, on hold"),
    Counter("learned_two", "state_changes",
        meaning="endpoints told of that became known, or known again, in a two-way call"),
    Counter("moh_to_two", "state_changes",
        meaning="endpoints that went from hold to a two-way call"),
    Counter("two_to_moh", "state_changes",
        meaning="endpoints that went from a two-way call on hold"),
    Counter("learn_failed", "learn_failures", is_trouble=True,
        meaning="inbound packets whose endpoint could not be stored (no memory)",
        remedy="a larger --max-peers: the map had no element to spare"),
    Counter("consumed", "packets",
        meaning="inbound packets to the phantom ports, which end at the firewall"),
    Counter("rewritten", "packets",
        meaning="hold music packets given their public source, by bypass or enforce"),
    Counter("bypassed", "bypassed_packets",
        meaning="hold music packets that bypass sent straight to the WAN"),
    Counter("passed_two", "packets",
        meaning="UCM's packets to endpoints in a two-way call"),
    Counter("passed_unnatted", "unnatted_packets", is_trouble=True,
        meaning="two-way packets seen leaving a WAN with UCM's own address"),
    Counter("dropped_unidentified", "packets", is_trouble=True,
        meaning="UCM's packets to endpoints not known (yet): dropped"),
    Counter("dropped_too_big", "packets", is_trouble=True,
        meaning="hold music too long for the WAN, without DF: dropped",
        remedy="a larger MTU on the WAN, or a shorter packet time in UCM"),
    Counter("dropped_failed", "packets", is_trouble=True,
        meaning="hold music whose rewrite failed (no memory): dropped",
        remedy="free memory"),
    Counter("left_to_stack", "packets",
        meaning="hold music the firewall itself must answer: TTL over, not forwarded"),
    Counter("routed_elsewhere", "packets", is_trouble=True,
        meaning="hold music whose route leaves by no WAN: left to the stack",
        remedy="ip route get ENDPOINT from UCM iif LAN; a rule by mark is not seen, one by "
        "address or interface is: ip rule add from UCM lookup TABLE"),
    Counter("passed_blind", "packets", is_trouble=True,
        meaning="UCM's packets to endpoints not heard, as learn is blind on the WAN: passed"),
    Counter("passed_unheard", "packets", is_trouble=True,
        meaning="UCM's packets to endpoints not heard for longer than the patience: passed"),
    Counter("passed_no_rtp", "packets",
        meaning="UCM's packets that looked like RTP, and whose flow is not RTP: passed"),
    Counter("passed_anothers", "packets",
        meaning="packets to a phantom port that were another host's connection: passed"),
    Counter("held_back", "packets",
        meaning="UCM's packets from a new port, to an endpoint in a call: dropped, 0.2 s at most"),
    Counter("fragments", "fragments",
        meaning="UDP fragments to or from us: never touched, for they carry no ports"),
    Counter("rtp_in_expected", "rtp_packets_expected", label="in",
        meaning="inbound RTP that its sequence numbers tell of, come or not"),
    Counter("rtp_in_lost", "rtp_packets_lost", label="in",
        meaning="inbound RTP skipped in its sequence, whether it came late or not at all"),
    Counter("rtp_in_late", "rtp_packets_late", label="in",
        meaning="inbound RTP that came after its successors, or twice"),
    Counter("rtp_out_expected", "rtp_packets_expected", label="out",
        meaning="UCM's RTP that its sequence numbers tell of, come or not"),
    Counter("rtp_out_lost", "rtp_packets_lost", label="out",
        meaning="UCM's RTP skipped in its sequence, whether it came late or not at all"),
    Counter("rtp_out_late", "rtp_packets_late", label="out",
        meaning="UCM's RTP that came after its successors, or twice"),
    Counter("sip_flipped", "sip_packets", label="flipped",
        meaning="SDP of UCM's whose hold was turned from sendonly into sendrecv"),
    Counter("sip_restored", "sip_packets", label="restored",
        meaning="SDP of the provider's for such a hold, turned from sendrecv into recvonly"),
    Counter("sip_split", "sip_packets", label="split",
        meaning="SIP left as it is: the direction of its SDP may be where it cannot be read"),
    Counter("sip_undirected", "sip_packets", label="undirected",
        meaning="answers to a hold that have no direction, which means sendrecv: left as is"),
    Counter("events_unread", "events_unread",
        meaning="events for which there was no room, for nobody reads them"),
)
# fmt: on
COUNTERS = {each.name: each for each in _ROWS}

# Counters of earlier versions, by the family of their metric: what they counted no longer happens.
# Readers find them at 0.
RETIRED = {"dropped_no_route": "packets"}

# struct counters
VALUE = struct.Struct(f"={len(COUNTERS)}Q")
