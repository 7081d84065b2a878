"""The real programs, loaded but attached nowhere, run on single packets by BPF_PROG_TEST_RUN."""

import ctypes
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPRoute
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from moh_ebpf import layout, settings
from moh_ebpf.attach import attachment
from moh_ebpf.attach.plan import make_plan
from moh_ebpf.calls.events import KernelEvent
from moh_ebpf.calls.peers import Peer, Wait, Wan
from moh_ebpf.kernel import libbpf
from moh_ebpf.layout import State
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import tell_signalled
from moh_ebpf.registry.record import Record, Role
from moh_ebpf.registry.ring import Ring
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import rtp, udp

UNSPEC, SHOT, REDIRECT = -1, 2, 7


# struct __sk_buff up to gso_size: 48 words; of those that a test run takes, the ones that we set.
_SKB_WORDS = 48
_SKB_IFINDEX = 10
_SKB_GSO_SEGS = 41
_SKB_GSO_SIZE = 44

# The kernel sums the packet (CHECKSUM_COMPLETE), and checks that sum after the run (linux/bpf.h).
COMPLETE = 1 << 2

# The times that a struct peer has.
_TIMES = (
    "last_seen",
    "since",
    "moved",
    "rtcp_at",
    "signalled_at",
    "signalled_until",
    "turned",
    "gainsaid",
    "out_last",
    "new_since",
    "new_last",
    "hop_checked",
)

# The programs' own clock, to the tick (linux/time.h): an age set by it is the one they see.
_CLOCK_MONOTONIC_COARSE = 6


@dataclass(frozen=True)
class Run:
    """A test run's last verdict, the frame after it, and the mean ns of its repetitions."""

    verdict: int
    frame: bytes
    ns: int


def run_program(
    fd: int,
    frame: bytes,
    ifindex: int,
    repeat: int = 1,
    flags: int = 0,
    segments: int = 0,
    size: int = 0,
) -> Run:
    """Run a program on a frame that came by this interface of this thread's namespace.

    Repeated, it is given the frame as it has left it the time before. Raises OSError, EBADMSG if
    with COMPLETE the sum of the whole packet is wrong afterwards.
    """
    out = ctypes.create_string_buffer(len(frame) + 256)
    data = ctypes.create_string_buffer(frame, len(frame))
    words = [0] * _SKB_WORDS
    words[_SKB_IFINDEX] = ifindex
    words[_SKB_GSO_SEGS] = segments
    words[_SKB_GSO_SIZE] = size
    context = ctypes.create_string_buffer(struct.pack(f"={_SKB_WORDS}I", *words))
    options = libbpf.TestRunOptions(
        sz=ctypes.sizeof(libbpf.TestRunOptions),
        data_in=ctypes.addressof(data),
        data_out=ctypes.addressof(out),
        data_size_in=len(frame),
        data_size_out=len(out),
        ctx_in=ctypes.addressof(context),
        ctx_size_in=_SKB_WORDS * 4,
        repeat=repeat,
        flags=flags,
    )
    libbpf.call("bpf_prog_test_run_opts", fd, ctypes.byref(options))
    verdict = ctypes.c_int32(options.retval).value
    return Run(verdict, out.raw[: options.data_size_out], options.duration)


@dataclass(frozen=True)
class PeerState:
    """A peer as tests speak of it; `age` in seconds."""

    state: State
    public: str
    age: float = 0.0
    wan: int = 0
    source: str | None = None  # UCM's endpoint that has sent to it
    told: bool = False  # readers know of it
    sent: bool = False  # the first packet to it has gone out


