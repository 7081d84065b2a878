"""Listening to a firewall: flows are counted in the kernel (bpf/flows.c), SIP is taken whole."""

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.attach import compiler
from moh_ebpf.discover.ports import sip_ports
from moh_ebpf.discover.seen import Captured, End, Flow, Sighting, Surroundings, Traffic
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.capture import Capture
from moh_ebpf.kernel.clock import kernel_ns
from moh_ebpf.kernel.interfaces import all_addresses, all_names, where_seen_again
from moh_ebpf.kernel.routes import ANYWHERE, is_direct, way_to
from moh_ebpf.settings import DEFAULTS, MOST_SIP_PORTS

MOST_FLOWS = 16384
_MOST_SIP_BYTES = 8 << 20
_MOST_WAYS = 1024  # that are asked for
_TICK_SECONDS = 1.0
_SO_ATTACH_BPF = 50  # asm-generic/socket.h
_ETH_P_ALL = 0x0003

# bpf/flows.c: struct flow_key, struct flow.
_KEY = struct.Struct("=4s4s2s2sIBBxx")
_FLOW = struct.Struct("=QQQQQ4sHxx")

Tell = Callable[[float, list[Flow], int], None]


def listen(seconds: float, ready: Callable[[], None], tell: Tell) -> Sighting:
    """For so long, or until a KeyboardInterrupt; nothing is changed. `ready` is called when all is
    heard from then on; `tell` is given the seconds that have passed, the flows and the messages of
    SIP so far, once a second.

    Raises OSError without the rights (CAP_NET_RAW), MohError if the filter cannot be loaded.
    """
    with _Ear() as ear:
        is_ended_early = False
        try:
            ready()
            while (left := ear.began + seconds - time.monotonic()) > 0:
                ear.hear(min(left, _TICK_SECONDS))
                ear.look()
                tell(time.monotonic() - ear.began, ear.flows, len(ear.heard))
        except KeyboardInterrupt:
            is_ended_early = True
        ear.look()
        return Sighting(
            time.monotonic() - ear.began,
            tuple(ear.flows),
            tuple(ear.heard),
            ear.host,
            {reason: count for reason, count in ear.not_counted().items() if count},
            is_ended_early,
        )


class _Ear:
    """What listens, until it is left."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.flows: list[Flow] = []
        self.heard: list[Captured] = []
        # Of interfaces, addresses and routes, what was so when it was first asked.
        self.host = Surroundings({}, {}, {})
        self._asked: set[IPv4Address] = set()
        self._ports: set[int] = set(DEFAULTS["sip_ports"])
        self._captures: list[Capture] = []
        self._bytes = self._left_out = self._lost = 0

    def __enter__(self) -> "_Ear":
        with ExitStack() as stack:
            module, program = compiler.load_filter("flows.c", "moh_flows", MOST_FLOWS=MOST_FLOWS)
            stack.callback(module.cleanup)
            self._flows, self._not_counted = (
                libbpf.map_info(module[name].map_fd) for name in (b"flows", b"not_counted")
            )
            self._ipr = stack.enter_context(IPRoute())
            stack.callback(self._close_captures)
            self._listen_for_sip()
            self.began, self._began_ns = time.monotonic(), kernel_ns()
            self._epoch = time.time()
            everything = socket.htons(_ETH_P_ALL)
            listening = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, everything)
            stack.enter_context(listening).setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def hear(self, seconds: float) -> None:
        """SIP, for so long."""
        end = time.monotonic() + seconds
        with select.epoll() as poll:
            for each in self._captures:
                poll.register(each.fileno(), select.EPOLLIN)
            while (left := end - time.monotonic()) > 0:
                if poll.poll(left):
                    self._take()

    def look(self) -> None:
        """What the kernel has counted; and where else SIP is spoken."""
        self._take()
        self.flows = list(self._counted())
        self.host = self._ask()
        ports = sip_ports(self.flows) | self._ports
        if ports != self._ports and len(ports) <= MOST_SIP_PORTS:
            self._ports = ports
            self._close_captures()
            self._listen_for_sip()

    def _ask(self) -> Surroundings:
        """The machine, of itself, and of the way to whom it was seen to speak with."""
        before = self.host
        ends = [end for flow in self.flows for end in (flow.source, flow.destination)]
        new = {each.address for each in ends} - self._asked
        asked = list(new)[: _MOST_WAYS - len(self._asked)]
        self._asked.update(asked)
        ways = {each: way_to(self._ipr, each) for each in asked}
        direct = {each for each in asked if is_direct(self._ipr, each)}
        return Surroundings(
            all_names(self._ipr) | dict(before.names),
            all_addresses(self._ipr) | dict(before.own),
            {each: way for each, way in ways.items() if way is not None} | dict(before.ways),
            before.default or way_to(self._ipr, ANYWHERE),
            where_seen_again(self._ipr) | dict(before.again),
            before.direct | direct,
        )

    def not_counted(self) -> dict[str, int]:
        """Packets, by why they are in nothing of this."""
        without_room = struct.unpack("=Q", libbpf.lookup(self._not_counted, bytes(4)))[0]
        self._lost += sum(each.lost() for each in self._captures)
        return {
            "packets of more flows than there is room for": without_room,
            "SIP that came too fast": self._lost,
            "SIP beyond what is kept": self._left_out,
        }

    def _listen_for_sip(self) -> None:
        for outgoing in (False, True):
            self._captures.append(Capture(self._ports, outgoing=outgoing))
            self._captures[-1].stamp()

    def _close_captures(self) -> None:
        for each in self._captures:
            with suppress(OSError):
                self._lost += each.lost()
            each.close()
        self._captures = []

    def _take(self) -> None:
        for capture in self._captures:
            with suppress(OSError):  # an interface is down
                while (segment := capture.read()) is not None:
                    if self._bytes + len(segment.data) > _MOST_SIP_BYTES:
                        self._left_out += 1
                        continue
                    self._bytes += len(segment.data)
                    passed = segment.time / 1e9 - self._epoch
                    self.heard.append(Captured(segment, capture.is_outgoing, passed))

    def _counted(self) -> Iterator[Flow]:
        for keys, values in libbpf.entries(self._flows):
            pairs = zip(_KEY.iter_unpack(keys), _FLOW.iter_unpack(values), strict=True)
            yield from (self._flow(key, value) for key, value in pairs)

    def _flow(self, key: tuple[Any, ...], value: tuple[Any, ...]) -> Flow:
        source, destination, sport, dport, interface, traffic, is_outgoing = key
        first, last, longest_gap, packets, followed, *_ = value
        return Flow(
            interface,
            bool(is_outgoing),
            Traffic(traffic),
            _end(source, sport),
            _end(destination, dport),
            (first - self._began_ns) / 1e9,
            (last - self._began_ns) / 1e9,
            longest_gap / 1e9,
            packets,
            followed,
        )


def _end(address: bytes, port: bytes) -> End:
    return End(IPv4Address(address), int.from_bytes(port, "big"))
