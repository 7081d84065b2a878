"""From what was seen to settings: firewalls of many shapes, without a kernel."""

import tomllib
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from moh_ebpf import settings
from moh_ebpf.discover.ports import sip_ports
from moh_ebpf.discover.propose import Proposal, propose
from moh_ebpf.discover.seen import Captured, End, Flow, Sighting, Surroundings, Traffic
from moh_ebpf.kernel.capture import Segment
from moh_ebpf.show.proposal import config_text
from tests.support.sip import Dialog, description

LAN, WAN, OTHER = 2, 3, 4
PUBLIC, UCM, PHONE, FAR = "198.51.100.2", "10.10.10.10", "10.10.20.5", "203.0.113.10"
SECONDS = 60.0


def end(text: str) -> End:
    address, port = text.split(":")
    return End(IPv4Address(address), int(port))


def flow(
    interface: int,
    source: str,
    destination: str,
    first: float = 0.1,
    last: float = 50.0,
    **more: Any,
) -> Flow:
    made = Flow(
        interface, False, Traffic.RTP, end(source), end(destination), first, last, 0.02, 500, 499
    )
    return replace(made, **more)


AROUND = Surroundings(
    {LAN: "eth0", WAN: "eth1", OTHER: "eth2"},
    {IPv4Address("10.10.10.1"): LAN, IPv4Address(PUBLIC): WAN},
    {IPv4Address(UCM): LAN, IPv4Address(PHONE): LAN, IPv4Address(FAR): WAN},
    WAN,
)
CALL = [flow(WAN, f"{FAR}:21000", f"{PUBLIC}:20000"), flow(LAN, f"{UCM}:20000", f"{FAR}:21000")]
MUSIC = [
    flow(WAN, f"{FAR}:21000", f"{PUBLIC}:4000", 20.0, 30.0),
    flow(LAN, f"{UCM}:25000", f"{FAR}:21000", 20.0, 30.0),
]
USUAL = {"wan": ["eth1"], "lan": ["eth0"], "ucm": [UCM]}


def seen(*flows: Flow, around: Surroundings = AROUND, heard: tuple[Captured, ...] = ()) -> Proposal:
    return propose(Sighting(SECONDS, flows, heard, around))


def chosen(proposal: Proposal) -> dict[str, Any]:
    found = proposal.to_json()["settings"]
    if not proposal.missing:  # attach takes it
        settings.from_values(found)
    assert isinstance(found, dict)
    return found


def why(proposal: Proposal, name: str) -> str:
    return " / ".join(
        text for each in proposal.lines if each.setting == name for text in each.because
    )


def test_a_usual_firewall() -> None:
    found = seen(*CALL, *MUSIC)
    assert chosen(found) == USUAL
    assert found.habits.send_on_hold == found.habits.holds == 1
    assert not found.missing


def test_phones_are_told_from_ucm_by_the_music() -> None:
    phone = [
        flow(WAN, f"{FAR}:22000", f"{PUBLIC}:20002"),
        flow(LAN, f"{PHONE}:20002", f"{FAR}:22000"),
    ]
    assert chosen(seen(*CALL, *phone, *MUSIC)) == USUAL
    assert PHONE in why(seen(*CALL, *phone, *MUSIC), "ucm")
    without = seen(*CALL, *phone)
    assert chosen(without)["ucm"] == [UCM, PHONE]
    assert "phones may be among them" in why(without, "ucm")
    assert "put a call on hold" in without.unseen[0]


def test_one_interface_for_both() -> None:
    """A router on a stick: then there is no LAN."""
    around = Surroundings(
        {WAN: "eth1"}, {IPv4Address(PUBLIC): WAN}, dict.fromkeys(AROUND.ways, WAN), WAN,
        direct=frozenset({IPv4Address(UCM)}),
    )  # fmt: skip
    flows = [replace(each, interface=WAN) for each in (*CALL, *MUSIC)]
    assert chosen(seen(*flows, around=around)) == {"wan": ["eth1"], "ucm": [UCM]}


@pytest.mark.parametrize("port", [LAN, WAN])
def test_a_bridge_and_its_port(port: int) -> None:
    """Both see the same packets; the programs belong on the bridge."""
    around = replace(AROUND, names=dict(AROUND.names) | {9: "port"}, again={9: port})
    flows = [*CALL, *MUSIC]
    twice = [replace(each, interface=9) for each in flows if each.interface == port]
    assert chosen(seen(*twice, *flows, around=around)) == USUAL


def test_a_public_address_that_is_none_of_the_wan() -> None:
    """What a router before it sends on, to be translated here."""
    around = replace(AROUND, ways=dict(AROUND.ways) | {IPv4Address("192.0.2.7"): WAN})
    flows = [replace(each, destination=end("192.0.2.7:4000")) for each in MUSIC[:1]]
    assert chosen(seen(*CALL[1:], *flows, MUSIC[1], around=around)) == USUAL | {
        "public": ["192.0.2.7"]
    }


