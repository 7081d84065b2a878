"""The article's last answer, in Python: packets wait in NFQUEUE for a program that rewrites them.

Part 3 did it in Perl, whose bindings Debian no longer has. Run it in the firewall's namespace:

  .venv/bin/python tests/support/nfqueue_rewriter.py QUEUE ADDRESS:PORT

Each packet of the queue gets this source, and goes on. It says `ready` when the queue is its own,
and ends with SIGTERM or SIGINT. It needs PyPI's NetfilterQueue, which the project does not depend
on: `scripts/setup --nfqueue` builds it into .venv.
"""

import signal
import socket
import struct
import sys
from typing import Any

_IP_CHECKSUM, _IP_SOURCE = 10, 12
_UDP_SOURCE, _UDP_CHECKSUM = 0, 6


def rewrite(packet: bytes, source: bytes, port: bytes) -> bytes:
    """A packet of IPv4 and UDP with another source, its checksums right. A UDP checksum of 0
    means none, and stays 0."""
    new = bytearray(packet)
    udp = 4 * (packet[0] & 15)
    address = slice(_IP_SOURCE, _IP_SOURCE + 4)
    ports = slice(udp + _UDP_SOURCE, udp + _UDP_SOURCE + 2)
    change = _sum(source) - _sum(new[address])
    _adjust(new, _IP_CHECKSUM, change)
    if new[udp + _UDP_CHECKSUM : udp + _UDP_CHECKSUM + 2] != b"\0\0":
        _adjust(new, udp + _UDP_CHECKSUM, change + _sum(port) - _sum(new[ports]))
    new[address], new[ports] = source, port
    return bytes(new)


def _sum(words: bytes | bytearray) -> int:
    return sum(struct.unpack(f"!{len(words) // 2}H", words))


def _adjust(packet: bytearray, offset: int, change: int) -> None:
    """RFC 1624, equation 3, in the integers modulo 0xffff; never 0, which would mean none."""
    (before,) = struct.unpack_from("!H", packet, offset)
    struct.pack_into("!H", packet, offset, 0xFFFF - ((0xFFFF - before) + change) % 0xFFFF)


def main(queue: str, endpoint: str) -> None:
    # Here, so that the tests can import this module without it.
    from netfilterqueue import NetfilterQueue

    host, port = endpoint.split(":")
    source, sport = socket.inet_aton(host), struct.pack("!H", int(port))

    def rewritten(packet: Any) -> None:
        packet.set_payload(rewrite(packet.get_payload(), source, sport))
        packet.accept()

    waiting = NetfilterQueue()
    waiting.bind(int(queue), rewritten)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("ready", flush=True)
    try:
        waiting.run()
    except KeyboardInterrupt:
        waiting.unbind()


if __name__ == "__main__":
    main(*sys.argv[1:])
