"""What the firewall puts on its wires: routes, neighbours, other interfaces, other packets."""

import json

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from moh_ebpf.kernel.tc import Hook
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.foreign import counter
from tests.support.waiting import until
from tests.support.wire import Tun, Wire, flow, rtp, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"
# Long enough for a slow machine; what expires has tests of its own.
PATIENT = ("--timeout", "60s")


def counters(fw: Firewall) -> dict[str, int]:
    """Those that are not 0, but for the sums over RTP streams."""
    shown = json.loads(fw.moh("status", "--json").stdout)["counters"]
    return {name: n for name, n in shown.items() if n and not name.startswith("rtp_")}


def flows(packets: list[Packet]) -> list[tuple[str, str]]:
    return [flow(packet) for packet in packets if UDP in packet]


def test_rtcp_has_the_next_port(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    report = b"\x80\xc8\x00\x06" + bytes(24)
    fw.wan.send(udp("203.0.113.10:21001", f"{PUBLIC}:4001", report))
    fw.lan.send(udp(f"{UCM}:24577", "203.0.113.10:21001", report))
    assert flows(fw.wan.sent()) == [(f"{PUBLIC}:4001", "203.0.113.10:21001")]


def test_settings_of_ones_own(fw: Firewall) -> None:
    fw.moh(
        "attach",
        "--wan",
        "wan",
        "--lan",
        "lan",
        "--ucm",
        "10.10.10.20",
        "10.10.10.21",
        "--public",
        "198.51.100.50,198.51.100.51",
        "--port",
        "5000",
        "--rtp-ports",
        "30000-30010",
        "--provider",
        "192.0.2.0/25",
        "--provider",
        "10.99.0.0/16",
        *PATIENT,
    )
    fw.wan.send(udp("192.0.2.9:7000", "198.51.100.50:5000"))
    fw.wan.send(udp("10.99.1.2:7000", "198.51.100.51:5001"))
    fw.wan.send(udp("192.0.2.129:7000", "198.51.100.50:5000"))  # beside the prefix
    fw.wan.send(udp("192.0.2.10:7000", f"{PUBLIC}:5000"))  # not one of the public addresses
    fw.lan.send(
        udp("10.10.10.20:30000", "192.0.2.9:7000"),
        udp("10.10.10.21:30010", "10.99.1.2:7000"),
        udp("10.10.10.21:30010", "192.0.2.129:7000"),
        udp("10.10.10.21:30010", "192.0.2.10:7000"),
    )
    assert flows(fw.wan.sent()) == [
        ("198.51.100.50:5000", "192.0.2.9:7000"),
        ("198.51.100.51:5001", "10.99.1.2:7000"),
    ]
    assert counters(fw)["dropped_unidentified"] == 2


def test_two_uplinks_answer_out_of_the_one_they_heard(fw: Firewall) -> None:
    """The default route is by wan; the second provider reached us by wan2."""
    wan2 = fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    fw.namespace.run("ip", "route", "add", "default", "via", "192.0.2.1", "metric", "200")
    fw.moh("attach", "--wan", "wan", "wan2", "--lan", "lan", "--ucm", UCM, *PATIENT)
    wan2.send(udp(PROVIDER, "192.0.2.2:4000"))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 7)
    (heard,) = {flow(packet) for packet in wan2.sent()}
    assert heard == ("192.0.2.2:4000", PROVIDER)
    assert fw.wan.sent() == []

    # The call moves to the first uplink: so does the music, with the very next packet.
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 7)
    sent = fw.wan.sent()
    assert flows(sent) == [(HOLD, PROVIDER)] * 7
    assert {(p[Ether].src, p[Ether].dst) for p in sent} == {(fw.wan.firewall_mac, fw.wan.mac)}
    assert wan2.sent() == []
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    assert (peer["interface"], peer["public_address"]) == ("wan", PUBLIC)


def test_asymmetric_uplinks_follow_the_routes(fw: Firewall) -> None:
    """The provider reaches us by wan2, and we reach it by wan alone."""
    wan2 = fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    fw.moh("attach", "--wan", "wan", "wan2", "--lan", "lan", "--ucm", UCM, *PATIENT)
    wan2.send(udp(PROVIDER, "192.0.2.2:4000"))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 7)
    sent = fw.wan.sent()
    assert flows(sent) == [("192.0.2.2:4000", PROVIDER)] * 7
    assert {(p[Ether].src, p[Ether].dst) for p in sent} == {(fw.wan.firewall_mac, fw.wan.mac)}
    assert wan2.sent() == []


