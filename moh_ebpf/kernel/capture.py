"""Hearing what comes in, after tc and beside the stack (packet(7)).

A packet socket that is bound to ETH_P_IP hears what is received alone, and nothing of what a tc
program has consumed or redirected. One that is bound to ETH_P_ALL is asked for each packet, either
way: for what this machine itself sends, there is no other.
"""

import ctypes
import socket
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

_ETH_P_IP, _ETH_P_ALL = 0x0800, 0x0003
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
# linux/if_packet.h
_SOL_PACKET, _PACKET_FANOUT, _PACKET_STATISTICS = 263, 18, 6
_FANOUT_CPU, _FANOUT_DEFRAG, _FANOUT_UNIQUE = 2, 0x8000, 0x2000
_ROOM = 1 << 22  # bytes that wait to be read

_UDP, _TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP
_IP = struct.Struct("!BxHxxHxB2x4s4s")
_SYN, _END = 0x02, 0x01 | 0x04  # FIN, RST

# Classic BPF (linux/bpf_common.h): operations, with the field that they are for.
_LOAD_BYTE, _LOAD_HALF, _LOAD_HALF_BEHIND = 0x30, 0x28, 0x48
_LOAD_HEADER_LENGTH = 0xB1
_LOAD_WORD = 0x20
# What is no byte of the packet (SKF_AD_…).
_PROTOCOL, _PACKET_TYPE = 0xFFFFF000, 0xFFFFF004
_OTHERHOST, _OUTGOING = 3, 4  # PACKET_…
_IF_EQUAL, _IF_BITS, _RETURN = 0x15, 0x45, 0x06


class Segment(NamedTuple):
    """A UDP datagram, or a segment of TCP; its interface, and the `time`, in ns of the epoch, when
    it was there, 0 unless the capture stamps. Ends are (address, port): 4 bytes, and a number."""

    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    is_tcp: bool
    data: bytes
    sequence: int = 0
    begins: bool = False
    ends: bool = False
    interface: str = ""
    time: int = 0


class Capture:
    """The packets of UDP and TCP from and to some ports that come in, or with `outgoing` leave, by
    any interface, all in their order; of IP fragments, the whole. Takes CAP_NET_RAW, and
    CAP_NET_ADMIN for room beyond net.core.rmem_max. Raises OSError without them."""

    def __init__(self, ports: Collection[int], *, outgoing: bool = False) -> None:
        self.is_outgoing = outgoing
        kind = socket.htons(_ETH_P_ALL if outgoing else _ETH_P_IP)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, kind)
        try:
            self._attach(_filter(ports, outgoing=outgoing))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
            self._socket.setblocking(False)
            self._drain()
            # A group of one, with an id of its own: the kernel puts fragments together for a
            # group. By CPU, because that is the cheapest.
            how = _FANOUT_CPU | _FANOUT_DEFRAG | _FANOUT_UNIQUE
            joined = struct.pack("=I", how << 16)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_FANOUT, joined)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def stamp(self) -> None:
        """Tell the time of each packet from now on. The kernel then looks at the clock for all that
        this machine receives, media as well."""
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def fileno(self) -> int:
        """To wait for: readable when there is something."""
        return self._socket.fileno()

    def read(self) -> Segment | None:
        """The next one; None: there is none now, or what came was broken. Raises OSError."""
        try:
            data, more, _, (interface, *_) = self._socket.recvmsg(1 << 16, 64)
        except BlockingIOError:
            return None
        return segment(data, interface, _time(more))

    def lost(self) -> int:
        """How many had no room since this was asked."""
        _, lost = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return int(lost)

    def _drain(self) -> None:
        """What came before the filter was there."""
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(1)

    def _attach(self, program: bytes) -> None:
        buffer = ctypes.create_string_buffer(program)
        fprog = struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def _time(more: Iterable[tuple[int, int, bytes]]) -> int:
    """When it was there, in ns of the epoch; 0: nobody says."""
    for level, kind, data in more:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS, 16):
            seconds, ns = struct.unpack("=qq", data)
            return int(seconds) * 10**9 + int(ns)
    return 0


# An instruction: what it does, its field, and the labels to go to if it is so and if it is not; a
# string is the label of what follows it.
_Step = tuple[int, int] | tuple[int, int, str, str] | str


def _filter(ports: Collection[int], *, outgoing: bool) -> bytes:
    """Classic BPF: whole packets of UDP and TCP from or to these ports. It begins at the IP
    header."""
    steps: list[_Step] = [(_LOAD_WORD, _PACKET_TYPE)]
    if outgoing:
        steps += [(_IF_EQUAL, _OUTGOING, "", "drop")]
        steps += [(_LOAD_WORD, _PROTOCOL), (_IF_EQUAL, _ETH_P_IP, "", "drop")]
    else:  # what a promiscuous interface overhears is not for us
        steps += [(_IF_EQUAL, _OTHERHOST, "drop", "")]
    steps.append((_LOAD_BYTE, 9))
    steps += [(_IF_EQUAL, _UDP, "whole", ""), (_IF_EQUAL, _TCP, "whole", "drop"), "whole"]
    # A fragment that could not be put together has no ports, or not all that it speaks of.
    steps += [(_LOAD_HALF, 6), (_IF_BITS, 0x3FFF, "drop", ""), (_LOAD_HEADER_LENGTH, 0)]
    for offset in (0, 2):
        steps.append((_LOAD_HALF_BEHIND, offset))
        steps += [(_IF_EQUAL, port, "take", "") for port in ports]
    steps += ["drop", (_RETURN, 0), "take", (_RETURN, 0xFFFF)]
    return _assembled(steps)


def _assembled(steps: list[_Step]) -> bytes:
    instructions = [each for each in steps if not isinstance(each, str)]
    labels, number = {"": 0}, 0
    for each in steps:
        if isinstance(each, str):
            labels[each] = number
        else:
            number += 1
    program = b""
    for at, (operation, value, *targets) in enumerate(instructions):
        jumps = [labels[each] - at - 1 if each else 0 for each in map(str, targets)] or [0, 0]
        program += struct.pack("HBBI", operation, *jumps, value)
    return program


def segment(data: bytes, interface: str = "", when: int = 0) -> Segment | None:
    """An IPv4 packet of UDP or TCP, from its first byte on; None: it is none, or broken."""
    if len(data) < 20:
        return None
    first, length, _, protocol, source, destination = _IP.unpack_from(data)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or length > len(data):
        return None
    rest = data[header:length]
    if protocol == _UDP and len(rest) >= 8:
        sport, dport, size = struct.unpack_from("!HHH", rest)
        if not 8 <= size <= len(rest):
            return None
        return Segment(
            (source, sport), (destination, dport), False, rest[8:size],
            interface=interface, time=when,
        )  # fmt: skip
    if protocol == _TCP and len(rest) >= 20:
        sport, dport, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", rest)
        size = (offset >> 4) * 4
        if not 20 <= size <= len(rest):
            return None
        return Segment(
            (source, sport), (destination, dport), True, rest[size:],
            sequence, bool(flags & _SYN), bool(flags & _END), interface, when,
        )  # fmt: skip
    return None
