"""Every kind of link as WAN and as LAN, with real hosts behind it: attached once to all of them.

  ucm                    firewall                      provider
10.M.0.10 ── lanM 10.M.0.1 │ wanN 198.51.N.2 ── 198.51.N.1, lo 203.0.113.N

What a kind is tried for stands in its test's name, of which docs/links.md is made.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from moh_ebpf.kernel import capture as kernel
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.service.sides import Side, Sides
from tests.support import links
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.links import KINDS, REFUSED, VETH, End, Kind
from tests.support.namespace import Namespace, namespace
from tests.support.waiting import until
from tests.support.wire import flow, rtp, udp

# What a link's packets are wrapped in is not tracked: an ipvlan in mode l3 sends its own once more
# through the namespace of the interface below, which is the firewall's here.
# UCM at `direct` is routed, not masqueraded, and named by no --lan: what enforce is for.
RULES = """
table ip filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "u*" accept;
        ct state established,related accept;
    };
};
table ip raw {
    chain output {
        type filter hook output priority raw; policy accept;
        oifname "u*" notrack;
    };
};
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan*" ip saddr != 10.250.0.0/24 masquerade;
    };
};
"""
DIRECT = 250
# Of the WANs, one for each way in which a packet leaves.
WAYS_OUT = {"veth", "VLAN with reorder_hdr off", "xfrm", "multipoint GRE", "tun"}
LAN_NUMBERS = 100  # a link's number: that of its kind, plus this if it is a LAN
PACKETS = 8
PATIENCE_SECONDS = 20.0
SECONDS_BETWEEN = 0.09  # so that PACKETS take longer than a next hop is kept

_ETH_P_IP = 0x0800
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_OUTGOING = 263, 8, 4
_TP_STATUS_CSUMNOTREADY = 0x8
_UDP_SEGMENT = 103


@dataclass
class Links:
    """What this kernel has, by name of the kind; `lacking` is why it has not the others. `maps` are
    read by this process, because a command takes its time under emulation."""

    firewall: Namespace
    ucm: Namespace
    provider: Namespace
    numbers: dict[str, dict[str, int]] = field(default_factory=lambda: {"wan": {}, "lan": {}})
    lacking: dict[str, str] = field(default_factory=dict)
    maps: Attached = field(init=False)

    def ifindexes(self, role: str) -> list[int]:
        """In the firewall's namespace."""
        return [socket.if_nametoindex(name) for name in self.names(role)]

    def names(self, role: str) -> list[str]:
        return [f"{role}{number}" for number in self.numbers[role].values()]

    def number(self, role: str, kind: Kind) -> int:
        if kind.name in self.lacking:
            pytest.skip(f"this kernel has no {kind.name}: {self.lacking[kind.name]}")
        return self.numbers[role][kind.name]

    def ways_out(self) -> list[int]:
        return [number for name, number in self.numbers["wan"].items() if name in WAYS_OUT]

    def peers(self) -> dict[str, str]:
        """Endpoint → state, by the first packet, before which nobody is told."""
        known = self.maps.snapshot(untold=True).peers
        return {each.endpoint: each.state.name for each in known}

    def counters(self) -> dict[str, int]:
        return self.maps.counters()


@pytest.fixture(scope="module")
def attached() -> Iterator[Links]:
    with ExitStack() as stack:
        ucm, fw, provider = (stack.enter_context(namespace(n)) for n in ("ucm", "fw", "provider"))
        made = Links(fw, ucm, provider)
        for place in (ucm, fw, provider):
            place.sysctl("net.ipv4.conf.all.arp_ignore", 1)
        fw.sysctl("net.ipv4.ip_forward", 1)
        fw.nft(RULES)
        for order, kind in enumerate(KINDS, 1):
            add(made, stack, kind, "wan", order)
            if kind.is_lan:
                add(made, stack, kind, "lan", order + LAN_NUMBERS)
        add_link(made, stack, VETH, "direct", DIRECT)
        route(made)
        ucms = [f"10.{number}.0.10" for number in (*made.numbers["lan"].values(), DIRECT)]
        words = ["attach", "--timeout", "60m", "--max-peers", "1024", "--wan", *made.names("wan")]
        words += ["--lan", *made.names("lan"), "--ucm", *ucms]
        # To so many interfaces it takes minutes under emulation.
        fw.run(sys.executable, "-m", "moh_ebpf", *words, timeout=900)
        with fw.entered(), IPRoute() as ipr:
            found = stack.enter_context(walk.found(ipr))
        assert found.attached
        made.maps = found.attached
        yield made


def add(made: Links, stack: ExitStack, kind: Kind, role: str, number: int) -> None:
    if kind.name in made.lacking:
        return
    if said := add_link(made, stack, kind, role, number):
        made.lacking[kind.name] = said
    else:
        made.numbers[role][kind.name] = number