def test_without_any_route_the_stack_answers(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.namespace.run("ip", "route", "del", "default")
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    assert fw.wan.sent() == []
    assert counters(fw)["left_to_stack"] == 3
    # As before the counter was retired, readers find it.
    shown = json.loads(fw.moh("status", "--json").stdout)["counters"]
    assert shown["dropped_no_route"] == 0


def test_a_route_that_has_the_wan_in_its_rule_alone_is_the_stacks(fw: Firewall) -> None:
    """UCM's packet has neither mark nor way out when it comes: no rule leads it to a WAN."""
    run = fw.namespace.run
    run("ip", "route", "del", "default")
    run("ip", "route", "add", "default", "via", GATEWAY, "table", "77")
    run("ip", "rule", "add", "fwmark", "7", "lookup", "77")
    run("ip", "rule", "add", "oif", "wan", "lookup", "77")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    assert fw.wan.sent() == []
    assert counters(fw)["left_to_stack"] == 3
    # A rule for UCM's address is seen.
    run("ip", "rule", "add", "from", UCM, "lookup", "77")
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    assert flows(fw.wan.sent()) == [(HOLD, PROVIDER)] * 3


def test_another_branch_is_none_of_our_business(fw: Firewall) -> None:
    branch = fw.add_wire("branch", "10.20.0.1/24", "10.20.0.5")
    fw.namespace.run("ip", "route", "add", "203.0.113.128/25", "via", "10.20.0.5")
    fw.attach(*PATIENT)
    destinations = ["10.20.0.5:24580", "203.0.113.200:24580"]
    for destination in destinations:
        fw.lan.send(udp(MUSIC, destination, ttl=64))
    sent = branch.sent()
    assert flows(sent) == [(MUSIC, destination) for destination in destinations]
    assert {packet[IP].ttl for packet in sent} == {63}
    assert counters(fw) == {}


def test_not_rtp_of_ucm_passes_as_without_us(fw: Firewall) -> None:
    """Everything else that UCM and its neighbours send, through masquerade, none of it counted."""
    packets = [
        udp(f"{UCM}:5060", "203.0.113.10:5060", b"INVITE sip:1@example.org SIP/2.0\r\n"),
        udp(f"{UCM}:123", "203.0.113.10:123", b"\x23" + bytes(47)),
        udp(f"{UCM}:24576", "203.0.113.10:21000", b"\x00\x01T.38"),
        udp(f"{UCM}:9000", "203.0.113.10:21000", rtp()),
        udp("10.10.10.99:24576", "203.0.113.10:21002", rtp()),
        IP(src=UCM, dst="203.0.113.10") / TCP(sport=24576, dport=5061),
        IP(src=UCM, dst="203.0.113.10") / ICMP(),
    ]
    fw.add_neighbour("10.10.10.99", fw.lan)
    fw.lan.send(*packets)
    without = [bytes(packet[IP].payload) for packet in fw.wan.sent()]
    assert len(without) == len(packets)
    fw.attach()
    fw.lan.send(*packets)
    assert [bytes(packet[IP].payload) for packet in fw.wan.sent()] == without
    assert counters(fw) == {}


def test_ttl_ends_at_the_firewall(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER, ttl=1), udp(MUSIC, PROVIDER, ttl=2))
    (sent,) = fw.wan.sent()
    assert (flow(sent), sent[IP].ttl) == ((HOLD, PROVIDER), 1)
    (answer,) = fw.lan.sent()
    assert (answer[ICMP].type, answer[IP].dst) == (11, UCM)  # time exceeded


def test_gateway_that_moves_is_followed(fw: Firewall) -> None:
    """The next hop that a peer keeps lives 100 ms: then the kernel's neighbours are asked again."""
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 5)
    assert {packet[Ether].dst for packet in fw.wan.sent()} == {fw.wan.mac}
    fw.add_neighbour(GATEWAY, fw.wan, mac="02:00:00:00:00:42")

    def goes_to() -> set[str]:
        fw.lan.send(udp(MUSIC, PROVIDER))
        return {packet[Ether].dst for packet in fw.wan.sent()}

    until("hold music goes to the new gateway", lambda: goes_to() == {"02:00:00:00:00:42"})


