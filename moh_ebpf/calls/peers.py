"""From maps to meaning: a snapshot of the peers and counters, and rates between two snapshots.

Pure: nothing here asks the kernel or the clock. Times are ns of CLOCK_MONOTONIC in the maps and
seconds here.
"""

import gc
import heapq
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import inet_ntoa
from types import MappingProxyType
from typing import Any, NamedTuple

from moh_ebpf import layout
from moh_ebpf.calls import rtp
from moh_ebpf.calls.rtp import Rtp
from moh_ebpf.layout import Evidence, State

_NS = 1e-9

# Media come every 20 to 60 ms, comfort noise about once a second: a longer silence is dead air.
SILENT_SECONDS = 2.0
# A WAN whose last packet passed unheard for longer ago is closed again: UCM's RTCP is the slowest
# that passes, about one report in five seconds.
OPEN_SECONDS = 10.0
# An MOH state counts no longer than that after learn has fallen silent: longer than from one
# OPTIONS of a quiet trunk to the next.
LONGEST_DEAF_HOLD_SECONDS = 90.0
# RTCP takes over without a change from RTP that expired so lately.
GOES_ON_SECONDS = 0.1


class Known(NamedTuple):
    """What counts of a peer: its struct heard, when that was said last and until when it counts, in
    ns of CLOCK_MONOTONIC, and by what it is known. `at` 0: signalling alone says it."""

    heard: bytes
    at: int
    until: int
    evidence: Evidence


class SipCall(NamedTuple):
    """The call that signalling names an endpoint in. Its numbers are None unless they are asked for
    (show_numbers)."""

    call_id: str
    caller: str | None = None
    called: str | None = None


# What no Call-ID and no number has by rights (RFC 3261, 25.1), and what a terminal or a log might
# obey: strangers have sent it.
_UNPRINTABLE = re.compile(rb"[^ -~]")


def call_of(call_id: bytes, caller: bytes, called: bytes) -> SipCall:
    """From the texts of a struct signalled."""
    texts = [
        _UNPRINTABLE.sub(b"?", each.rstrip(b"\0")).decode() for each in (call_id, caller, called)
    ]
    return SipCall(texts[0], texts[1] or None, texts[2] or None)


# The public address where nobody knows it: there are several, and signalling alone tells of a call.
_NOWHERE = "0.0.0.0"
_SILENT = bytes(layout.HEARD.size)
_STATE = layout.HEARD_STATE


def known(
    heard: bytes,
    last_seen: int,
    signalled: bytes,
    signalled_until: int,
    by_rtcp: bytes,
    rtcp_at: int,
    *,
    now: int,
    timeout: int,
    rtcp_timeout: int,
) -> Known:
    """Signalling, unless RTP that is heard says the same; then RTP, or the RTCP that has decided
    since about what UCM sent; where that is forgotten, RTP, as long as that is not. Times are ns,
    those of a struct peer."""
    until, rtcp_until = last_seen + timeout, rtcp_at + rtcp_timeout
    own_until = rtcp_until if by_rtcp[_STATE] else until
    is_last = signalled[_STATE] and signalled_until > max(own_until, 0) and signalled_until <= now
    if is_last or not (heard[_STATE] or by_rtcp[_STATE]):
        return Known(signalled, 0, signalled_until, Evidence.SIGNALLING)
    if signalled[_STATE] and now < signalled_until:
        agrees = heard[_STATE] == signalled[_STATE]
        evidence = Evidence.RTP if agrees and now < until else Evidence.SIGNALLING
        at = last_seen if heard[_STATE] else 0
        return Known(heard if agrees else signalled, at, signalled_until, evidence)
    counts = rtcp_timeout and (now < rtcp_until or until <= now)
    if by_rtcp[_STATE] and (counts or not heard[_STATE]):
        return Known(by_rtcp, rtcp_at, rtcp_until, Evidence.RTCP)
    return Known(heard, last_seen, until, Evidence.RTP)


