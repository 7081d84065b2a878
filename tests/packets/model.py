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


Endpoint = tuple[IPv4Address, int]


@dataclass
class Datagram:
    """A UDP datagram in IPv4, whole, or a fragment of one (ports unknown)."""

    source: Endpoint
    destination: Endpoint
    length: int
    ttl: int
    header: int
    kind: str  # fragment, udp (no RTP), alike (begins as RTP does, and is none), rtp or rtcp
    ssrc: bytes = b""
    sequence: int = 0
    payload_type: int = 0

    @property
    def is_rtcp(self) -> bool:
        return self.kind == "rtcp"

    @property
    def is_media(self) -> bool:
        return self.kind in ("rtp", "rtcp")


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
        return Datagram((source, 0), (destination, 0), length, ip[8], header, "fragment")
    udp = ip[header:length]
    if len(udp) < 9:
        return None
    udp_length = int.from_bytes(udp[4:6], "big")
    if not 9 <= udp_length <= len(udp):
        return None
    sport, dport = int.from_bytes(udp[0:2], "big"), int.from_bytes(udp[2:4], "big")
    payload = udp[8:udp_length]
    return Datagram(
        (source, sport),
        (destination, dport),
        length,
        ip[8],
        header,
        _kind(payload, sport, dport),
        payload[8:12],
        int.from_bytes(payload[2:4], "big"),
        payload[1] & 127 if len(payload) > 1 else 0,
    )


def _kind(payload: bytes, *ports: int) -> str:
    """RFC 3550 and 5761: what a header tells."""
    if payload[0] >> 6 != 2:
        return "udp"
    if len(payload) < 8 or min(ports) < 1024:
        return "alike"
    words = int.from_bytes(payload[2:4], "big") + 1
    if 200 <= payload[1] <= 207 and words * 4 <= len(payload):
        return "rtcp"
    return "alike" if len(payload) < 12 or 64 <= payload[1] & 127 < 96 else "rtp"


@dataclass
class Stream:
    """Is it RTP? Two packets in sequence say so, between which one of another source may come."""

    is_rtp: bool = False
    odd: tuple[bytes, int] | None = None
    others: int = 0

    def hear(self, datagram: Datagram) -> None:
        if self.odd == (datagram.ssrc, datagram.sequence):
            self.is_rtp = True
        elif self.odd and self.odd[0] != datagram.ssrc and not self.others:
            self.others = 1
        else:
            self.odd, self.others = (datagram.ssrc, (datagram.sequence + 1) % 65536), 0


@dataclass
class Report:
    """Where the last RTCP of an endpoint was sent to."""

    state: str
    public: Endpoint
    at: float


@dataclass
class Said:
    """What signalling says of an endpoint, for how long. Without a public address of its own, the
    WAN by which it is sent to is not known."""

    state: str
    public: Endpoint
    until: float
    source: Endpoint | None = None
    at: float = 0.0
    has_wan: bool = False


@dataclass
class Peer:
    state: str | None  # None: its RTP was never heard
    public: Endpoint | None
    last_seen: float
    inbound: tuple[int, int] = (0, 0)
    outbound: tuple[int, int] = (0, 0)
    in_stream: Stream = field(default_factory=Stream)
    out_stream: Stream = field(default_factory=Stream)
    told: bool = False
    sent: bool = False  # RTP was sent to it in its present state, since it is told of
    out_last: float = -math.inf
    # When it turned to another public address or port, and SSRC and number of the packet.
    moved: float = -math.inf
    moved_with: tuple[bytes, int] = b"", 0
    source: Endpoint | None = None  # UCM's, that sends to it in a call
    source_before: Endpoint | None = None
    # Since when UCM has sent from ports that are not known, and the last time.
    new_since: float = -math.inf
    new_last: float = -math.inf
    by_rtcp: tuple[str, Endpoint] | None = None
    rtcp_at: float = -math.inf
    said: Said | None = None
    turned: float = -math.inf
    gainsaid: float | None = None


@dataclass
class Known:
    """What is known of a packet's destination, by what."""

    state: str
    public: Endpoint
    peer: Peer | None
    has_wan: bool = True