def test_gateway_not_known_yet_is_asked_for(fw: Firewall) -> None:
    fw.namespace.run("ip", "neigh", "del", GATEWAY, "dev", "wan")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    request = fw.wan.arp_request()
    assert request[ARP].pdst == GATEWAY
    fw.wan.send(
        Ether(src=fw.wan.mac, dst=fw.wan.firewall_mac)
        / ARP(op="is-at", hwsrc=fw.wan.mac, psrc=GATEWAY, hwdst=fw.wan.firewall_mac, pdst=PUBLIC)
    )
    assert flows(fw.wan.sent()) == [(HOLD, PROVIDER)] * 3  # queued by the kernel, none lost


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
def test_routes_that_say_no_are_obeyed(fw: Firewall, kind: str) -> None:
    fw.namespace.run("ip", "route", "add", kind, "203.0.113.0/24")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert fw.wan.sent() == []
    assert [packet[ICMP].type for packet in fw.lan.sent()] == ([] if kind == "blackhole" else [3])
    assert counters(fw)["left_to_stack"] == 1


def test_forwarding_switched_off_is_obeyed(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.namespace.sysctl("net.ipv4.ip_forward", 0)
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert fw.wan.sent() == []
    assert counters(fw)["left_to_stack"] == 1


@pytest.mark.parametrize("where", ["ip_forward", "conf.lan.forwarding"])
def test_forwarding_switched_off_in_the_middle_is_obeyed(fw: Firewall, where: str) -> None:
    """The next hop is renewed without asking for the whole route, but not for long."""
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert flows(fw.wan.sent()) == [(HOLD, PROVIDER)]
    fw.namespace.sysctl(f"net.ipv4.{where}", 0)

    def music_ends() -> bool:
        fw.lan.send(udp(MUSIC, PROVIDER))
        return fw.wan.sent() == []

    until("hold music is forwarded no longer", music_ends)
    assert counters(fw)["left_to_stack"] == 1


def test_too_long_for_the_wan(fw: Firewall) -> None:
    """With DF the stack answers as any router; without, we cannot fragment: dropped, counted."""
    fw.namespace.run("ip", "link", "set", "wan", "mtu", "600")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))  # its hop is kept, for packets no longer than this
    exactly = udp(MUSIC, PROVIDER, rtp(size=600 - 20 - 8 - 12))
    assert len(exactly) == 600
    fw.lan.send(exactly)
    assert [len(packet[IP]) for packet in fw.wan.sent()] == [200, 600]
    long = rtp(size=601 - 20 - 8 - 12)
    fw.lan.send(udp(MUSIC, PROVIDER, long, flags="DF"), udp(MUSIC, PROVIDER, long))
    assert fw.wan.sent() == []
    (answer,) = fw.lan.sent()
    assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 600)
    seen = counters(fw)
    assert (seen["left_to_stack"], seen["dropped_too_big"]) == (1, 1)


def test_too_long_also_where_the_gateway_is_not_known_yet(fw: Firewall) -> None:
    fw.namespace.run("ip", "neigh", "del", GATEWAY, "dev", "wan")
    fw.namespace.run("ip", "link", "set", "wan", "mtu", "600")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER, rtp(size=800), flags="DF"))
    (answer,) = fw.lan.sent()
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 4)
    assert counters(fw)["left_to_stack"] == 1


def test_mtu_of_the_route(fw: Firewall) -> None:
    fw.namespace.run(*f"ip route replace default via {GATEWAY} mtu lock 600".split())
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER, rtp(size=561), flags="DF"))
    (answer,) = fw.lan.sent()
    assert (answer[ICMP].code, answer[ICMP].nexthopmtu) == (4, 600)
    assert fw.wan.sent() == []


def test_headers_beyond_the_linear_area(fw: Firewall) -> None:
    """Paged packets, of which only the link header is linear: read, rewritten, checksums right."""
    for wire in (fw.lan, fw.wan):
        wire.set_mtu(9000)
    fw.attach(*PATIENT)
    big = rtp(size=6000)
    fw.wan.send_paged(udp(PROVIDER, HOLD, big))
    fw.lan.send_paged(*[udp(MUSIC, PROVIDER, big, options=[IPOption_NOP()] * 8)] * 3)
    sent = fw.wan.sent()
    assert flows(sent) == [(HOLD, PROVIDER)] * 3
    for packet in sent:
        again = packet[IP].copy()
        del again.chksum, again[UDP].chksum
        assert bytes(again) == bytes(packet[IP])


def test_priority_tag_is_no_vlan(fw: Firewall) -> None:
    """VID 0 is 802.1p priority alone: the packet is the interface's own, as to the stack."""
    fw.attach(*PATIENT)
    tag = Dot1Q(vlan=0, prio=5)
    fw.wan.send(Ether(src=fw.wan.mac, dst=fw.wan.firewall_mac) / tag / udp(PROVIDER, HOLD))
    frame = Ether(src=fw.lan.mac, dst=fw.lan.firewall_mac) / tag / udp(MUSIC, PROVIDER)
    fw.lan.send(frame, frame)
    sent = fw.wan.sent()
    assert flows(sent) == [(HOLD, PROVIDER)] * 2
    assert not any(Dot1Q in packet for packet in sent)