def test_two_uplinks() -> None:
    other = [
        flow(OTHER, "203.0.113.99:30000", "192.0.2.2:20004"),
        flow(LAN, f"{UCM}:20004", "203.0.113.99:30000"),
    ]
    around = replace(AROUND, own=dict(AROUND.own) | {IPv4Address("192.0.2.2"): OTHER})
    assert chosen(seen(*CALL, *MUSIC, *other, around=around))["wan"] == ["eth1", "eth2"]


def test_a_provider_that_is_never_heard() -> None:
    found = seen(CALL[1])
    assert chosen(found) == USUAL
    assert "the routes to 203.0.113.10:21000 lead by eth1" in why(found, "wan")


def test_an_interface_without_a_name() -> None:
    around = replace(AROUND, names={WAN: "eth1"})
    assert any("came and went" in each for each in seen(*CALL, *MUSIC, around=around).unseen)


def test_a_provider_in_tls_that_pauses_and_speaks_second() -> None:
    tls = flow(WAN, f"{FAR}:5061", f"{PUBLIC}:40000", traffic=Traffic.TLS)
    late = [
        flow(LAN, f"{UCM}:20000", f"{FAR}:21000", 5.0),
        flow(WAN, f"{FAR}:21000", f"{PUBLIC}:20000", 5.2, longest_gap=3.5),
    ]
    found = seen(tls, *late)
    assert chosen(found)["timeout"] == "6s"
    assert chosen(found)["patience"] == "500ms"
    assert any("TLS" in each for each in found.unseen)


def test_rtcp_bridges_pauses() -> None:
    pause = flow(WAN, f"{FAR}:21000", f"{PUBLIC}:20000", longest_gap=3.5)
    rtcp = flow(WAN, f"{FAR}:21001", f"{PUBLIC}:20001", traffic=Traffic.RTCP)
    assert "timeout" not in chosen(seen(CALL[1], pause, rtcp))


def told(*texts: tuple[float, bool, bytes]) -> tuple[Captured, ...]:
    """SIP over UDP: when, whether from UCM, and what."""
    ends = (IPv4Address(UCM).packed, 5060), (IPv4Address(FAR).packed, 5060)
    public = IPv4Address(PUBLIC).packed, 5060
    return tuple(
        Captured(
            Segment(ends[0], ends[1], False, text, interface="eth0")
            if by_ucm
            else Segment(ends[1], public, False, text, interface="eth1"),
            False,
            when,
        )
        for when, by_ucm, text in texts
    )


def held_call(*, ends: float | None, address: str = FAR) -> tuple[Captured, ...]:
    """On hold from 20 s on, until then."""
    dialog = Dialog()
    far = description(f"{address}:21000")
    texts = [
        (1.0, True, dialog.ask("INVITE", description(f"{UCM}:20000"))),
        (1.1, False, dialog.answer(far)),
        (20.0, True, dialog.ask("INVITE", description(f"{UCM}:4000", "sendonly"))),
        (20.1, False, dialog.answer(far)),
    ]
    if ends:
        texts.append((ends, True, dialog.ask("INVITE", description(f"{UCM}:20000"))))
        texts.append((ends + 0.1, False, dialog.answer(far)))
    return told(*texts)


SIP = flow(LAN, f"{UCM}:5060", f"{FAR}:5060", traffic=Traffic.SIP)
SIP_BACK = flow(WAN, f"{FAR}:5060", f"{PUBLIC}:5060", traffic=Traffic.SIP)


@pytest.mark.parametrize("rtcp", [False, True])
@pytest.mark.parametrize("resumes", [False, True])
def test_a_provider_that_is_silent_on_hold(*, resumes: bool, rtcp: bool) -> None:
    last, gap = (50.0, 19.5) if resumes else (20.2, 0.02)
    flows = [
        SIP,
        SIP_BACK,
        flow(WAN, f"{FAR}:21000", f"{PUBLIC}:20000", 1.2, last, longest_gap=gap),
        flow(LAN, f"{UCM}:20000", f"{FAR}:21000", 1.2, 20.0),
        flow(LAN, f"{UCM}:25000", f"{FAR}:21000", 20.2, 40.0),
    ]
    if rtcp:
        flows.append(flow(WAN, f"{FAR}:21001", f"{PUBLIC}:4001", 25.0, traffic=Traffic.RTCP))
    found = seen(*flows, heard=held_call(ends=40.0 if resumes else None))
    assert chosen(found) == USUAL | {"flip_hold": True}
    habits = found.habits
    assert (habits.holds, habits.silent_on_hold, habits.rtcp_on_hold) == (1, 1, int(rtcp))
    assert not habits.pause


