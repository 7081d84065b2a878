"""A WAN by PPP: two real pppds, one in the firewall and one at the provider's; and by PPPoE, with
the server of rp-pppoe."""

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
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from moh_ebpf.registry import walk
from tests.support.firewall import PROVIDER, UCM, Firewall
from tests.support.namespace import Namespace, namespace
from tests.support.service import CONFIG, service
from tests.support.waiting import until
from tests.support.wire import flow, rtp, udp

LOCAL, REMOTE = "192.0.2.6", "192.0.2.5"
ANOTHER_LOCAL, ANOTHER_PROVIDER = "192.0.2.7", "203.0.113.11:21000"
HOLD, MUSIC = f"{LOCAL}:4000", f"{UCM}:24576"
INTERFACE = "wanppp"
PATIENCE_SECONDS = 60.0
_ETH_P_IP = 0x0800
_PACKET_OUTGOING = 4


@dataclass
class Line:
    """The provider's end: a packet socket on its ppp0, which sends and receives bare IP packets."""

    end: socket.socket

    def send(self, *packets: Packet) -> None:
        for packet in packets:
            self.end.sendto(bytes(packet), ("ppp0", _ETH_P_IP))

    def begin(self, source: str, destination: str) -> None:
        """Two packets of a stream: a hold's are told of then."""
        self.send(*(udp(source, destination, rtp(number)) for number in (1, 2)))

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
        with provider(isp) as made:
            yield made


@contextmanager
def provider(isp: Namespace) -> Iterator[Line]:
    with isp.entered():
        end = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
    with closing(end):
        end.bind(("ppp0", _ETH_P_IP))
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
            kill(place)


def kill(place: Namespace) -> None:
    subprocess.run(["kill", *pids], check=False) if (pids := processes(place)) else None


def processes(place: Namespace) -> list[str]:
    return subprocess.check_output(["ip", "netns", "pids", place.name], text=True).split()


@contextmanager
def dsl(fw: Firewall) -> Iterator[Namespace]:
    """A modem's Ethernet between the firewall and the provider, whose namespace this is; and a pppd
    that dials again and again."""
    try:
        socket.socket(socket.AF_PPPOX, socket.SOCK_STREAM, 0).close()
    except OSError as error:
        pytest.skip(f"this kernel has no PPPoE: {error.strerror}")
    assert shutil.which("pppoe-server"), "this takes pppoe-server: apt install pppoe"
    dial = (
        f"pppd plugin pppoe.so nic-dsl ifname {INTERFACE} noauth noipv6 noccp defaultroute "
        "persist maxfail 0 holdoff 1 lcp-echo-interval 1 lcp-echo-failure 5 nodetach"
    )
    with namespace("isp") as isp, tempfile.TemporaryFile("w+") as said:
        peer = f"type veth peer name dsl netns {fw.namespace.name}".split()
        isp.run("ip", "link", "add", "dsl", *peer)
        for place in (isp, fw.namespace):
            place.run("ip", "link", "set", "dsl", "up")
        fw.namespace.run("ip", "route", "delete", "default")
        command = ["ip", "netns", "exec", fw.namespace.name, *dial.split()]
        pppd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield isp
        except BaseException:
            said.seek(0)
            print(said.read())
            raise
        finally:
            pppd.terminate()
            pppd.wait()


@contextmanager
def pppoe_server(isp: Namespace, address: str, directory: Path) -> Iterator[None]:
    """The provider answers, and gives this address, until it hangs up."""
    options = directory / "options"
    options.write_text("noauth\nnoipv6\nnoccp\nlocal\nnodefaultroute\n")
    command = f"pppoe-server -F -I dsl -N 1 -L {REMOTE} -R {address} -O {options}"
    server = subprocess.Popen(["ip", "netns", "exec", isp.name, *command.split()])
    try:
        yield
    finally:
        server.kill()
        server.wait()
        kill(isp)
        until("the provider has hung up", lambda: not processes(isp))


