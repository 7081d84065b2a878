"""The outside ends of a firewall's interfaces: packets put on the wire, packets taken off it."""

import fcntl
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.support.namespace import Namespace

_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23  # what we send ourselves is not to fill the socket's buffer
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: whatever net.core.rmem_max is
# IEEE 802's type for local experiments.
_TOKEN_TYPE = 0x88B5
_PATIENCE_SECONDS = 10.0

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000


def rtp(sequence: int = 1, payload_type: int = 0, size: int = 160, ssrc: int = 7) -> bytes:
    """An RTP packet (RFC 3550): 12 bytes of header, then G.711 silence."""
    header = struct.pack("!BBHII", 0x80, payload_type, sequence, sequence * 160, ssrc)
    return header + b"\xff" * size


def udp(source: str, destination: str, payload: bytes | None = None, **ip: Any) -> Packet:
    """An IP packet of UDP from "address:port" to "address:port", RTP unless told otherwise. A Wire
    that sends that RTP gives it its place in a stream."""
    (saddr, sport), (daddr, dport) = source.split(":"), destination.split(":")
    return (
        IP(src=saddr, dst=daddr, **ip)
        / UDP(sport=int(sport), dport=int(dport))
        / (_Stream(rtp()) if payload is None else Raw(payload))
    )


class _Stream(Raw):
    """RTP of one stream from its source to a host: each packet that is sent follows the last."""

    name = "Stream"


def flow(packet: Packet) -> tuple[str, str]:
    """A captured packet's source and destination, as "address:port"."""
    return (
        f"{packet[IP].src}:{packet[UDP].sport}",
        f"{packet[IP].dst}:{packet[UDP].dport}",
    )


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """What this thread sends meanwhile is handled by one CPU, always the same, and so in order: on
    a busy machine, each CPU hands packets on when it likes."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Wire:
    """The outside end of a veth, without addresses: what comes out is seen, nothing is answered."""

    def __init__(self, outside: Namespace, firewall: Namespace, interface: str) -> None:
        self.interface = interface
        end = f"{interface}-end"
        outside.run(
            "ip",
            "link",
            "add",
            end,
            "type",
            "veth",
            "peer",
            "name",
            interface,
            "netns",
            firewall.name,
        )
        outside.run("ip", "link", "set", end, "up")
        firewall.run("ip", "link", "set", interface, "up")
        self.mac = outside.run("cat", f"/sys/class/net/{end}/address").stdout.strip()
        self.firewall_mac = firewall.run(
            "cat", f"/sys/class/net/{interface}/address"
        ).stdout.strip()
        with outside.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((end, _ETH_P_ALL))
        self._firewall, self.outside, self.end = firewall, outside, end
        # Of each stream, how many packets were sent.
        self._sent: Counter[tuple[str, int, str]] = Counter()

    def close(self) -> None:
        self._socket.close()

    def send(self, *packets: Packet) -> None:
        """Put IP packets on the wire, addressed to the firewall; whole frames as they are."""
        for packet in packets:
            if _Stream in packet:
                self._go_on(packet)
            framed = packet if Ether in packet else self.frame(packet)
            self.send_frame(bytes(framed))

    def _go_on(self, packet: Packet) -> None:
        stream = packet[IP].src, packet[UDP].sport, packet[IP].dst
        self._sent[stream] += 1
        packet[_Stream].load = rtp(self._sent[stream], size=len(packet[_Stream].load) - 12)

    def set_mtu(self, mtu: int) -> None:
        self.outside.run("ip", "link", "set", self.end, "mtu", str(mtu))
        self._firewall.run("ip", "link", "set", self.interface, "mtu", str(mtu))

    def send_paged(self, *packets: Packet) -> None:
        """As `send`, in packets whose linear area ends after the link header (over 4096 bytes).

        struct virtio_net_hdr (packet(7), PACKET_VNET_HDR) tells the kernel so: its hdr_len.
        """
        with self.outside.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as paged:
            paged.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            paged.bind((self.end, 0))
            for packet in packets:
                paged.send(struct.pack("=BBHHHH", 0, 0, 14, 0, 0, 0) + bytes(self.frame(packet)))

    def arp_request(self) -> Packet:
        """The next ARP request that the firewall sends; RTP before it is left out."""
        return next(frame for frame in self._frames() if ARP in frame and frame[ARP].op == 1)

    def send_frame(self, frame: bytes) -> None:
        """Put one frame on the wire that is made already: for many of them."""
        with on_one_cpu():
            self._socket.send(frame)

    def frame(self, packet: Packet) -> Packet:
        return Ether(src=self.mac, dst=self.firewall_mac) / packet

    def sent(self) -> list[Packet]:
        """The IP packets that the firewall has sent out since the last call.

        The firewall sends one more at the end, so that there is an event to wait for.
        """
        token = os.urandom(8)
        with self._firewall.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as last:
            last.bind((self.interface, 0))
            with on_one_cpu():
                last.send(
                    bytes(Ether(dst=self.mac, src=self.firewall_mac, type=_TOKEN_TYPE)) + token
                )
        return list(self._until(token))

    def _until(self, token: bytes) -> Iterator[Packet]:
        for frame in self._frames():
            if frame.type == _TOKEN_TYPE and bytes(frame.payload).startswith(token):
                return
            if IP in frame:
                yield frame

    def _frames(self) -> Iterator[Packet]:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            ready, _, _ = select.select([self._socket], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{self.interface}: what was waited for did not come"
            yield Ether(self._socket.recv(65535))


class Tun:
    """A tun device in the firewall: an interface without link header, its other end this file."""

    def __init__(self, firewall: Namespace, interface: str) -> None:
        self.interface = interface
        with firewall.entered():
            self._file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(
                self._file,
                _TUNSETIFF,
                struct.pack("16sH22x", interface.encode(), _IFF_TUN | _IFF_NO_PI),
            )
        firewall.run("ip", "link", "set", interface, "up")

    def close(self) -> None:
        """The interface ends with it. Twice is fine."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def fileno(self) -> int:
        return self._file

    def send(self, *packets: Packet) -> None:
        for packet in packets:
            os.write(self._file, bytes(packet))

    def sent(self) -> list[Packet]:
        """The IP packets sent out since the last call: those that are there, for a tun's queue is
        filled by the time the sender's system call returns."""
        packets: list[Packet] = []
        while True:
            try:
                packets.append(IP(os.read(self._file, 65535)))
            except BlockingIOError:
                return packets
