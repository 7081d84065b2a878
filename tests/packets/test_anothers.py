"""Another host's connection on a phantom port: what belongs to it reaches it."""

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

from moh_ebpf.kernel import libbpf
from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import SHOT, UNSPEC, Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import rtp, udp

HOST = "10.10.10.77"
PORTS = [4000, 4001, 4003]


def answer(port: int = 4000, endpoint: str = PROVIDER) -> Packet:
    return udp(endpoint, f"{PUBLIC}:{port}", rtp(2))


def send_from_lan(programs: Bench, port: int = 4000, payload: bytes | None = None) -> None:
    packet = udp(f"{HOST}:{port}", PROVIDER, payload)
    assert programs.run(Role.BYPASS, packet)[0] == UNSPEC


def send_from_elsewhere(programs: Bench, port: int = 4000, payload: bytes | None = None) -> None:
    """By no LAN: a test run has come in by the interface it is on, which is the WAN."""
    packet = udp(f"{PUBLIC}:{port}", PROVIDER, payload)
    assert programs.run(Role.ENFORCE, packet)[0] == UNSPEC


Way = Callable[..., None]
WAYS = [send_from_lan, send_from_elsewhere]


@pytest.mark.parametrize("send", WAYS)
@pytest.mark.parametrize("port", PORTS)
def test_its_answers_pass(programs: Bench, send: Way, port: int) -> None:
    """FIELD's F14: a softphone that sends from port 4000."""
    send(programs, port)
    for _ in range(5):
        assert programs.run(Role.LEARN, answer(port))[0] == UNSPEC
    assert programs.counters() == {"passed_anothers": 5}
    assert (programs.peers(), programs.events()) == ({}, [])
    # Another port of ours, another endpoint: a hold's.
    assert programs.run(Role.LEARN, answer(4004))[0] == SHOT
    assert programs.run(Role.LEARN, answer(port, "203.0.113.10:21002"))[0] == SHOT


@pytest.mark.parametrize("send", WAYS)
def test_whatever_it_sends_opens_the_way(programs: Bench, send: Way) -> None:
    send(programs, payload=b"hello")
    assert programs.run(Role.LEARN, answer())[0] == UNSPEC


@pytest.mark.parametrize("send", WAYS)
@pytest.mark.parametrize(("idle", "verdict"), [(110, UNSPEC), (130, SHOT)])
def test_as_long_as_conntrack_keeps_it(
    programs: Bench, send: Way, idle: float, verdict: int
) -> None:
    """Each packet of either side keeps it."""
    send(programs)
    programs.age_all(100)
    assert programs.run(Role.LEARN, answer())[0] == UNSPEC
    programs.age_all(idle)
    assert programs.run(Role.LEARN, answer())[0] == verdict


@pytest.mark.parametrize("role", [Role.BYPASS, Role.ENFORCE])
def test_where_ucm_sends_it_is_a_hold(programs: Bench, role: Role) -> None:
    send_from_lan(programs)
    programs.set_learned()
    programs.send(role, 1)
    assert programs.run(Role.LEARN, answer())[0] == SHOT
    assert programs.peers() == {PROVIDER: ("MOH", f"{PUBLIC}:4000")}
    programs.send(role, 2)
    programs.age_waiting(20)
    assert programs.run(Role.LEARN, answer())[0] == SHOT, "the music goes on"


def test_a_hold_without_music_is_consumed(programs: Bench) -> None:
    """No ICMP answer, though UCM sends nothing to it."""
    assert programs.run(Role.LEARN, answer())[0] == SHOT


def test_rtcp_of_ucm_s_hold_is_the_hold_s(programs: Bench) -> None:
    """Another host may use the ports beside."""
    report = b"\x80\xc8\0\6" + bytes(24)
    programs.run(Role.BYPASS, udp(f"{HOST}:4001", "203.0.113.10:21001", report))
    theirs = udp("203.0.113.10:21001", f"{PUBLIC}:4001", report)
    assert programs.run(Role.LEARN, theirs)[0] == UNSPEC
    programs.set_peer(PROVIDER, PeerState(State.MOH, f"{PUBLIC}:4000"))
    programs.send(Role.BYPASS, 1)
    assert programs.run(Role.LEARN, theirs)[0] == SHOT


NOBODY = [
    ("UCM itself", Role.BYPASS, udp(f"{UCM}:4000", PROVIDER)),
    ("another port", Role.BYPASS, udp(f"{HOST}:4006", PROVIDER)),
    ("another port outside", Role.ENFORCE, udp(f"{PUBLIC}:3999", PROVIDER)),
    ("no NAT", Role.ENFORCE, udp("192.0.2.77:4000", PROVIDER)),
    ("a fragment", Role.BYPASS, udp(f"{HOST}:4000", PROVIDER, flags="MF")),
    ("broken", Role.BYPASS, IP(src=HOST, dst="203.0.113.10")
     / UDP(sport=4000, dport=21000, len=999) / Raw(rtp())),
]  # fmt: skip


@pytest.mark.parametrize(("what", "role", "packet"), NOBODY, ids=lambda value: str(value)[:20])
def test_nobody_else_opens_it(programs: Bench, what: str, role: Role, packet: Packet) -> None:
    programs.run(role, packet)
    noted = [keys for keys, _ in libbpf.entries(programs.loaded.maps.opened["others"])]
    assert b"".join(noted) == b"", what
    assert programs.run(Role.LEARN, answer())[0] == SHOT, what