class Peer(NamedTuple):
    """A provider endpoint as one snapshot shows it.

    `age` is the time since the last packet that counts, `since` the time since its state began,
    both in seconds; `identified` says by what it is known: by its RTP, by signalling where RTP is
    silent or says otherwise, or by its RTCP where neither does; `expired` when the time of that is
    over: it is forgotten, and what goes to it waits for it to be heard. `interface` is empty where
    the routes are to say by which it leaves. Bytes are those of whole IP packets. `out_age` is the
    time since the last packet sent to it, in seconds; None: none was. `in_rtp` and `out_rtp` are
    None where no RTP was seen, or its quality is not kept.
    """

    address: str
    port: int
    state: State
    expired: bool
    public_address: str
    public_port: int
    interface: str
    age: float
    since: float
    longest_gap: float
    in_packets: int
    in_bytes: int
    out_packets: int
    out_bytes: int
    out_age: float | None = None
    in_rtp: Rtp | None = None
    out_rtp: Rtp | None = None
    identified: Evidence = Evidence.RTP
    call: SipCall | None = None

    def is_silent(self, phantom_port: int) -> bool:
        """Dead air: on hold, no music has been sent to it for SILENT_SECONDS, or, in a two-way
        call, one direction has been silent so long. Endpoints that send only RTCP are not counted;
        one that is forgotten is taken for one that UCM still sends to."""
        if self.expired:
            return self.age >= SILENT_SECONDS
        outbound = min(self.since, math.inf if self.out_age is None else self.out_age)
        if self.state is State.MOH:
            return self.public_port == phantom_port and outbound >= SILENT_SECONDS
        return self.in_rtp is not None and max(outbound, self.age) >= SILENT_SECONDS

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def public(self) -> str:
        return f"{self.public_address}:{self.public_port}"

    def to_json(self) -> dict[str, Any]:
        """One object of `peers --json`."""
        return {
            "address": self.address,
            "port": self.port,
            "state": self.state.name.lower(),
            "identified": self.identified.name.lower(),
            "expired": self.expired,
            "public_address": None if self.public_address == _NOWHERE else self.public_address,
            "public_port": self.public_port,
            "interface": self.interface or None,
            "call_id": self.call and self.call.call_id,
            "caller": self.call and self.call.caller,
            "called": self.call and self.call.called,
            "age": round(self.age, 6),
            "since": round(self.since, 6),
            "longest_gap": round(self.longest_gap, 6),
            "inbound": {
                "packets": self.in_packets,
                "bytes": self.in_bytes,
                "rtp": self.in_rtp and self.in_rtp.to_json(),
            },
            "outbound": {
                "packets": self.out_packets,
                "bytes": self.out_bytes,
                "age": self.out_age and round(self.out_age, 6),
                "rtp": self.out_rtp and self.out_rtp.to_json(),
            },
        }


class Wait(NamedTuple):
    """An endpoint that UCM sends to without its being heard: `waited` seconds by now, how many
    packets were `dropped` meanwhile, and whether they pass by now."""

    address: str
    port: int
    waited: float
    dropped: int
    passes: bool

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"


class Wan(NamedTuple):
    """What is known of a WAN at one moment, in seconds: `learn_age` since learn last read a packet
    there, `open_age` since UCM's RTP last passed although its endpoint was not heard (None: never),
    `blind_for` since learn fell silent while UCM sends (None: it is not blind)."""

    interface: str
    learn_age: float | None
    open_age: float | None
    blind_for: float | None

    @property
    def is_blind(self) -> bool:
        """Does UCM's RTP pass because learn sees nothing there?"""
        return self.blind_for is not None and self.is_failing_open

    @property
    def is_failing_open(self) -> bool:
        """Has UCM's RTP passed there lately that is held back by rights?"""
        return self.open_age is not None and self.open_age < OPEN_SECONDS

    def to_json(self) -> dict[str, Any]:
        """One object of `wans` in `status --json`."""
        return {
            "interface": self.interface,
            "learn_age": None if self.learn_age is None else round(self.learn_age, 3),
            "failing_open": self.is_failing_open,
            "blind": self.is_blind,
            "blind_for": None if self.blind_for is None else round(self.blind_for, 3),
        }


@dataclass(frozen=True)
class Snapshot:
    """Peers, counters and WANs at one moment; `time` in seconds of CLOCK_MONOTONIC."""

    time: float
    peers: list[Peer]
    counters: Mapping[str, int]
    wans: Sequence[Wan] = ()


class PeerRate(NamedTuple):
    """Packets per second in and out."""

    inbound: float
    outbound: float


@dataclass(frozen=True)
class Rates:
    """What changed between two snapshots, per second; peers by endpoint."""

    peers: Mapping[str, PeerRate]
    counters: Mapping[str, float]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Among a hundred thousand objects that all stay, the collector finds nothing, again and again:
    that would take as long as making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_collection()
