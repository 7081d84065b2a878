"""The decision table once more, in plain Python: what the three programs must do, not how.

Written from the design and not from the C. It knows one firewall: a LAN and a WAN with Ethernet
headers, whose routes are given as a function. Time is a number of seconds that the tests move.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

UNSPEC, SHOT, REDIRECT = -1, 2, 7
MOH, TWO = "MOH", "TWO"

_ETHERNET = 14
_NO_PROVIDER = [
    IPv4Network(prefix)
    for prefix in (
        "0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "224.0.0.0/3",
    )
]  # fmt: skip


@dataclass
class Datagram:
    """A whole UDP datagram in IPv4, or a fragment of one (ports unknown)."""

    source: tuple[IPv4Address, int]
    destination: tuple[IPv4Address, int]
    length: int
    ttl: int
    header: int
    is_fragment: bool
    is_rtp: bool
    is_rtcp: bool


def destination_of(frame: bytes) -> IPv4Address | None:
    """Where an IPv4 packet of any protocol goes to; None for what is no IPv4."""
    if len(frame) < _ETHERNET + 20 or frame[12:14] != b"\x08\x00":
        return None
    ip = frame[_ETHERNET:]
    return IPv4Address(ip[16:20]) if ip[0] >> 4 == 4 and ip[0] & 15 >= 5 else None


def read(frame: bytes) -> Datagram | None:
    """None for what is no IPv4/UDP, or broken."""
    if len(frame) < _ETHERNET + 20 or frame[12:14] != b"\x08\x00":
        return None
    ip = frame[_ETHERNET:]
    version, header = ip[0] >> 4, (ip[0] & 15) * 4
    length = int.from_bytes(ip[2:4], "big")
    if version != 4 or header < 20 or ip[9] != 17 or not header <= length <= len(ip):
        return None
    source, destination = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    flags = int.from_bytes(ip[6:8], "big")
    if flags & 0x3FFF:
        return Datagram((source, 0), (destination, 0), length, ip[8], header, True, False, False)
    udp = ip[header:length]
    if len(udp) < 9:
        return None
    udp_length = int.from_bytes(udp[4:6], "big")
    if not 9 <= udp_length <= len(udp):
        return None
    return Datagram(
        (source, int.from_bytes(udp[0:2], "big")),
        (destination, int.from_bytes(udp[2:4], "big")),
        length,
        ip[8],
        header,
        False,
        128 <= udp[8] <= 191,
        udp_length > 9 and 192 <= udp[9] <= 223,
    )


@dataclass
class Peer:
    state: str
    public: tuple[IPv4Address, int]
    last_seen: float
    inbound: tuple[int, int] = (0, 0)
    outbound: tuple[int, int] = (0, 0)
    told: bool = False  # it has sent RTP
    sent: bool = False  # RTP was sent to it in its present state


@dataclass
class Wait:
    """UCM's RTP to an endpoint that is not heard."""

    first: float
    last: float
    passed: bool = False
    is_rtcp: bool = False


