"""SIP messages from the packets that carry them: datagrams, and TCP connections (RFC 3261, 18).

What packets may ask for is bounded: so many connections, so many bytes of messages that are not
whole. What is not taken is counted by its reason.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from moh_ebpf.calls import sip
from moh_ebpf.calls.sip import Malformed, Message
from moh_ebpf.calls.tcp import InOrder
from moh_ebpf.kernel.capture import Segment

# Hop by hop, and of no dialog (RFC 3261, 8.2.6): one message in six or so, which need not be read.
_TRYING = b"SIP/2.0 100 "
_MOST_CONNECTIONS = 4096
_MOST_BYTES = 8 << 20

# Source and destination.
_Way = tuple[tuple[bytes, int], tuple[bytes, int]]


@dataclass
class _OneWay:
    """One direction of one."""

    order: InOrder = field(default_factory=InOrder)
    stream: sip.Stream = field(default_factory=sip.Stream)
    held: int = 0


class Transport:
    """`messages` takes packets as they come. `counts`: messages that were `read`,
    and what was left out."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._connections: OrderedDict[_Way, _OneWay] = OrderedDict()
        self._held = 0

    @property
    def connections(self) -> int:
        """How many are followed, one direction each."""
        return len(self._connections)

    def messages(self, segment: Segment) -> Iterator[Message]:
        """Those that are whole with this packet."""
        found = self._of_tcp(segment) if segment.is_tcp else self._of_udp(segment.data)
        for message in found:
            self.counts["read"] += 1
            yield message

    def _of_udp(self, data: bytes) -> Iterator[Message]:
        if not data.strip(b"\r\n\0"):
            return  # a keepalive
        if data.startswith(_TRYING):
            self.counts["read"] += 1
            return
        try:
            yield sip.parse(data)
        except Malformed:
            self.counts["malformed"] += 1

    def _of_tcp(self, segment: Segment) -> Iterator[Message]:
        way = segment.source, segment.destination
        connection = self._connections.get(way)
        if connection is None:
            if not (segment.data or segment.begins):
                return
            connection = self._connections[way] = _OneWay()
        self._connections.move_to_end(way)
        lost = connection.stream.lost
        yield from self._read(connection, segment)
        self.counts["malformed"] += connection.stream.lost - lost
        self._held += connection.order.held + connection.stream.held - connection.held
        connection.held = connection.order.held + connection.stream.held
        if segment.ends and connection.order.is_at(segment.sequence + len(segment.data)):
            self._forget(way)
        while self._held > _MOST_BYTES or len(self._connections) > _MOST_CONNECTIONS:
            self.counts["connections_dropped"] += 1
            self._forget(next(iter(self._connections)))

    def _read(self, connection: _OneWay, segment: Segment) -> Iterator[Message]:
        data = connection.order.feed(segment.sequence, segment.data, begins=segment.begins)
        for each in data:
            if each is None:
                self.counts["segments_missing"] += 1
                connection.stream.skip()
            else:
                yield from connection.stream.feed(each)

    def _forget(self, way: _Way) -> None:
        self._held -= self._connections.pop(way).held
