"""RTP that nobody asked for: a flood of spoofed endpoints, and hold music beside it."""

import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scapy.layers.inet import UDP

from tests.support.firewall import PUBLIC, UCM, Firewall
from tests.support.wire import Wire, udp

# In an Ethernet frame whose IP header has no options; the source address follows its checksum.
_IP_CHECKSUM, _UDP_SOURCE, _UDP_CHECKSUM, _RTP_SEQUENCE = 24, 34, 40, 44


def endpoints(count: int) -> list[str]:
    return [f"203.0.{113 + n // 250}.{1 + n % 250}:{20000 + 2 * (n % 7)}" for n in range(count)]


def go_on(frame: bytearray) -> bytes:
    """The stream's next packet: with the sequence number after this frame's."""
    (check,) = struct.unpack_from("!H", frame, _UDP_CHECKSUM)
    (sequence,) = struct.unpack_from("!H", frame, _RTP_SEQUENCE)
    following = (sequence + 1) % 65536
    check = 0xFFFF - (0xFFFF - check + 0xFFFF - sequence + following) % 0xFFFF
    struct.pack_into("!H", frame, _UDP_CHECKSUM, check)
    struct.pack_into("!H", frame, _RTP_SEQUENCE, following)
    return bytes(frame)


class Streams:
    """Hold music to so many endpoints, all of which send to the phantom port."""

    def __init__(self, fw: Firewall, to: list[str]) -> None:
        self._heard = [bytearray(bytes(fw.wan.frame(udp(each, f"{PUBLIC}:4000")))) for each in to]
        self._played = [
            bytearray(bytes(fw.lan.frame(udp(f"{UCM}:{24576 + 2 * n}", each))))
            for n, each in enumerate(to)
        ]
        self._fw = fw

    def play_round(self) -> None:
        """One packet each way of each stream."""
        self.hear()
        self.play()

    def hear(self) -> None:
        for frame in self._heard:
            self._fw.wan.send_frame(go_on(frame))

    def play(self) -> None:
        for frame in self._played:
            self._fw.lan.send_frame(go_on(frame))


@contextmanager
def playing(streams: Streams) -> Iterator[Callable[[], int]]:
    """The streams go on meanwhile, a round each millisecond. What it yields tells, afterwards, how
    many rounds were played: more than 50, even if the player was held up all the while."""
    stop, rounds = threading.Event(), 0

    def play() -> None:
        nonlocal rounds
        while not stop.wait(0.001) or rounds <= 50:
            streams.play_round()
            rounds += 1

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield lambda: rounds
    finally:
        stop.set()
        thread.join()


# Upper halves of addresses. 11.x to 99.x are global, and none of the live streams' is among them.
ANYWHERE = range(11 << 8, 100 << 8)


def spoofed(wan: Wire, count: int, networks: range = ANYWHERE, packets: int = 1) -> Iterator[bytes]:
    """RTP to a public address, of so many endpoints of these networks, so many packets of each.

    IP's checksum is right, for the stack drops others; there is no UDP checksum.
    """
    packet = udp("0.0.0.0:1", f"{PUBLIC}:4000")
    packet[UDP].chksum = 0
    frame = bytearray(bytes(wan.frame(packet)))
    (without,) = struct.unpack_from("!H", frame, _IP_CHECKSUM)
    numbers = random.Random(1)
    for _ in range(count):
        high, low = numbers.choice(networks), numbers.getrandbits(16)
        checksum = 0xFFFF - (0xFFFF - without + high + low) % 0xFFFF
        struct.pack_into("!HHH", frame, _IP_CHECKSUM, checksum, high, low)
        struct.pack_into("!H", frame, _UDP_SOURCE, numbers.randrange(1024, 65536))
        for number in range(packets):
            struct.pack_into("!H", frame, _RTP_SEQUENCE, number + 1)
            yield bytes(frame)