def right(packet: IP) -> bool:
    """Are both checksums what they ought to be?"""
    again = packet.copy()
    del again.chksum, again[UDP].chksum
    return bytes(IP(bytes(again))) == bytes(packet)


def test_hold_music_over_ppp(fw: Firewall, line: Line) -> None:
    """From an Ethernet LAN, whose link header must not go along: the first packets, by which the
    route is asked for, and those after them."""
    fw.moh("attach", "--wan", INTERFACE, "--lan", "lan", "--ucm", UCM, "--timeout", "60s")
    line.begin(PROVIDER, HOLD)
    wait_for_peer(fw)
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 23)
    heard = line.receive(23)
    assert [flow(packet) for packet in heard] == [(HOLD, PROVIDER)] * 23
    assert {packet.ttl for packet in heard} == {63}
    assert all(map(right, heard))


def test_a_call_over_ppp(fw: Firewall, line: Line) -> None:
    """Two-way RTP goes by masquerade, as without us."""
    fw.moh("attach", "--wan", INTERFACE, "--lan", "lan", "--ucm", UCM, "--timeout", "60s")
    line.begin(PROVIDER, f"{LOCAL}:24600")
    wait_for_peer(fw)
    fw.lan.send(*[udp(f"{UCM}:24600", PROVIDER)] * 3)
    assert [flow(packet) for packet in line.receive(3)] == [(f"{LOCAL}:24600", PROVIDER)] * 3


def test_enforce_alone_over_ppp(fw: Firewall, line: Line) -> None:
    """Routed, without NAT: rewritten at the WAN's egress, where there is no link header."""
    fw.namespace.run("nft", "flush", "ruleset")
    fw.moh("attach", "--wan", INTERFACE, "--ucm", UCM, "--timeout", "60s")
    line.begin(PROVIDER, HOLD)
    wait_for_peer(fw)
    fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
    heard = line.receive(3)
    assert [flow(packet) for packet in heard] == [(HOLD, PROVIDER)] * 3
    assert all(map(right, heard))


def test_run_follows_a_pppoe_line(fw: Firewall, tmp_path: Path) -> None:
    """Dialled again, the line is another interface with another address; the config names
    neither, and hold music goes on from there."""
    config = CONFIG.replace('["wan"]', f'["{INTERFACE}"]')
    with dsl(fw) as isp, service(fw.namespace, tmp_path, config) as run:
        run.wait_for_line(f"waiting for {INTERFACE}")
        with pppoe_server(isp, LOCAL, tmp_path):
            run.wait_for_line(f"hold music leaves as {LOCAL}:4000")
            first = fw.namespace.ifindex(INTERFACE)
            assert_hold_music(fw, isp, LOCAL, PROVIDER)
        run.wait_for_line(f"waiting for {INTERFACE}")
        with pppoe_server(isp, ANOTHER_LOCAL, tmp_path):
            run.wait_for_line(f"hold music leaves as {ANOTHER_LOCAL}:4000")
            assert fw.namespace.ifindex(INTERFACE) != first
            assert_hold_music(fw, isp, ANOTHER_LOCAL, ANOTHER_PROVIDER)
            assert run.stop() == 0


def assert_hold_music(fw: Firewall, isp: Namespace, public: str, endpoint: str) -> None:
    with provider(isp) as line:
        line.begin(endpoint, f"{public}:4000")
        wait_for_peer(fw, endpoint)
        fw.lan.send(*[udp(MUSIC, endpoint)] * 3)
        heard = line.receive(3)
    assert [flow(packet) for packet in heard] == [(f"{public}:4000", endpoint)] * 3
    assert all(map(right, heard))


def wait_for_peer(fw: Firewall, endpoint: str = PROVIDER) -> None:
    """The line takes its time, and there is no event for it here. Readers are not told of a call
    until UCM sends, too."""

    def is_known() -> bool:
        with fw.namespace.entered(), walk.attached_or_error() as attached:
            return endpoint in {each.endpoint for each in attached.snapshot(untold=True).peers}

    until("what came by the line is learned", is_known)