def decode(
    entries: Iterable[tuple[tuple[Any, ...], tuple[Any, ...]]],
    *,
    now: int,
    timeout: float,
    interfaces: Mapping[int, str],
    rtcp_timeout: float = 0.0,
    quality: bool = True,
    forgotten_for: float = math.inf,
    deaf: Collection[int] = (),
    untold: bool = False,
    signalling: bool = True,
    calls: Mapping[tuple[bytes, bytes], SipCall] = MappingProxyType({}),
) -> list[Peer]:
    """Peers from unpacked struct endpoints and struct peers, in the map's order.

    What may be noise is left out, unless `untold` is wanted: endpoints that readers are not told
    of. The map keeps every peer until it is full, so most are of calls long past: those that have
    been forgotten for `forgotten_for` seconds are left out, at little cost.

    `now` is CLOCK_MONOTONIC in ns, read after the map or before it: a peer seen later than `now`
    has age 0. `timeout` and `rtcp_timeout` are in seconds; `interfaces` names a WAN by its index.
    Without `signalling`, what it has said counts no more. `calls` are those that it knows, by
    struct endpoint. On a WAN that is `deaf`, a hold ends before its timeout, unless signalling says
    it. Without `quality`, what is kept of the streams is none.
    """
    unpack_heard = layout.HEARD.unpack
    from_bytes = int.from_bytes
    timeout_ns, rtcp_timeout_ns = round(timeout / _NS), round(rtcp_timeout / _NS)
    longest_ago = now - (math.inf if math.isinf(forgotten_for) else round(forgotten_for / _NS))
    peers = []
    for (address, port), values in entries:
        heard, last_seen, began, is_told, said, _, said_until, *rest = values
        if not (is_told or untold):
            continue
        _, _, _, _, _, by_rtcp, rtcp_at, gap, *rest = rest
        heard, at, until, evidence = known(
            *(heard, last_seen, said if signalling else _SILENT, said_until, by_rtcp, rtcp_at),
            now=now,
            timeout=timeout_ns,
            rtcp_timeout=rtcp_timeout_ns,
        )
        if until <= longest_ago or not heard[_STATE]:
            continue  # forgotten, or nothing is known of it (yet)
        age = max(0, now - (at or began)) * _NS
        public_address, public_port, state, wan = unpack_heard(heard)
        is_deaf = (
            evidence is Evidence.RTP
            and until != said_until  # signalling will say its end
            and wan in deaf
            and state == State.MOH
            and age >= LONGEST_DEAF_HOLD_SECONDS
        )
        is_expired = until <= now or is_deaf
        if is_expired and not forgotten_for:
            continue
        in_packets, in_bytes, in_rtp, out_packets, out_bytes, out_last, *_, out_rtp = rest
        peers.append(
            Peer(
                inet_ntoa(address),
                from_bytes(port, "big"),
                State(state),
                is_expired,
                inet_ntoa(public_address),
                from_bytes(public_port, "big"),
                "" if wan == layout.NO_WAN else interfaces.get(wan, "(gone)"),
                age,
                max(0, now - began) * _NS,
                gap * _NS,
                in_packets,
                in_bytes,
                out_packets,
                out_bytes,
                max(0, now - out_last) * _NS if out_last else None,
                rtp.decode(in_rtp) if quality else None,
                rtp.decode(out_rtp) if quality else None,
                evidence,
                calls.get((address, port)),
            )
        )
    return peers


def by_interest(peers: Collection[Peer], most: int | None = None) -> list[Peer]:
    """Hold music on top, forgotten peers last; within that, the latest change of state first.

    The first few of 65,536 cost a tenth of what sorting them all does.
    """

    def interest(peer: Peer) -> tuple[bool, State, float, str, int]:
        return peer.expired, peer.state, peer.since, peer.address, peer.port

    return heapq.nsmallest(len(peers) if most is None else most, peers, interest)


def rates(before: Snapshot | None, after: Snapshot) -> Rates:
    """Rates per second between two snapshots; none where there is no earlier one.

    A peer's counters start anew when it was forgotten and comes back, and the programs' when they
    are attached anew: where a number shrank, it counted from 0.
    """
    seconds = after.time - before.time if before else 0.0
    if before is None or seconds <= 0:
        return Rates({}, {})

    def rate(new: int, old: int) -> float:
        return (new - old if new >= old else new) / seconds

    known = {peer.endpoint: peer for peer in before.peers}
    peers = {}
    for peer in after.peers:
        old = known.get(peer.endpoint)
        peers[peer.endpoint] = PeerRate(
            rate(peer.in_packets, old.in_packets if old else 0),
            rate(peer.out_packets, old.out_packets if old else 0),
        )
    return Rates(
        peers,
        {name: rate(value, before.counters.get(name, 0)) for name, value in after.counters.items()},
    )