@dataclass
class Model:
    ucm: set[IPv4Address]
    public: set[IPv4Address]
    providers: list[IPv4Network]
    leaves_by_wan: Callable[[IPv4Address], bool]
    lan_mac: bytes
    port: int = 4000
    rtp_ports: tuple[int, int] = (16384, 32767)
    timeout: float = 10.0
    patience: float = 3.0
    now: float = 0.0
    # Of the WAN: when learn last read a packet there, and since when it is known to be blind.
    learned: float = -math.inf
    blind: bool = False
    opened: float = -math.inf
    stale_from: float = -math.inf
    waits: dict[tuple[IPv4Address, int], Wait] = field(default_factory=dict)
    peers: dict[tuple[IPv4Address, int], Peer] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)

    def may_teach(self, address: IPv4Address) -> bool:
        if self.providers:
            return any(address in prefix for prefix in self.providers)
        return not any(address in prefix for prefix in _NO_PROVIDER)

    def may_be_provider(self, address: IPv4Address) -> bool:
        return self.may_teach(address) or not any(address in prefix for prefix in _NO_PROVIDER)

    def learn(self, frame: bytes) -> tuple[int, bytes]:
        if destination_of(frame) in self.public:
            self.learned, self.blind = self.now, False
        datagram = read(frame)
        if (
            datagram is None
            or datagram.destination[0] not in self.public
            or not self.may_teach(datagram.source[0])
            or not (datagram.is_fragment or datagram.is_rtp)
        ):
            return UNSPEC, frame
        if datagram.is_fragment:
            self.counters["fragments"] += 1
            return UNSPEC, frame
        state = MOH if datagram.destination[1] in (self.port, self.port + 1) else TWO
        self._hear(datagram, state)
        if state == TWO:
            return UNSPEC, frame
        self.counters["consumed"] += 1
        return SHOT, frame

    def _hear(self, datagram: Datagram, state: str) -> None:
        peer = self.live(datagram.source)
        was_told = datagram.source in self.peers and self.peers[datagram.source].told
        if peer is None:
            self.counters[f"learned_{state.lower()}"] += 1
            peer = self.peers[datagram.source] = Peer(state, datagram.destination, self.now)
            peer.told = was_told
        elif peer.state != state:
            peer.sent = False
            self.counters["two_to_moh" if state == MOH else "moh_to_two"] += 1
        peer.state, peer.public, peer.last_seen = state, datagram.destination, self.now
        peer.told |= not datagram.is_rtcp
        peer.inbound = (peer.inbound[0] + 1, peer.inbound[1] + datagram.length)

    def live(self, endpoint: tuple[IPv4Address, int]) -> Peer | None:
        peer = self.peers.get(endpoint)
        return peer if peer and self.now - peer.last_seen < self.timeout else None

    def heard(self, datagram: Datagram) -> tuple[Peer | None, tuple[IPv4Address, int] | None]:
        """Who is sent to, and from where: RTCP whose own endpoint is forgotten goes with its RTP,
        to which it is the next port on either side."""
        peer = self.live(datagram.destination)
        if peer or not datagram.is_rtcp:
            return peer, peer and peer.public
        address, port = datagram.destination
        peer = self.live((address, port - 1))
        return peer, peer and (peer.public[0], peer.public[1] + 1)

    def enforce(self, frame: bytes) -> tuple[int, bytes]:
        datagram = self._ours(frame)
        if datagram is None:
            return UNSPEC, frame
        peer, source = self.heard(datagram)
        if peer is None and not self.may_be_provider(datagram.destination[0]):
            return UNSPEC, frame
        if peer is None:
            verdict = self._unheard(datagram)
            self.counters["passed_unnatted"] += verdict == UNSPEC
            return verdict, frame
        self._sent(peer, datagram)
        if peer.state == TWO:
            self.counters["passed_two"] += 1
            self.counters["passed_unnatted"] += 1
            return UNSPEC, frame
        self.counters["rewritten"] += 1
        return UNSPEC, rewrite(frame, datagram, source, hops=0)

    def bypass(self, frame: bytes) -> tuple[int, bytes]:
        if frame[:6] != self.lan_mac:
            return UNSPEC, frame
        datagram = self._ours(frame)
        if datagram is None:
            return UNSPEC, frame
        address = datagram.destination[0]
        peer, source = self.heard(datagram)
        if peer is None and not (self.may_be_provider(address) and self.leaves_by_wan(address)):
            return UNSPEC, frame
        if peer is None:
            return self._unheard(datagram), frame
        if peer.state == TWO:
            self._sent(peer, datagram)
            self.counters["passed_two"] += 1
            return UNSPEC, frame
        if datagram.ttl <= 1:
            self.counters["left_to_stack"] += 1
            return UNSPEC, frame
        if not self.leaves_by_wan(address):
            self.counters["routed_elsewhere"] += 1
            return UNSPEC, frame
        self._sent(peer, datagram)
        self.counters["rewritten"] += 1
        self.counters["bypassed"] += 1
        return REDIRECT, rewrite(frame, datagram, source, hops=1)

    def _ours(self, frame: bytes) -> Datagram | None:
        datagram = read(frame)
        if datagram is None or datagram.source[0] not in self.ucm:
            return None
        if datagram.is_fragment:
            self.counters["fragments"] += 1
            return None
        low, high = self.rtp_ports
        return datagram if datagram.is_rtp and low <= datagram.source[1] <= high else None

    def _unheard(self, datagram: Datagram) -> int:
        """It is dropped, unless learn is silent, or the endpoint for longer than the patience."""
        address, port = datagram.destination
        wait = self._wait(datagram)
        waited = self.now - wait.first
        endpoints = [(address, port), *([(address, port - 1)] if datagram.is_rtcp else [])]
        if any(self._is_stale_for(self.peers.get(each), waited) for each in endpoints):
            self._pass_stale()
            self.counters["passed_blind"] += 1
        elif waited >= self.patience:
            self.counters["passed_unheard"] += 1
        else:
            self.counters["dropped_unidentified"] += 1
            return SHOT
        wait.passed, self.opened = True, self.now
        return UNSPEC

    def _pass_stale(self) -> None:
        """The WAN is blind when that has gone on for 10 s without a pause."""
        if not self.blind and (self.now - self.opened >= 2 or self.learned > self.stale_from):
            self.stale_from = self.now
        self.blind |= self.now - self.stale_from >= 10.0

    def _is_stale_for(self, peer: Peer | None, waited: float) -> bool:
        if self.now - self.learned < 0.8:
            return False
        fell_silent_with_learn = peer and self.learned - peer.last_seen < self.timeout
        is_call = fell_silent_with_learn and peer and peer.state == TWO
        return is_call or waited > 1.0 or self.blind

    def _wait(self, datagram: Datagram) -> Wait:
        """A packet begins a wait, or goes on with it; RTCP shares that of its RTP."""
        address, port = datagram.destination
        if datagram.is_rtcp and (shared := self._present_wait((address, port - 1))):
            return shared
        wait = self._present_wait((address, port))
        if wait is None:
            wait = self.waits[address, port] = Wait(self.now, self.now, is_rtcp=datagram.is_rtcp)
        if not datagram.is_rtcp:
            wait.is_rtcp = False
        if wait.is_rtcp == datagram.is_rtcp:
            wait.last = self.now
        return wait

    def _present_wait(self, endpoint: tuple[IPv4Address, int]) -> Wait | None:
        wait, peer = self.waits.get(endpoint), self.peers.get(endpoint)
        if wait is None or self.now - wait.last > 10.0:
            return None
        was_heard = peer is not None and peer.last_seen > wait.first
        goes_on = peer is not None and peer.state == TWO and wait.passed
        return wait if goes_on or not was_heard else None

    def _sent(self, peer: Peer, datagram: Datagram) -> None:
        """The first packet of a state ends the wait, but for a call that has passed before."""
        if not datagram.is_rtcp and peer.told and not peer.sent:
            peer.sent = True
            wait = self.waits.get(datagram.destination)
            if wait and (peer.state == MOH or not wait.passed):
                del self.waits[datagram.destination]
        peer.outbound = (peer.outbound[0] + 1, peer.outbound[1] + datagram.length)