def add_link(made: Links, stack: ExitStack, kind: Kind, role: str, number: int) -> str | None:
    if role == "wan":
        far = End(made.provider, f"wan{number}", f"198.51.{number}.1")
        near, beyond = End(made.firewall, far.name, f"198.51.{number}.2"), f"203.0.113.{number}/32"
        made.provider.run("ip", "address", "add", beyond, "dev", "lo")
    else:
        far = End(made.ucm, f"lan{number}", f"10.{number}.0.10")
        near, beyond = End(made.firewall, far.name, f"10.{number}.0.1"), f"10.{number}.0.10/32"
    return links.make(kind, number, stack, near, far, beyond)


def route(made: Links) -> None:
    """Each host answers by the link it was asked by; the firewall's VRF knows all routes."""
    lans = [*made.numbers["lan"].values(), DIRECT]
    wans = list(made.numbers["wan"].values())
    rules = [f"rule add from 10.{n}.0.10 lookup {n}" for n in lans]
    gateways = [f"default via 10.{n}.0.1 dev lan{n} onlink table {n}" for n in lans]
    links.must(made.ucm, "\n".join([*rules, *(f"route add {each}" for each in gateways)]))
    # A point-to-point link of PPP's has no network.
    back = [f"route replace 198.51.{n}.0/24 dev wan{n}" for n in wans]
    links.must(made.provider, "\n".join(back))
    ways = [f"10.{n}.0.0/24 dev lan{n}" for n in lans]
    ways += [f"203.0.113.{n} via 198.51.{n}.1 dev wan{n} onlink" for n in wans]
    port = "port of a VRF"
    vrfs = [numbers[port] for numbers in made.numbers.values() if port in numbers]
    tables = ["main", *map(str, vrfs)]
    replace = [f"route replace {way} table {table}" for table in tables for way in ways]
    links.must(made.firewall, "\n".join(replace))


@dataclass(frozen=True)
class Call:
    """An endpoint of the provider's and UCM's address; each pair of links has its own ports."""

    links: Links
    wan: int
    lan: int

    @property
    def endpoint(self) -> tuple[str, int]:
        return self.provider_sip, 20000 + 2 * self.lan

    @property
    def public(self) -> str:
        return f"198.51.{self.wan}.2"

    @property
    def ucm(self) -> str:
        return f"10.{self.lan}.0.10"

    @property
    def provider_sip(self) -> str:
        return f"203.0.113.{self.wan}"

    @property
    def name(self) -> str:
        return "{}:{}".format(*self.endpoint)

    def hear(self, port: int, state: str) -> None:
        """The endpoint sends to this port until it is known by it: a tunnel may take its time."""
        with closing(self.socket_at(self.links.provider, self.endpoint)) as end:
            end.sendto(rtp(), (self.public, port))
            until(f"{self.name} is {state}", lambda: self.links.peers().get(self.name) == state)

    def play(self) -> list[IP]:
        """Hold music with whole checksums and with partial ones; what has come of it."""
        with self.captured() as capture, closing(self._raw()) as raw:
            with closing(self.ucm_socket(24576)) as partial:
                for _ in range(PACKETS // 2):
                    packet = udp(f"{self.ucm}:24576", self.name)
                    raw.sendto(bytes(packet), self.endpoint)
                    partial.sendto(rtp(), self.endpoint)
                    time.sleep(SECONDS_BETWEEN)
            return capture.receive(PACKETS)

    def play_segments(self) -> list[int] | None:
        """Four packets of music that the sender hands over as one (GSO): the lengths that arrive.
        None: an interface there has no checksum offload, and the kernel takes no such packet."""
        with closing(self.socket_at(self.links.provider, self.endpoint)) as end:
            with closing(self.ucm_socket(24576)) as sender:
                sender.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, len(rtp()))
                try:
                    sender.sendto(rtp() * 4, self.endpoint)
                except OSError:
                    return None
            heard = [end.recvfrom(2000) for _ in range(4)]
            assert {address for _, address in heard} == {(self.public, 4000)}
            return [len(data) for data, _ in heard]

    def talk(self, port: int) -> None:
        """Both ways, by masquerade."""
        far = self.socket_at(self.links.provider, self.endpoint)
        near = self.ucm_socket(port)
        with closing(far), closing(near):
            near.sendto(rtp(), self.endpoint)
            assert far.recvfrom(2000) == (rtp(), (self.public, port))
            far.sendto(rtp(2), (self.public, port))
            assert near.recvfrom(2000) == (rtp(2), self.endpoint)

    def ucm_socket(self, port: int) -> socket.socket:
        return self.socket_at(self.links.ucm, (self.ucm, port))

    @contextmanager
    def captured(self) -> Iterator["Capture"]:
        with self.links.provider.entered():
            end = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        with closing(end):
            end.bind((f"wan{self.wan}", _ETH_P_IP))
            end.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            end.settimeout(PATIENCE_SECONDS)
            yield Capture(end, self.endpoint)

    def socket_at(self, place: Namespace, at: tuple[str, int]) -> socket.socket:
        with place.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(PATIENCE_SECONDS)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(at)
        return made

    def _raw(self) -> socket.socket:
        with self.links.ucm.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        made.bind((self.ucm, 0))
        return made