class Bench:
    """Programs and maps of one plan, in the firewall's namespace for its routes."""

    def __init__(self, firewall: Firewall, **values: object) -> None:
        self.firewall = firewall
        chosen = settings.from_values(
            {"wan": "wan", "lan": "lan", "ucm": "10.10.10.10", "timeout": "10s", **values}
        )
        with firewall.namespace.entered(), IPRoute() as ipr:
            plan = make_plan(ipr, chosen)
        record = Record(
            chosen, "test", tuple(i.index for i in plan.wan), tuple(i.index for i in plan.lan), ()
        )
        self.loaded = attachment.load(plan, record, None)
        self.programs = self.loaded.programs
        self.ifindex = {each.name: each.index for each in (*plan.wan, *plan.lan)}
        self._attached = Attached({}, record, self.loaded.maps)
        self.ring = Ring(self.loaded.maps.opened["events"])

    def run(
        self,
        role: Role,
        packet: Packet | bytes,
        interface: str | None = None,
        flags: int = 0,
        segments: int = 0,
        size: int = 0,
    ) -> tuple[int, bytes]:
        """The verdict, and the frame after it. Ethernet is put before a bare IP packet. As GRO
        makes it, it is one of so many segments, of `size` bytes each."""
        wire = self.firewall.lan if role is Role.BYPASS else self.firewall.wan
        if not isinstance(packet, bytes):
            packet = bytes(packet if Ether in packet else wire.frame(packet))
        ifindex = self.ifindex[interface or wire.interface]
        with self.firewall.namespace.entered():
            done = run_program(
                self.programs[role], packet, ifindex, flags=flags, segments=segments, size=size
            )
        return done.verdict, done.frame

    def learn(self, public: str, *sequence: int, endpoint: str = PROVIDER) -> None:
        """RTP of an endpoint, with these sequence numbers."""
        for number in sequence:
            self.run(Role.LEARN, udp(endpoint, public, rtp(number)))

    def send(
        self, role: Role, *sequence: int, source: str = f"{UCM}:24576", to: str = PROVIDER
    ) -> list[int]:
        """UCM's RTP to an endpoint, with these sequence numbers; the verdicts."""
        return [self.run(role, udp(source, to, rtp(number)))[0] for number in sequence]

    def set_peer(self, endpoint: str, peer: PeerState) -> None:
        now = time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)
        values: dict[str, object] = dict.fromkeys(layout.PEER_FIELDS, 0)
        values["in_rtp"] = values["out_rtp"] = bytes(layout.RTP.size)
        values["heard"] = layout.HEARD.pack(*_packed(peer.public), peer.state, peer.wan)
        values["told"] = int(peer.told)
        values["out_first"] = now * peer.sent
        values["by_rtcp"] = values["signalled"] = bytes(layout.HEARD.size)
        values["moved_ssrc"] = bytes(4)
        values["out_before"] = bytes(layout.ENDPOINT.size)
        values["out_from"] = (
            layout.ENDPOINT.pack(*_packed(peer.source)) if peer.source else values["out_before"]
        )
        values["last_seen"] = values["since"] = now - int(peer.age * 1e9)
        libbpf.update(
            self.loaded.maps.opened["peers"],
            layout.ENDPOINT.pack(*_packed(endpoint)),
            layout.PEER.pack(*values.values()),
        )

    def age_all(self, seconds: float) -> None:
        """As if so many seconds had passed: every time that the map keeps is moved back."""

        def age(fields: dict[str, Any]) -> None:
            for name in _TIMES:
                fields[name] -= min(int(seconds * 1e9), fields[name])

        self._change_peers(age)
        self.age_waiting(seconds)
        self.age_reports(seconds)
        self._age_others(seconds)
        self._change(
            "signalled",
            layout.SIGNALLED,
            lambda said: (
                *said[:2],
                *(each - int(seconds * 1e9) for each in said[2:4]),
                *said[4:],
            ),
        )
        self._age_wans(seconds)

    def age_streams(self, seconds: float) -> None:
        """As if so many seconds had passed since the last packet of each inbound stream."""

        def age(fields: dict[str, Any]) -> None:
            words = layout.RTP.unpack(fields["in_rtp"])
            stream = dict(zip(layout.RTP_FIELDS, words, strict=True))
            for name in ("arrival", "began", "timed"):
                stream[name] -= int(seconds * 1e9)
            fields["in_rtp"] = layout.RTP.pack(*stream.values())

        self._change_peers(age)

    def trust_hops(self) -> None:
        """As if each next hop, which is trusted for 100 ms, had been looked up just now: the next
        packet may be as late as the machine likes."""

        def trust(fields: dict[str, Any]) -> None:
            assert fields["hop_checked"], "no next hop is remembered"
            fields["hop_checked"] += 3600 * 10**9 & ~0xFFFF  # the rest is HOP_SUM (bpf/config.h)

        self._change_peers(trust)

    def mix_hops(self, word: str) -> None:
        """As a CPU may see it that reorders loads: this word of each next hop, `hop_dst` or
        `hop_src`, is that of another one, with other MACs."""

        def mix(fields: dict[str, Any]) -> None:
            fields[word] ^= 0x55_55_55_55_55_55

        self._change_peers(mix)

    def _change_peers(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Each peer's fields of the map, written again as `change` has left them."""

        def changed(value: tuple[Any, ...]) -> tuple[Any, ...]:
            fields = layout.by_field(value)
            change(fields)
            return tuple(fields.values())

        self._change("peers", layout.PEER, changed)

    def age_waiting(self, seconds: float) -> None:
        """As if UCM's packets to those that are not heard had come so long ago."""

        def age(wait: tuple[Any, ...]) -> tuple[Any, ...]:
            first, last, packets, passed, *rest = wait
            first, last, passed = (
                each and each - int(seconds * 1e9) for each in (first, last, passed)
            )
            return first, last, packets, passed, *rest

        self._change("waiting_for", layout.WAITING, age)

    def age_reports(self, seconds: float) -> None:
        """As if all RTCP had come so many seconds earlier."""
        if "reports" in self.loaded.maps:
            self._change(
                "reports", layout.REPORT, lambda report: (report[0], report[1] - int(seconds * 1e9))
            )

    def _age_others(self, seconds: float) -> None:
        self._change("others", struct.Struct("=Q"), lambda used: (used[0] - int(seconds * 1e9),))

    def _change(
        self,
        name: str,
        packed: struct.Struct,
        change: Callable[[tuple[Any, ...]], tuple[Any, ...]],
    ) -> None:
        """Each value of a map, written again as `change` returns it."""
        of = self.loaded.maps.opened[name]
        for keys, values in list(libbpf.entries(of)):
            for at, value in enumerate(packed.iter_unpack(values)):
                key = keys[at * of.key_size :][: of.key_size]
                libbpf.update(of, key, packed.pack(*change(value)))

    def _age_wans(self, seconds: float) -> None:
        for index, times in enumerate(self._wans()):
            moved = [each and each - int(seconds * 1e9) for each in times]
            self._set_wan(index, *moved)

    def _wans(self) -> list[tuple[int, ...]]:
        """Each WAN's struct wan."""
        wans = self.loaded.maps.opened["wans"]
        return [
            layout.WAN.unpack(libbpf.lookup(wans, layout.index(index)))
            for index in range(len(self._attached.record.wan))
        ]

    def _set_wan(self, index: int, *times: int) -> None:
        libbpf.update(self.loaded.maps.opened["wans"], layout.index(index), layout.WAN.pack(*times))

    def set_learned(self, age: float | None = -5.0, wan: int = 0) -> None:
        """As if learn had last read a packet on this WAN so many seconds ago; None: never. By
        default in some seconds, so that it stays fresh however long the machine pauses."""
        now = time.clock_gettime_ns(_CLOCK_MONOTONIC_COARSE)
        self._set_wan(wan, 0 if age is None else now - int(age * 1e9), 0, 0, 0)

    def wans(self) -> list[Wan]:
        return self._attached.wans()

    def waits(self) -> list[Wait]:
        return self._attached.waits()

    def signal(
        self,
        endpoint: str,
        state: State | None,
        *,
        source: str | None = None,
        public: str | None = None,
        lease: float = 600.0,
        age: float = 0.0,
        told: bool = True,
        renewed: bool = False,
    ) -> None:
        """What signalling says of an endpoint since `age` seconds: UCM's port, and by default the
        state's public address and port; None: nothing. Without `told`, the map has it and no
        command tells. `renewed`: by the same message as before.
        """
        key, value = layout.ENDPOINT.pack(*_packed(endpoint)), None
        if state is not None:
            port = "4000" if state is State.MOH else (source or UCM).split(":")[-1]
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            at = now - int(age * 1e9)
            if renewed:
                entry = self.loaded.maps.signalled_at(key)
                assert entry, "nothing to renew"
                at = layout.SIGNALLED.unpack(entry)[2]
            value = layout.SIGNALLED.pack(
                layout.HEARD.pack(*_packed(public or f"{PUBLIC}:{port}"), state, layout.NO_WAN),
                layout.ENDPOINT.pack(*_packed(source)) if source else bytes(layout.ENDPOINT.size),
                at,
                now + int(lease * 1e9),
                0,
                b"call@example.org",
                b"",
                b"",
            )
        self.loaded.maps.put_signalled(key, value)
        if told:
            tell_signalled(self.programs[Role.LEARN], key)

    def peers(self) -> dict[str, tuple[str, str]]:
        """Endpoint → state and public address:port, also of those that nobody is told of."""
        return {each.endpoint: (each.state.name, each.public) for each in self.all_peers()}

    def all_peers(self) -> list[Peer]:
        """Also those that nobody is told of."""
        return self._attached.snapshot(untold=True).peers

    def shown(self) -> dict[str, tuple[str, str]]:
        """Endpoint → state and by what it is known, of those that readers are told of."""
        return {
            each.endpoint: (each.state.name, each.identified.name)
            for each in self._attached.snapshot().peers
        }

    def unheard(self) -> list[str]:
        return [each.endpoint for each in self._attached.unheard()]

    def counters(self) -> dict[str, int]:
        """Those that are not 0, but for the sums over RTP streams."""
        counters = self._attached.counters()
        return {name: n for name, n in counters.items() if n and not name.startswith("rtp_")}

    def rtp_counters(self) -> dict[str, int]:
        """The sums over RTP streams that are not 0."""
        counters = self._attached.counters()
        return {name: n for name, n in counters.items() if n and name.startswith("rtp_")}

    def events(self) -> list[KernelEvent]:
        """What the programs have told since the last call."""
        records, missed = self.ring.read()
        assert missed == 0
        return records

    def clear(self) -> None:
        """No peers, no reports, all counters 0, nobody waiting, no events."""
        names = {"peers", "reports", "others", "waiting_for", "signalled"}
        for name in names & self.loaded.maps.opened.keys():
            each = self.loaded.maps.opened[name]
            for keys, _ in list(libbpf.entries(each)):
                for at in range(0, len(keys), each.key_size):
                    libbpf.delete(each, keys[at : at + each.key_size])
        self.ring.read()
        for index in range(len(self._attached.record.wan)):
            self._set_wan(index, *([0] * len(layout.WAN_FIELDS)))
        counters = self.loaded.maps.opened["counters"]
        size = counters.value_size * len(libbpf.lookup_per_cpu(counters, b"\0\0\0\0"))
        libbpf.update(counters, b"\0\0\0\0", b"\0" * size)

    def close(self) -> None:
        self.ring.close()
        self.loaded.close()


def _packed(endpoint: str) -> tuple[bytes, bytes]:
    address, port = endpoint.split(":")
    return IPv4Address(address).packed, int(port).to_bytes(2, "big")


@contextmanager
def bench(firewall: Firewall, **values: object) -> Iterator[Bench]:
    made = Bench(firewall, **values)
    try:
        yield made
    finally:
        made.close()