def test_a_provider_that_keeps_the_phantom_port() -> None:
    flows = [
        SIP,
        SIP_BACK,
        *CALL,
        flow(WAN, f"{FAR}:21000", f"{PUBLIC}:4000", 20.2, 55.0),
        flow(LAN, f"{UCM}:25000", f"{FAR}:21000", 20.2, 40.0),
    ]
    habits = seen(*flows, heard=held_call(ends=40.0)).habits
    assert (habits.send_on_hold, habits.keep_phantom_port, habits.silent_on_hold) == (1, 1, 0)


def test_a_private_trunk_by_another_route() -> None:
    """Nobody looks like a provider, but for UCM's own words."""
    far = "172.20.0.9"
    ways = {IPv4Address(UCM): LAN, IPv4Address(far): OTHER}
    around = replace(AROUND, ways=ways, own={IPv4Address("172.20.0.2"): OTHER})
    flows = [
        flow(OTHER, f"{far}:21000", "172.20.0.2:4000", 20.0, 30.0),
        flow(LAN, f"{UCM}:25000", f"{far}:21000", 20.0, 30.0),
    ]
    assert chosen(seen(*flows, around=around, heard=held_call(ends=None, address=far))) == {
        "wan": ["eth2"],
        "lan": ["eth0"],
        "ucm": [UCM],
        "provider": ["172.20.0.9/32"],
    }


@pytest.mark.parametrize(
    ("pairs", "ports"),
    [
        ([(5060, 5060)], {5060}),
        ([(40000, 5060), (41000, 5060)], {5060}),
        ([(5080, 5060)], {5060}),
        ([(33000, 5080), (5080, 34000)], {5080}),
        ([(6070, 6070), (5060, 5060)], {5060, 6070}),
    ],
)
def test_the_ports_of_servers(pairs: list[tuple[int, int]], ports: set[int]) -> None:
    flows = [flow(LAN, f"{UCM}:{a}", f"{FAR}:{b}", traffic=Traffic.SIP) for a, b in pairs]
    assert sip_ports(flows) == ports


def test_a_ucm_behind_the_provider() -> None:
    """It holds calls by the phantom port as well."""
    dialog = Dialog()
    theirs = description(f"{FAR}:4000", "sendonly", "a=X-cisco-media:umoh")
    heard = told(
        (1.0, True, dialog.ask("INVITE", description(f"{UCM}:20000"))),
        (1.1, False, dialog.answer(theirs)),
    )
    assert chosen(seen(SIP, SIP_BACK, *CALL, *MUSIC, heard=heard)) == USUAL


def test_forged_packets_at_the_wan() -> None:
    """With UCM's address, or with one that is nobody's, to somebody outside."""
    dialog = Dialog()
    (genuine,) = told((1.0, True, dialog.ask("INVITE", description(f"{UCM}:4000", "sendonly"))))
    forged = genuine._replace(segment=genuine.segment._replace(interface="eth1"))
    flows = [
        flow(WAN, f"{UCM}:25000", "203.0.113.77:9000"),
        flow(WAN, "10.99.0.1:25000", f"{FAR}:21000"),
        flow(WAN, "10.99.0.1:25000", f"{PUBLIC}:4000"),
    ]
    ways = dict(AROUND.ways) | {IPv4Address("10.99.0.1"): WAN, IPv4Address("203.0.113.77"): WAN}
    around = replace(AROUND, ways=ways)
    assert chosen(seen(SIP, *CALL, *MUSIC, *flows, around=around, heard=(forged,))) == USUAL


def test_ucm_has_a_global_address() -> None:
    """On a network of the firewall's own, without NAT."""
    ucm = "192.0.2.130"
    flows = [
        flow(WAN, f"{FAR}:21000", f"{ucm}:4000", 20.0, 30.0),
        flow(LAN, f"{ucm}:25000", f"{FAR}:21000", 20.0, 30.0),
    ]
    around = replace(
        AROUND, ways=dict(AROUND.ways) | {IPv4Address(ucm): LAN},
        direct=frozenset({IPv4Address(ucm)}),
    )  # fmt: skip
    assert chosen(seen(*flows, around=around)) == USUAL | {"ucm": [ucm], "public": [ucm]}


def test_rubbish_in_sip_says_nothing() -> None:
    texts = [b"INVITE", b"SIP/2.0 200 OK\r\n\r\n", b"\xff" * 900, Dialog().ask("INVITE", "v=0\n")]
    heard = told(*((number, True, text) for number, text in enumerate(texts)))
    assert chosen(seen(*CALL, *MUSIC, heard=heard)) == USUAL


def test_its_text_is_the_config_that_it_says() -> None:
    """What is not needed is a comment; so is all else that is told."""
    tls = flow(WAN, f"{FAR}:5061", f"{PUBLIC}:40000", traffic=Traffic.TLS)
    for found in (seen(), seen(*CALL), seen(*CALL, *MUSIC, tls)):
        text = config_text(replace(found, not_counted={"lost": 7}), "2026-01-01 00:00")
        assert tomllib.loads(text) == found.to_json()["settings"]
        assert all(line.startswith("#") or "=" in line for line in text.splitlines() if line)