def test_a_tagged_frame_is_its_vlans(fw: Firewall) -> None:
    """Nobody listens to VLAN 7 here: neither learned nor forwarded."""
    fw.attach(*PATIENT)
    tag = Dot1Q(vlan=7)
    fw.wan.send(Ether(src=fw.wan.mac, dst=fw.wan.firewall_mac) / tag / udp(PROVIDER, HOLD))
    assert json.loads(fw.moh("peers", "--json").stdout) == []
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(Ether(src=fw.lan.mac, dst=fw.lan.firewall_mac) / tag / udp(MUSIC, PROVIDER))
    assert fw.wan.sent() == []
    assert counters(fw) == {"consumed": 1}


def add_vlan(fw: Firewall) -> None:
    """wan.7, 192.0.2.2/24; or a skip, where the kernel has no VLAN interfaces."""
    link = "ip link add link wan name wan.7 type vlan id 7"
    made = fw.namespace.run(*link.split(), check=False)
    if "Unknown device type" in made.stderr:
        pytest.skip("this kernel has no VLAN interfaces (8021q)")
    assert made.returncode == 0, made.stderr
    fw.namespace.run("ip", "link", "set", "wan.7", "up")
    fw.namespace.run("ip", "addr", "add", "192.0.2.2/24", "dev", "wan.7")


def test_a_vlan_of_the_wan_is_another_interface(fw: Firewall) -> None:
    add_vlan(fw)
    fw.namespace.run("ip", "neigh", "add", "192.0.2.9", "lladdr", fw.wan.mac, "dev", "wan.7")
    fw.attach(*PATIENT)
    fw.lan.send(udp(MUSIC, "192.0.2.9:24576"))
    (sent,) = fw.wan.sent()
    assert sent[Dot1Q].vlan == 7
    assert counters(fw) == {}


def test_vlan_interface_as_wan(fw: Firewall) -> None:
    add_vlan(fw)
    fw.namespace.run("ip", "neigh", "add", "192.0.2.1", "lladdr", fw.wan.mac, "dev", "wan.7")
    fw.namespace.run("ip", "route", "replace", "default", "via", "192.0.2.1")
    fw.moh("attach", "--wan", "wan.7", "--lan", "lan", "--ucm", UCM, *PATIENT)
    fw.wan.send(
        Ether(src=fw.wan.mac, dst=fw.wan.firewall_mac)
        / Dot1Q(vlan=7)
        / udp(PROVIDER, "192.0.2.2:4000")
    )
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    sent = fw.wan.sent()
    assert flows(sent) == [("192.0.2.2:4000", PROVIDER)] * 3
    assert {packet[Dot1Q].vlan for packet in sent} == {7}