@dataclass(frozen=True)
class Capture:
    """The provider's end of a WAN, where what is for one endpoint is looked at."""

    end: socket.socket
    endpoint: tuple[str, int]

    def receive(self, count: int) -> list[IP]:
        """So many packets, each with the checksums that it must have."""
        found: list[IP] = []
        while len(found) < count:
            data, aux, _, address = self.end.recvmsg(65535, 256)
            if address[2] == _PACKET_OUTGOING:
                continue
            packet = IP(data)
            if UDP in packet and (packet.dst, packet[UDP].dport) == self.endpoint:
                assert_right(packet, is_partial=struct.unpack_from("I", aux[0][2])[0] & 8 != 0)
                found.append(packet)
        return found


def assert_right(packet: IP, *, is_partial: bool) -> None:
    again = packet.copy()
    del again.chksum
    if not is_partial:
        del again[UDP].chksum
    assert bytes(IP(bytes(again))) == bytes(packet)


def assert_music(call: Call, packets: list[IP], ttl: int = 63) -> None:
    assert [flow(packet) for packet in packets] == [(f"{call.public}:4000", call.name)] * PACKETS
    assert {packet.ttl for packet in packets} == {ttl}


def by_name(kinds: list[Kind]) -> dict[str, Any]:
    return {"argvalues": kinds, "ids": [each.name for each in kinds]}


wans = pytest.mark.parametrize("kind", **by_name(KINDS))
lans = pytest.mark.parametrize("kind", **by_name([kind for kind in KINDS if kind.is_lan]))
refusals = [(role, kind) for kind in REFUSED for role in ("wan", "lan")]
refusals += [("lan", kind) for kind in KINDS if not kind.is_lan]
refused = pytest.mark.parametrize(
    ("role", "kind"), refusals, ids=[f"{role}-{kind.name}" for role, kind in refusals]
)


@wans
def test_wan_holds(attached: Links, kind: Kind) -> None:
    """RTP to 4000 is learned and consumed, and the music leaves from there by bypass."""
    call = Call(attached, attached.number("wan", kind), attached.number("lan", VETH))
    before = attached.counters()
    call.hear(4000, "MOH")
    assert_music(call, call.play())
    after = attached.counters()
    grown = {name: after[name] - before[name] for name in ("consumed", "rewritten", "bypassed")}
    assert grown == {"consumed": 1, "rewritten": PACKETS, "bypassed": PACKETS}


@wans
def test_wan_calls(attached: Links, kind: Kind) -> None:
    call = Call(attached, attached.number("wan", kind), attached.number("lan", VETH))
    call.hear(24600, "TWO")
    call.talk(24600)


@wans
def test_wan_enforces(attached: Links, kind: Kind) -> None:
    """Rewritten in place at the WAN's egress; what is not identified is dropped there."""
    call = Call(attached, attached.number("wan", kind), DIRECT)
    before = attached.counters()
    with closing(call.ucm_socket(24576)) as ucm:
        ucm.sendto(rtp(), call.endpoint)
    until(
        "it is dropped",
        lambda: attached.counters()["dropped_unidentified"] > before["dropped_unidentified"],
    )
    call.hear(4000, "MOH")
    assert_music(call, call.play())
    after = attached.counters()
    assert after["rewritten"] - before["rewritten"] == PACKETS
    assert after["bypassed"] == before["bypassed"]


@lans
def test_lan_holds(attached: Links, kind: Kind) -> None:
    lan = attached.number("lan", kind)
    for wan in attached.ways_out():
        call = Call(attached, wan, lan)
        call.hear(4000, "MOH")
        before = attached.counters()["bypassed"]
        assert_music(call, call.play())
        assert attached.counters()["bypassed"] - before == PACKETS


@lans
def test_lan_calls(attached: Links, kind: Kind) -> None:
    lan = attached.number("lan", kind)
    call = Call(attached, attached.number("wan", VETH), lan)
    call.hear(25000 + lan, "TWO")
    call.talk(25000 + lan)


@wans
def test_wan_sip(attached: Links, kind: Kind) -> None:
    call = Call(attached, attached.number("wan", kind), DIRECT)
    assert_heard(call, call.provider_sip, call.public, Side.WAN)