def rewrite(frame: bytes, datagram: Datagram, source: tuple[IPv4Address, int], hops: int) -> bytes:
    """Source and TTL changed. A right checksum is right afterwards, a wrong one off by as much."""
    before = bytearray(frame[_ETHERNET:])
    after = bytearray(before)
    udp = datagram.header
    after[8] -= hops
    after[12:16] = source[0].packed
    after[udp : udp + 2] = source[1].to_bytes(2, "big")
    after[10:12] = _moved(before[10:12], before[8:10] + before[12:16], after[8:10] + after[12:16])
    if any(before[udp + 6 : udp + 8]):
        moved = _moved(
            before[udp + 6 : udp + 8],
            before[12:16] + before[udp : udp + 2],
            after[12:16] + after[udp : udp + 2],
        )
        after[udp + 6 : udp + 8] = moved if any(moved) else b"\xff\xff"
    return frame[:_ETHERNET] + bytes(after)


def _moved(checksum: bytes, before: bytes, after: bytes) -> bytes:
    """RFC 1624 by plain arithmetic: HC' = ~(~HC + ~m + m')."""
    total = 0xFFFF - int.from_bytes(checksum, "big")
    for at in range(0, len(before), 2):
        total += 0xFFFF - int.from_bytes(before[at : at + 2], "big")
        total += int.from_bytes(after[at : at + 2], "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF - total).to_bytes(2, "big")


def same_checksum(one: bytes, other: bytes) -> bool:
    """0 and 0xffff are the same sum in one's complement."""
    return one == other or {one, other} == {b"\0\0", b"\xff\xff"}
