"""A WAN by PPP, as PPPoE has it: two real pppds, one in the firewall and one at the provider's."""

import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP

from tests.support.firewall import PROVIDER, UCM, Firewall
from tests.support.namespace import Namespace, namespace
from tests.support.wire import flow, udp

LOCAL, REMOTE = "192.0.2.6", "192.0.2.5"
HOLD, MUSIC = f"{LOCAL}:4000", f"{UCM}:24576"
INTERFACE = "wanppp"
PATIENCE_SECONDS = 60.0
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4


@dataclass
class Line:
    """The provider's end: a packet socket on its ppp0, which sends and receives bare IP packets."""

    end: socket.socket

    def send(self, *packets: IP) -> None:
        for packet in packets:
            self.end.sendto(bytes(packet), ("ppp0", _ETH_P_IP))

    def receive(self, count: int) -> list[IP]:
        """So many packets, whatever they look like; what this end has sent is none."""
        heard: list[IP] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(heard) < count:
            ready, _, _ = select.select([self.end], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{len(heard)} packets came, not {count}"
            data, address = self.end.recvfrom(65535)
            if address[2] != _PACKET_OUTGOING:
                heard.append(IP(data))
        return heard


@pytest.fixture
def line(fw: Firewall) -> Iterator[Line]:
    if not os.path.exists("/dev/ppp"):
        pytest.skip("this kernel has no PPP")
    assert shutil.which("pppd"), "this takes pppd: apt install ppp"
    with namespace("isp") as isp, pppd(fw.namespace, isp):
        fw.namespace.run("ip", "route", "replace", "default", "dev", INTERFACE)
        with isp.entered():
            end = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        end.bind(("ppp0", _ETH_P_IP))
        with closing(end):
            yield Line(end)


@contextmanager
def pppd(here: Namespace, there: Namespace) -> Iterator[None]:
    """One pppd in each namespace; the one here starts the other, and the link comes up."""
    common = "nodetach noauth local nodefaultroute noipv6 noccp nopcomp noaccomp novj"
    remote = f"ip netns exec {there.name} pppd notty {common} {REMOTE}:{LOCAL}"
    command = f"pppd {common} ifname {INTERFACE} {LOCAL}:{REMOTE} updetach pty".split()
    command.remove("nodetach")
    # A file and no pipe: what the two leave running would keep a pipe open.
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.run(
            ["ip", "netns", "exec", here.name, *command, remote],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        said.seek(0)
        assert started.returncode == 0, said.read()
    try:
        yield
    finally:
        for place in (here, there):
            pids = subprocess.check_output(["ip", "netns", "pids", place.name], text=True).split()
            subprocess.run(["kill", *pids], check=False) if pids else None


def right(packet: IP) -> bool:
    """Are both checksums what they ought to be?"""
    again = packet.copy()
    del again.chksum, again[UDP].chksum
    return bytes(IP(bytes(again))) == bytes(packet)


def test_hold_music_over_ppp(fw: Firewall, line: Line) -> None:
    """From an Ethernet LAN, whose link header must not go along: the first packets, by which the
    route is asked for, and those after them."""
    fw.moh("attach", "--wan", INTERFACE, "--lan", "lan", "--ucm", UCM, "--timeout", "60s")
    line.send(udp(PROVIDER, HOLD))
    wait_for_peer(fw)
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 23)
    heard = line.receive(23)
    assert [flow(packet) for packet in heard] == [(HOLD, PROVIDER)] * 23
    assert {packet.ttl for packet in heard} == {63}
    assert all(map(right, heard))


def test_a_call_over_ppp(fw: Firewall, line: Line) -> None:
    """Two-way RTP goes by masquerade, as without us."""
    fw.moh("attach", "--wan", INTERFACE, "--lan", "lan", "--ucm", UCM, "--timeout", "60s")
    line.send(udp(PROVIDER, f"{LOCAL}:24600"))
    wait_for_peer(fw)
    fw.lan.send(*[udp(f"{UCM}:24600", PROVIDER)] * 3)
    assert [flow(packet) for packet in line.receive(3)] == [(f"{LOCAL}:24600", PROVIDER)] * 3


def test_enforce_alone_over_ppp(fw: Firewall, line: Line) -> None:
    """Routed, without NAT: rewritten at the WAN's egress, where there is no link header."""
    fw.namespace.run("nft", "flush", "ruleset")
    fw.moh("attach", "--wan", INTERFACE, "--ucm", UCM, "--timeout", "60s")
    line.send(udp(PROVIDER, HOLD))
    wait_for_peer(fw)
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    heard = line.receive(3)
    assert [flow(packet) for packet in heard] == [(HOLD, PROVIDER)] * 3
    assert all(map(right, heard))


def wait_for_peer(fw: Firewall) -> None:
    """The line takes its time, and there is no event for it here."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while fw.moh("peers", "--json").stdout.strip() == "[]":
        assert time.monotonic() < deadline, "what came by the line was not learned"