@dataclass
class Wait:
    """UCM's RTP to an endpoint that is not heard."""

    first: float
    last: float
    passed: bool = False
    is_rtcp: bool = False
    # UCM's last packet: from where, its SSRC, the number after it, its payload type.
    flow: tuple[Endpoint, bytes, int, int] | None = None
    is_no_rtp: bool = False


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
    waits: dict[Endpoint, Wait] = field(default_factory=dict)
    peers: dict[Endpoint, Peer] = field(default_factory=dict)
    rtcp_timeout: float = 15.0
    reports: dict[Endpoint, Report] = field(default_factory=dict)
    signalled: dict[Endpoint, Said] = field(default_factory=dict)
    # Other hosts' connections, by the provider's endpoint and our port: when they were used last.
    others: dict[tuple[Endpoint, int], float] = field(default_factory=dict)
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
            or not (datagram.kind == "fragment" or datagram.is_media)
        ):
            return UNSPEC, frame
        if datagram.kind == "fragment":
            self.counters["fragments"] += 1
            return UNSPEC, frame
        state = MOH if self._is_phantom(datagram.destination[1]) else TWO
        if state == MOH and self._is_anothers(datagram):
            self.counters["passed_anothers"] += 1
            return UNSPEC, frame
        if datagram.is_rtcp:
            self.reports[datagram.source] = Report(state, datagram.destination, self.now)
        else:
            self._hear(datagram, state)
        if state == TWO:
            return UNSPEC, frame
        self.counters["consumed"] += 1
        return SHOT, frame

    def _is_phantom(self, port: int) -> bool:
        return self.port <= port <= self.port + 5

    def _note_anothers(self, endpoint: Endpoint, public_port: int) -> None:
        way = endpoint, public_port
        if self.now - self.others.get(way, -math.inf) >= 1:
            self.others[way] = self.now

    def _is_anothers(self, datagram: Datagram) -> bool:
        address, port = datagram.source
        if self.now - self.others.get((datagram.source, datagram.destination[1]), -math.inf) >= 120:
            return False
        if self._is_sent_to(datagram.source):
            return False
        if datagram.is_rtcp and self._is_sent_to((address, port - 1)):
            return False
        self._note_anothers(datagram.source, datagram.destination[1])
        return True

    def _is_sent_to(self, endpoint: Endpoint) -> bool:
        if self._is_signalled(self.peers.get(endpoint)):
            return True
        times = [each.out_last for each in [self.peers.get(endpoint)] if each]
        times += [each.last for each in [self.waits.get(endpoint)] if each]
        return any(self.now - each < 10 for each in times)

    def _hear(self, datagram: Datagram, state: str) -> None:
        public = datagram.destination
        peer, said = self.peers.get(datagram.source), self.signalled.get(datagram.source)
        if peer is None and said and self._counts(said, None):
            peer = self._note_signalled(datagram.source, said)
        if peer is None:
            peer = self.peers[datagram.source] = Peer(state, public, self.now)
        elif not (self.is_live(peer) or self._is_kept_by_rtcp(peer) or self._is_signalled(peer)):
            peer = self.peers[datagram.source] = self._relearned(peer, state, public)
        elif (state, public) != (peer.state, peer.public) or peer.by_rtcp:
            self._turn(peer, datagram, state)
        else:
            self._doubt(peer, datagram, state)
        peer.inbound = (peer.inbound[0] + 1, peer.inbound[1] + datagram.length)
        peer.in_stream.hear(datagram)
        self._tell(peer, peer.state or state)  # not as the packet says, which may be overtaken
        peer.last_seen = self.now

    def _turn(self, peer: Peer, datagram: Datagram, state: str) -> None:
        """What an endpoint says that is known; nothing, if it is a packet of before it turned to
        another port that comes after the first one there."""
        before, public = self._state(peer), datagram.destination
        ssrc, number = peer.moved_with
        is_before = ssrc == datagram.ssrc and 0 < (number - datagram.sequence) % 65536 < 100
        if is_before and self.now - peer.moved < 0.2:
            return
        if peer.public != public:
            peer.moved, peer.moved_with = self.now, (datagram.ssrc, datagram.sequence)
            peer.turned = self.now if peer.inbound[0] else -math.inf
        peer.state, peer.public, peer.by_rtcp = state, public, None
        after = self._state(peer)
        if after and before != after:
            peer.sent = False
            self._count_change(peer, after)

    def _doubt(self, peer: Peer, datagram: Datagram, state: str) -> None:
        """A message was missed: the endpoint was heard in this call, has turned a second after the
        last one or later, and has gone on there with the same stream."""
        said = peer.said
        if said is None or said.state == state or not self._is_signalled(peer):
            return
        ssrc, number = peer.moved_with
        goes_on = ssrc == datagram.ssrc and 0 < (datagram.sequence - number) % 65536 < 100
        if peer.turned - said.at >= 1 and goes_on:
            peer.gainsaid, said.until = said.at, self.now
            peer.sent = False
            self._count_change(peer, state)

    def signal(self, endpoint: Endpoint, said: Said | None, is_told: bool) -> None:
        """Signalling says something else, or nothing, and the kernel is told or will find out."""
        if said is None:
            self.signalled.pop(endpoint, None)
        else:
            self.signalled[endpoint] = said
        if not is_told:
            return
        peer = self.peers.get(endpoint)
        if said and self._counts(said, peer):
            self._note_signalled(endpoint, said)
        elif peer:
            self._end_signalled(peer)

    def _counts(self, said: Said, peer: Peer | None) -> bool:
        """Its lease is not over, and the endpoint has not turned to something else since."""
        return said.until > self.now and not (peer and peer.gainsaid == said.at)

    def _note_signalled(self, endpoint: Endpoint, said: Said) -> Peer:
        never = self.now - self.timeout - 10
        peer = self.peers.setdefault(endpoint, Peer(None, None, never))
        before = self._state(peer)
        was_known = self.now - self._until(peer) < 0.1
        own = peer.by_rtcp or (peer.state, peer.public)
        public, has_wan = said.public, False
        if own[0] and own[1] and own[1][0] in self.public:
            has_wan = True
            is_its = was_known and own[0] == said.state
            public = own[1] if is_its else (own[1][0], said.public[1])
        elif peer.said and peer.said.public[0] in self.public:
            public, has_wan = (peer.said.public[0], said.public[1]), peer.said.has_wan
        if not was_known:
            self._forget_counts(peer)
        is_change = not was_known or before != said.state
        is_message = peer.said is None or peer.said.at != said.at
        is_new_port = said.source not in (peer.source, peer.source_before)
        if said.source and is_message and (is_change or is_new_port):
            peer.source, peer.source_before = said.source, None
        peer.said = Said(said.state, public, said.until, at=said.at, has_wan=has_wan)
        peer.by_rtcp = None
        if not peer.told or not was_known:
            peer.told = True
            self.counters[f"learned_{said.state.lower()}"] += 1
            peer.sent = False
        elif before != said.state:
            self._count_change(peer, said.state)
            peer.sent = False
        return peer

    def _end_signalled(self, peer: Peer) -> None:
        before = self._state(peer)
        if peer.said is None or not self._is_signalled(peer):
            return
        peer.said.until = self.now
        after = self._state(peer)
        if peer.told and self.is_live(peer) and after and after != before:
            self._count_change(peer, after)
            peer.sent = False

    def _is_signalled(self, peer: Peer | None) -> bool:
        return peer is not None and peer.said is not None and self.now < peer.said.until

    def _state(self, peer: Peer) -> str | None:
        """What is known of it, or was."""
        own = peer.by_rtcp[0] if peer.by_rtcp else peer.state
        return peer.said.state if peer.said and self._is_last_said(peer) else own

    def _own_until(self, peer: Peer) -> float:
        return peer.rtcp_at + self.rtcp_timeout if peer.by_rtcp else peer.last_seen + self.timeout

    def _is_last_said(self, peer: Peer) -> bool:
        """Has signalling the last word of it, or had?"""
        if peer.said is None:
            return False
        has_own = peer.by_rtcp or peer.state
        is_later = peer.said.until > self._own_until(peer)
        return self._is_signalled(peer) or not has_own or is_later

    def _count_change(self, peer: Peer, state: str) -> None:
        self.counters["two_to_moh" if state == MOH else "moh_to_two"] += peer.told

    def _relearned(self, peer: Peer, state: str, public: Endpoint) -> Peer:
        is_told = peer.told and self.now - self._until(peer) < 10
        self.counters[f"learned_{state.lower()}"] += is_told
        fresh = Peer(state, public, self.now, told=is_told, moved=peer.moved)
        fresh.moved_with = peer.moved_with
        fresh.new_since, fresh.new_last = peer.new_since, peer.new_last
        if peer.public == public:
            fresh.source, fresh.source_before = peer.source, peer.source_before
        fresh.said, fresh.gainsaid, fresh.turned = peer.said, peer.gainsaid, peer.turned
        return fresh

    def _tell(self, peer: Peer, state: str) -> None:
        """Who is on hold, or sent to by UCM; if it is RTP."""
        is_hold = state == MOH and peer.in_stream.is_rtp
        is_sent_to = peer.outbound[0] and (peer.in_stream.is_rtp or peer.out_stream.is_rtp)
        if not peer.told and (is_hold or is_sent_to):
            peer.told = True
            self.counters[f"learned_{state.lower()}"] += 1

    def is_live(self, peer: Peer | None) -> bool:
        return peer is not None and self.now - peer.last_seen < self.timeout

    def _is_kept_by_rtcp(self, peer: Peer) -> bool:
        return peer.by_rtcp is not None and self.now - peer.rtcp_at < self.rtcp_timeout

    def _until(self, peer: Peer) -> float:
        if peer.said and self._is_last_said(peer):
            return peer.said.until
        if peer.by_rtcp:
            return peer.rtcp_at + self.rtcp_timeout
        return peer.last_seen + self.timeout

    def shown(self, peer: Peer) -> tuple[str | None, Endpoint | None, bool]:
        """What readers see: state, public address and port, whether it is forgotten."""
        if peer.said and self._is_signalled(peer):
            agrees = peer.state == peer.said.state
            return peer.said.state, peer.public if agrees else peer.said.public, False
        if peer.said and self._is_last_said(peer):
            return peer.said.state, peer.said.public, True
        if peer.by_rtcp and (self._is_kept_by_rtcp(peer) or not self.is_live(peer)):
            return *peer.by_rtcp, not self._is_kept_by_rtcp(peer)
        return peer.state, peer.public, not self.is_live(peer)

    def known(self, datagram: Datagram) -> Known | None:
        """RTP that is heard has the first word, then RTCP. RTCP goes with its RTP, to the same port
        or to the next; otherwise as the endpoint's own has come."""
        address, port = datagram.destination
        peer = self.peers.get((address, port))
        if peer and self.is_live(peer):
            return (
                self._weighed(datagram, peer) or self._put_on_hold(datagram, peer) or by_rtp(peer)
            )
        if signalled := self._signalled_to(datagram, (address, port)):
            return signalled
        if not datagram.is_rtcp:
            return self._known_by_rtcp(datagram, peer)
        has_own = self._has_own_rtp((address, port))
        beside = peer if has_own else self.peers.get((address, port - 1))
        if not has_own:
            known = None
            if beside and self.is_live(beside):
                known = self._weighed(datagram, beside) or by_rtp(beside)
            known = known or self._signalled_to(datagram, (address, port - 1))
            if known:
                known.public = known.public[0], known.public[1] + 1
                return known
            beside = self.peers.get((address, port - 1))
        report = self._report((address, port))
        return Known(report.state, report.public, beside) if report else None

    def _weighed(self, datagram: Datagram, peer: Peer) -> Known | None:
        """Signalling, where its RTP says otherwise: of what comes from the call's own port, whoever
        says that it is in a call is right, of anything else whoever says that it is on hold."""
        said = peer.said
        if said is None or not self._is_signalled(peer) or said.state == peer.state:
            return None
        if _is_from_the_call(datagram, peer) != (said.state == TWO):
            return None
        return Known(said.state, said.public, peer, said.has_wan)

    def _signalled_to(self, datagram: Datagram, endpoint: Endpoint) -> Known | None:
        """By signalling alone: it is not heard."""
        peer = self.peers.get(endpoint)
        if peer is None or not self._is_signalled(peer):
            said = self.signalled.get(endpoint)
            if said is None or not self._counts(said, peer):
                return None
            if datagram.is_rtcp:
                is_call = said.source and _is_from(datagram, said.source)
                return Known(TWO if is_call else said.state, said.public, peer, False)
            peer = self._note_signalled(endpoint, said)
        assert peer.said
        state, public, has_wan = peer.said.state, peer.said.public, peer.said.has_wan
        if peer.state == state and peer.public and peer.public[0] in self.public:
            public, has_wan = peer.public, True
        if state == MOH and _is_from_the_call(datagram, peer):
            state = TWO
        return Known(state, public, peer, has_wan)

    def _put_on_hold(self, datagram: Datagram, peer: Peer) -> Known | None:
        """A call whose RTP has stopped, as RTCP to a phantom port has said since: asked for if UCM
        sends from another port than the provider sends to, or RTCP has said so before."""
        assert peer.public
        if datagram.is_rtcp or self.now - peer.last_seen < 0.1 or self._is_signalled(peer):
            return None
        is_other = datagram.kind == "rtp" and datagram.source[1] != peer.public[1]
        if not (peer.by_rtcp or (peer.state == TWO and is_other)):
            return None
        return self._known_by_rtcp(datagram, peer, only=MOH)

    def _has_own_rtp(self, endpoint: Endpoint) -> bool:
        """Then it has rtcp-mux, and its RTCP is not that of the port below."""
        peer = self.peers.get(endpoint)
        if peer is None or not peer.told or not (peer.state or peer.by_rtcp):
            return False
        return self._is_kept_by_rtcp(peer) or self.now - peer.last_seen < self.rtcp_timeout

    def _report(self, endpoint: Endpoint) -> Report | None:
        report = self.reports.get(endpoint)
        return report if report and self.now - report.at < self.rtcp_timeout else None

    @staticmethod
    def _is_known_source(datagram: Datagram, peer: Peer | None) -> bool:
        """A port of the call's; heard since, if it had to wait."""
        if peer is None or datagram.source not in (peer.source, peer.source_before):
            return False
        return peer.last_seen - peer.new_since >= 0.2

    def _report_of(self, endpoint: Endpoint) -> Report | None:
        """The later one of its own and of that of the port above, with the port of its RTP."""
        address, port = endpoint
        muxed, above = self._report(endpoint), self._report((address, port + 1))
        if above and (self._has_own_rtp((address, port + 1)) or (muxed and muxed.at > above.at)):
            above = None
        report = above or muxed
        if report is None:
            return None
        its_address, its_port = report.public
        if report.state == MOH:
            its_port -= (its_port - self.port) % 2
        elif above:
            its_port -= 1
        return Report(report.state, (its_address, its_port), report.at)

    def _is_of_another_call(self, peer: Peer | None, report: Report) -> bool:
        """UCM has sent nothing here for 5 s, and nothing later than 1 s before the report."""
        if peer is None or peer.out_last == -math.inf:
            return False
        return self.now - peer.out_last >= 5 and report.at - peer.out_last <= 1

    def _known_by_rtcp(
        self, datagram: Datagram, peer: Peer | None, only: str | None = None
    ) -> Known | None:
        report = self._report_of(datagram.destination)
        if report is None or (only and report.state != only):
            return None
        if self._is_of_another_call(peer, report):
            return None
        if peer and peer.said and report.at <= peer.said.until:
            return None  # of the call that signalling has told of
        public = report.public
        if peer and report.at <= peer.last_seen:
            if peer.state != report.state:
                return None
            assert peer.public
            public = peer.public
        its_port = public[1]
        is_its_source = its_port == datagram.source[1] or self._is_known_source(datagram, peer)
        if report.state == TWO and not is_its_source:
            return None
        known = Known(report.state, public, peer)
        self._note_by_rtcp(datagram.destination, known, report.at)
        return known

    def _note_by_rtcp(self, endpoint: Endpoint, known: Known, at: float) -> None:
        if known.peer is None:
            never = at - self.timeout - 10
            known.peer = self.peers[endpoint] = Peer(None, None, never)
        peer = known.peer
        if not self._is_kept_by_rtcp(peer) or peer.by_rtcp != (known.state, known.public):
            before = peer.by_rtcp[0] if peer.by_rtcp else peer.state
            was_known = self.now - self._until(peer) < 0.1
            if not was_known:
                self._forget_counts(peer)
            peer.by_rtcp = known.state, known.public
            if was_known and before != known.state:
                self._count_change(peer, known.state)
            elif not was_known:
                self.counters[f"learned_{known.state.lower()}"] += peer.told
            if not was_known or before != known.state:
                peer.sent = False
        peer.rtcp_at = at

    def _forget_counts(self, peer: Peer) -> None:
        peer.told = peer.told and self.now - self._until(peer) < 10
        peer.inbound = peer.outbound = (0, 0)
        peer.in_stream, peer.out_stream = Stream(), Stream()
        peer.out_last = -math.inf

    def _is_of_the_call(self, known: Known, datagram: Datagram) -> bool:
        """From the port that UCM sends from, or did before; a new one is to wait."""
        peer = known.peer
        if peer is None or peer.source == datagram.source or datagram.kind != "rtp":
            return True
        if peer.source_before != datagram.source:
            wait = self.waits.get(datagram.destination)
            has_passed = wait and wait.passed and self.now - wait.last < 10
            if not (
                has_passed and wait and wait.flow and wait.flow[0] == datagram.source
            ) and self._is_to_wait(known, peer, datagram):
                return False
        peer.source_before, peer.source = peer.source, datagram.source
        return True

    def _is_to_wait(self, known: Known, peer: Peer, datagram: Datagram) -> bool:
        """All new ports of an endpoint wait for 0.2 s together, until none has sent for 0.4 s."""
        if (
            datagram.source[1] == known.public[1]
            or self.now - peer.moved < 0.2
            or (known.has_wan and self.now - self.learned >= 0.8)
        ):
            return False
        if self.now - peer.new_last >= 0.4:
            peer.new_since = self.now
        peer.new_last = self.now
        return self.now - peer.new_since < 0.2

    def _hold_back(self) -> int:
        self.counters["held_back"] += 1
        return SHOT

    def enforce(self, frame: bytes) -> tuple[int, bytes]:
        datagram = self._ours(frame)
        if datagram is None:
            other = read(frame)
            if other and other.source[0] in self.public - self.ucm:
                self._note_if_phantom(other)
            return UNSPEC, frame
        known = self.known(datagram)
        if known is None and not self._may_be_dropped(datagram):
            return UNSPEC, frame
        if known is None:
            verdict = self._unheard(datagram)
            self.counters["passed_unnatted"] += verdict == UNSPEC
            return verdict, frame
        if known.state == TWO and not self._is_of_the_call(known, datagram):
            return self._hold_back(), frame
        self._sent(known, datagram)
        if known.state == TWO:
            self.counters["passed_two"] += 1
            self.counters["passed_unnatted"] += 1
            return UNSPEC, frame
        self.counters["rewritten"] += 1
        return UNSPEC, rewrite(frame, datagram, known.public, hops=0)

    def bypass(self, frame: bytes) -> tuple[int, bytes]:
        if frame[:6] != self.lan_mac:
            return UNSPEC, frame
        datagram = self._ours(frame)
        if datagram is None:
            other = read(frame)
            if other and other.source[0] not in self.ucm:
                self._note_if_phantom(other)
            return UNSPEC, frame
        address = datagram.destination[0]
        known = self.known(datagram)
        if known is None and not (self._may_be_dropped(datagram) and self.leaves_by_wan(address)):
            return UNSPEC, frame
        if known is None:
            return self._unheard(datagram), frame
        if known.state == TWO:
            if not self._is_of_the_call(known, datagram) and self.leaves_by_wan(address):
                return self._hold_back(), frame
            self._sent(known, datagram)
            self.counters["passed_two"] += 1
            return UNSPEC, frame
        if datagram.ttl <= 1:
            self.counters["left_to_stack"] += 1
            return UNSPEC, frame
        if not self.leaves_by_wan(address):
            self.counters["routed_elsewhere"] += 1
            return UNSPEC, frame
        self._sent(known, datagram)
        self.counters["rewritten"] += 1
        self.counters["bypassed"] += 1
        return REDIRECT, rewrite(frame, datagram, known.public, hops=1)

    def _note_if_phantom(self, datagram: Datagram) -> None:
        if datagram.kind != "fragment" and self._is_phantom(datagram.source[1]):
            self._note_anothers(datagram.destination, datagram.source[1])

    def _may_be_dropped(self, datagram: Datagram) -> bool:
        return datagram.is_media and self.may_be_provider(datagram.destination[0])

    def _ours(self, frame: bytes) -> Datagram | None:
        datagram = read(frame)
        if datagram is None or datagram.source[0] not in self.ucm:
            return None
        if datagram.kind == "fragment":
            self.counters["fragments"] += 1
            return None
        low, high = self.rtp_ports
        is_ours = datagram.kind != "udp" and low <= datagram.source[1] <= high
        return datagram if is_ours else None

    def _unheard(self, datagram: Datagram) -> int:
        """It is dropped, unless learn is silent, or the endpoint for longer than the patience."""
        address, port = datagram.destination
        wait = self._wait(datagram)
        waited = self.now - wait.first
        if datagram.kind == "rtp" and self._is_no_rtp(wait, datagram):
            self.counters["passed_no_rtp"] += 1
            return UNSPEC
        peer = self.peers.get((address, port))
        if datagram.is_rtcp and not (peer and self._state(peer)):
            peer = self.peers.get((address, port - 1))
        if self._is_stale_for(peer, waited):
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
        state = peer and self._state(peer)
        is_call = peer and state == TWO and self.learned < self._until(peer)
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

    def _is_no_rtp(self, wait: Wait, datagram: Datagram) -> bool:
        """A flow that does not go on as RTP does."""
        if wait.flow is None or wait.flow[0] != datagram.source:
            wait.is_no_rtp = False
        else:
            _, ssrc, following, payload_type = wait.flow
            is_same, ahead = ssrc == datagram.ssrc, (datagram.sequence - following) % 65536
            if is_same and ahead == 0:
                wait.is_no_rtp = False
            elif (not is_same and ahead != 0) or (
                is_same and ahead == 65535 and payload_type != datagram.payload_type
            ):
                wait.is_no_rtp = True
        following = (datagram.sequence + 1) % 65536
        wait.flow = datagram.source, datagram.ssrc, following, datagram.payload_type
        return wait.is_no_rtp

    def _sent(self, known: Known, datagram: Datagram) -> None:
        """The first packet of a state ends the wait, but for a call that has passed before."""
        peer = known.peer
        if peer is None:
            return
        peer.outbound = (peer.outbound[0] + 1, peer.outbound[1] + datagram.length)
        peer.out_last = self.now
        if datagram.kind == "rtp":
            peer.out_stream.hear(datagram)
        self._tell(peer, known.state)
        is_of_it = known.state == self._state(peer)
        if not datagram.is_rtcp and peer.told and not peer.sent and is_of_it:
            peer.sent = True
            wait = self.waits.get(datagram.destination)
            if wait and (known.state == MOH or not wait.passed):
                del self.waits[datagram.destination]


def by_rtp(peer: Peer) -> Known:
    """What is known of a peer whose RTP is heard."""
    assert peer.state
    assert peer.public
    return Known(peer.state, peer.public, peer)


def _is_from_the_call(datagram: Datagram, peer: Peer) -> bool:
    return any(
        each is not None and _is_from(datagram, each) for each in (peer.source, peer.source_before)
    )


def _is_from(datagram: Datagram, source: Endpoint) -> bool:
    """UCM sends from there; its RTCP from there, or from the next port."""
    address, port = datagram.source
    return (address, port) == source or (datagram.is_rtcp and (address, port - 1) == source)


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


def _moved(checksum: bytearray, before: bytearray, after: bytearray) -> bytes:
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