@lans
def test_lan_sip(attached: Links, kind: Kind) -> None:
    call = Call(attached, attached.number("wan", VETH), attached.number("lan", kind))
    assert_heard(call, call.ucm, call.provider_sip, Side.LAN)


def assert_heard(call: Call, source: str, to: str, side: Side) -> None:
    """SIP is, on this side and from its sender."""
    links, data = call.links, f"{source} {to}".encode()
    place = links.provider if side is Side.WAN else links.ucm
    with links.firewall.entered(), closing(kernel.Capture([5060])) as capture:
        sides = Sides(links.ifindexes("wan"), links.ifindexes("lan"), ())
        with closing(call.socket_at(place, (source, 5060))) as sender:

            def heard() -> tuple[tuple[bytes, int], Side | None] | None:
                sender.sendto(data, (to, 5060))
                segments = iter(capture.read, None)
                ours = [each for each in segments if each.data == data]
                return next(((each.source, sides.of(each.interface)) for each in ours), None)

            found = until("SIP is heard", heard)
    assert found == ((socket.inet_aton(source), 5060), side)


@lans
def test_lan_segments(attached: Links, kind: Kind) -> None:
    """One packet that is several (GSO)."""
    lan = attached.number("lan", kind)
    for wan in attached.ways_out():
        call = Call(attached, wan, lan)
        call.hear(4000, "MOH")
        assert call.play_segments() in (None, [len(rtp())] * 4)


@refused
def test_refused(role: str, kind: Kind) -> None:
    with namespace("fw") as fw, namespace("far") as far, ExitStack() as stack:
        here, there = End(fw, f"{role}9", "10.9.0.1"), End(far, f"{role}9", "10.9.0.2")
        said = links.make(kind, 9, stack, here, there, "10.9.9.9/32")
        if said:
            pytest.skip(f"this kernel has no {kind.name}: {said}")
        before = fw.tc_state(f"{role}9", f"u{role}9")
        other = {"wan": "--lan", "lan": "--wan"}[role]
        words = [f"--{role}", f"{role}9", other, f"u{role}9", "--ucm", "10.10.10.10"]
        attached = fw.moh("attach", *words, check=False)
        assert attached.returncode == 2
        assert attached.stderr.startswith(f"moh-ebpf: --{role} {role}9: that is a")
        assert kind.name.split(",")[0] in attached.stderr
        assert "Traceback" not in attached.stderr
        why = attached.stderr.partition(": that")[2].partition("; try")[0]
        doctor = fw.moh("doctor", *words, "--json", check=False)
        assert doctor.returncode == 1
        assert f"that{why}" in doctor.stdout
        assert fw.tc_state(f"{role}9", f"u{role}9") == before


# What an interface whose kind does not tell where IP begins goes through, on interfaces that any
# kernel has.
SEARCHING = """
import sys
from moh_ebpf import cli
from moh_ebpf.kernel import interfaces
interfaces.link_header_of = lambda link, links, known=interfaces.link_header_of: (
    None if link.get_attr("IFLA_IFNAME") in {names!r} else known(link, links)
)
cli.main()
"""


def attach_searching(fw: Firewall, *names: str, wan: str = "wan", lan: str = "lan") -> None:
    words = f"attach --timeout 60m --wan {wan} --lan {lan} --ucm {UCM}".split()
    script = SEARCHING.format(names=names)
    fw.namespace.run(sys.executable, "-c", script, *words)


def test_a_lan_without_link_header_to_a_wan_that_is_searched(fw: Firewall) -> None:
    """The kernel's neighbour code makes the WAN's link header, and wants one to take away."""
    lan = fw.add_tun("lan2", "10.10.20.1/24")
    fw.namespace.run("ip", "route", "add", f"{UCM}/32", "dev", "lan2")
    attach_searching(fw, "wan", lan="lan2")
    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000"))
    lan.send(*[udp(f"{UCM}:24576", PROVIDER)] * 5)
    sent = fw.wan.sent()
    assert [flow(packet) for packet in sent] == [(f"{PUBLIC}:4000", PROVIDER)] * 5
    assert {(p[Ether].src, p[Ether].dst) for p in sent} == {(fw.wan.firewall_mac, fw.wan.mac)}


def test_headers_to_be_found_beyond_the_linear_area(fw: Firewall) -> None:
    for wire in (fw.lan, fw.wan):
        wire.set_mtu(9000)
    attach_searching(fw, "wan", "lan")
    fw.wan.send_paged(udp(PROVIDER, f"{PUBLIC}:4000", rtp(size=6000)))
    fw.lan.send_paged(*[udp(f"{UCM}:24576", PROVIDER, rtp(size=6000))] * 3)
    sent = fw.wan.sent()
    assert [flow(packet) for packet in sent] == [(f"{PUBLIC}:4000", PROVIDER)] * 3
    for packet in sent:
        assert_right(packet[IP], is_partial=False)