def test_bridge_as_lan_and_its_port_refused(fw: Firewall) -> None:
    run = fw.namespace.run
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "addr", "flush", "dev", "lan")
    run("ip", "link", "set", "lan", "master", "br0")
    run("ip", "link", "set", "br0", "address", fw.lan.firewall_mac, "up")
    run("ip", "addr", "add", "10.10.10.1/24", "dev", "br0")
    run("ip", "neigh", "add", UCM, "lladdr", fw.lan.mac, "dev", "br0")
    refused = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, check=False)
    assert refused.returncode == 2
    assert "port of br0" in refused.stderr
    fw.moh("attach", "--wan", "wan", "--lan", "br0", "--ucm", UCM, *PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    assert flows(fw.wan.sent()) == [(HOLD, PROVIDER)] * 3


@pytest.mark.parametrize(("lan_is_tun", "wan_is_tun"), [(True, False), (False, True), (True, True)])
def test_interfaces_without_a_link_header(fw: Firewall, lan_is_tun: bool, wan_is_tun: bool) -> None:
    """A WireGuard LAN, a PPPoE WAN; a tun device is what both are to tc."""
    lan: Wire | Tun = fw.lan
    wan: Wire | Tun = fw.wan
    public = PUBLIC
    if lan_is_tun:
        lan = fw.add_tun("wg0", "10.30.0.1/24")
        fw.namespace.run("ip", "route", "add", "10.30.1.0/24", "dev", "wg0")
    if wan_is_tun:
        wan, public = fw.add_tun("ppp0", "192.0.2.2/32"), "192.0.2.2"
        fw.namespace.run("ip", "route", "replace", "default", "dev", "ppp0")
        fw.namespace.nft("add rule ip nat postrouting oifname ppp0 masquerade")
    ucm = "10.30.1.10" if lan_is_tun else UCM
    fw.moh("attach", "--wan", wan.interface, "--lan", lan.interface, "--ucm", ucm, *PATIENT)

    lan.send(udp(f"{ucm}:24576", PROVIDER))
    assert flows(wan.sent()) == []
    wan.send(udp(PROVIDER, f"{public}:4000"))
    lan.send(*[udp(f"{ucm}:24576", PROVIDER, ttl=9)] * 5)
    sent = wan.sent()
    assert flows(sent) == [(f"{public}:4000", PROVIDER)] * 5
    for packet in sent:
        again = packet[IP].copy()
        del again.chksum, again[UDP].chksum
        assert bytes(again) == bytes(packet[IP])
        assert packet[IP].ttl == 8
    wan.send(udp(PROVIDER, f"{public}:24600"))
    lan.send(udp(f"{ucm}:24600", PROVIDER))
    assert flows(wan.sent()) == [(f"{public}:24600", PROVIDER)]
    assert counters(fw)["bypassed"] == 5


def test_wan_alone_where_nothing_is_nated() -> None:
    """Enforce is the rule by itself: routed UCM, no LAN named, every verdict at the WAN."""
    with firewall(masquerade=False) as fw:
        attached = fw.moh("attach", "--wan", "wan", "--ucm", UCM, *PATIENT)
        assert attached.stderr == ""
        fw.lan.send(udp(MUSIC, PROVIDER))
        assert fw.wan.sent() == []
        fw.wan.send(udp(PROVIDER, HOLD))
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
        assert flows(fw.wan.sent()) == [(HOLD, PROVIDER)] * 3
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))
        fw.lan.send(udp(f"{UCM}:24600", PROVIDER))
        assert flows(fw.wan.sent()) == [(f"{UCM}:24600", PROVIDER)]
        seen = counters(fw)
        assert (seen["rewritten"], seen["passed_two"], seen["passed_unnatted"]) == (3, 1, 1)
        assert seen["dropped_unidentified"] == 1


def test_wan_alone_behind_masquerade_says_so(fw: Firewall) -> None:
    attached = fw.moh("attach", "--wan", "wan", "--ucm", UCM)
    assert "--lan" in attached.stderr
    assert "masquerade" in attached.stderr


def test_two_way_without_nat_is_counted_once() -> None:
    with firewall(masquerade=False) as fw:
        fw.attach(*PATIENT)
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))
        fw.lan.send(*[udp(f"{UCM}:24600", PROVIDER)] * 4)
        assert flows(fw.wan.sent()).count((f"{UCM}:24600", PROVIDER)) == 4
        seen = counters(fw)
        assert (seen["passed_two"], seen["passed_unnatted"]) == (4, 4)
        (peer,) = json.loads(fw.moh("peers", "--json").stdout)
        assert peer["outbound"]["packets"] == 4


def test_qdisc_band_is_that_of_the_tos(fw: Firewall) -> None:
    """The priority by which qdiscs sort packets follows the TOS, as for all that is forwarded."""
    packets = [udp(MUSIC, PROVIDER, tos=tos) for tos in range(0, 256, 2)]
    with counter(fw, "wan", Hook.EGRESS) as seen:
        fw.attach(*PATIENT)
        fw.wan.send(udp(PROVIDER, HOLD))
        fw.lan.send(*packets)
        ours = seen.by_priority
        fw.moh("detach")
        fw.lan.send(*packets)
        both = seen.by_priority
    assert sum(ours) == len(packets)
    assert [priority for priority, number in enumerate(ours) if number] == [0, 2, 4, 6]
    assert both == [2 * number for number in ours]


def test_paged_rtcp_is_known_as_rtcp(fw: Firewall) -> None:
    """Its payload lies in a page, as after sendfile() or from some network cards."""
    for wire in (fw.lan, fw.wan):
        wire.set_mtu(9000)
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    report = b"\x80\xc8\x00\x06" + bytes(5000)
    fw.lan.send_paged(udp(f"{UCM}:24577", "203.0.113.10:21001", report))
    assert flows(fw.wan.sent()) == [(f"{PUBLIC}:4001", "203.0.113.10:21001")]


def test_ipv6_is_untouched(fw: Firewall) -> None:
    packet = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=24576, dport=4000) / Raw(rtp())
    fw.attach()
    fw.wan.send(Ether(src=fw.wan.mac, dst=fw.wan.firewall_mac) / packet)
    fw.lan.send(Ether(src=fw.lan.mac, dst=fw.lan.firewall_mac) / packet)
    assert fw.wan.sent() == []
    assert counters(fw) == {}
