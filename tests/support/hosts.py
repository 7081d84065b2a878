"""Real hosts on both sides of a firewall: their kernels' own sockets, checksums and offloads.

  ucm                 firewall                    provider
UCM/24 eth0 ── lan .1 │ wan PUBLIC/24 ── eth0 GATEWAY/24, lo 203.0.113.10
"""

import errno
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap

from tests.support import kernels
from tests.support.firewall import GATEWAY, MASQUERADE, PROVIDER, PUBLIC, UCM
from tests.support.namespace import Namespace, namespace
from tests.support.wire import rtp

_PATIENCE_SECONDS = 10.0
_SOL_UDP, _UDP_SEGMENT = 17, 103  # linux/udp.h
_SO_NO_CHECK = 11  # asm-generic/socket.h
_ETH_P_ALL = 3

Address = tuple[str, int]


def address(text: str) -> Address:
    """ "203.0.113.10:21000" as sockets take it."""
    host, port = text.split(":")
    return host, int(port)


@dataclass(frozen=True)
class Hosts:
    """`ucm` is where UCM runs, with this address."""

    ucm: Namespace
    ucm_address: str
    firewall: Namespace
    provider: Namespace

    def attach(self, *arguments: str) -> None:
        """Attach to the WAN; expiry is no subject of tests with real hosts."""
        self.firewall.moh("attach", "--timeout", "60s", "--wan", "wan", *arguments)

    def ucm_socket(self, port: int, to: Address) -> socket.socket:
        """Connected, so it hears nobody else."""
        return udp_socket(self.ucm, (self.ucm_address, port), to)

    def provider_socket(self, at: Address) -> socket.socket:
        return udp_socket(self.provider, at)

    def bad_checksums(self) -> int:
        """UDP packets that the provider's kernel has thrown away for their checksum."""
        snmp = self.provider.run("cat", "/proc/net/snmp").stdout
        names, values = re.findall(r"^Udp: (.*)$", snmp, re.MULTILINE)
        return int(dict(zip(names.split(), values.split(), strict=True))["InCsumErrors"])


@contextmanager
def hosts(*, ucm: str = UCM, masquerade: bool = True) -> Iterator[Hosts]:
    """The hosts above, their neighbours not known yet. Without masquerade, UCM is routed."""
    network = ucm.rpartition(".")[0]
    with namespace("ucm") as left, namespace("fw") as middle, namespace("provider") as right:
        for interface, other in (("lan", left), ("wan", right)):
            peer = ("peer", "name", "eth0", "netns", other.name)
            middle.run("ip", "link", "add", interface, "type", "veth", *peer)
        _configure(left, eth0=f"{ucm}/24")
        _configure(middle, lan=f"{network}.1/24", wan=f"{PUBLIC}/24")
        _configure(right, lo=f"{address(PROVIDER)[0]}/32", eth0=f"{GATEWAY}/24")
        left.run("ip", "route", "add", "default", "via", f"{network}.1")
        middle.run("ip", "route", "add", "default", "via", GATEWAY)
        right.run("ip", "route", "add", f"{network}.0/24", "via", PUBLIC)
        middle.sysctl("net.ipv4.ip_forward", 1)
        if masquerade:
            middle.nft(MASQUERADE)
        yield Hosts(left, ucm, middle, right)


def _configure(place: Namespace, **addresses: str) -> None:
    for interface, with_length in addresses.items():
        place.run("ip", "addr", "add", with_length, "dev", interface)
        place.run("ip", "link", "set", interface, "up")


def ethtool(place: Namespace, interface: str, **features: bool) -> None:
    """Switch features of an interface: tx (checksums left to the device), gro, …"""
    words = [
        word
        for name, on in features.items()
        for word in (name.replace("_", "-"), "on" if on else "off")
    ]
    place.run("ethtool", "-K", interface, *words)


def udp_socket(place: Namespace, at: Address, to: Address | None = None) -> socket.socket:
    """A UDP socket there; connected, if it is to talk with one address only."""
    with place.entered():
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.settimeout(_PATIENCE_SECONDS)
        made.bind(at)
        if to:
            made.connect(to)
    except BaseException:
        made.close()
        raise
    return made


def add_sip_helper(firewall: Namespace, rules: str) -> None:
    """Load these rules, which use it; where the kernel has no such helper, the test is skipped."""
    for module in ("nf_nat_sip", "nf_conntrack_sip"):  # it may be built in, or not there at all
        subprocess.run(["modprobe", "--quiet", module], check=False)
    added = firewall.run("nft", "-f", "-", input=rules, check=False)
    if added.returncode:
        pytest.skip(f"this kernel has no nf_conntrack_sip: {added.stderr.splitlines()[0]}")


def send_no_checksums(sender: socket.socket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)


def speech(count: int) -> list[bytes]:
    """RTP packets, each with audio of its own. The last one is short, and odd."""
    sizes = [*[160] * (count - 1), 37]
    return [rtp(number, size=0) + os.urandom(size) for number, size in enumerate(sizes)]


def send(sender: socket.socket, packets: Sequence[bytes], *, gso: bool = False) -> None:
    """Send on a connected socket: in one system call and one skb (UDP_SEGMENT), or each alone."""
    if gso:
        size = struct.pack("H", len(packets[0]))
        try:
            sender.sendmsg([b"".join(packets)], [(_SOL_UDP, _UDP_SEGMENT, size)])
        except OSError as error:
            if error.errno == errno.EIO:
                lacks = "a sender's UDP_SEGMENT needs an interface with checksum offload"
                kernels.skip_before(6, 11, lacks)
            raise
        return
    for packet in packets:
        sender.send(packet)


def receive(receiver: socket.socket, count: int) -> list[tuple[bytes, Address]]:
    """What came, with its source: `count` packets are waited for, and no more may be there."""
    heard: list[tuple[bytes, Address]] = []
    while len(heard) < count:
        try:
            heard.append(receiver.recvfrom(65535))
        except TimeoutError:
            raise AssertionError(f"{len(heard)} packets came, not {count}") from None
    more = nothing_more(receiver)
    assert not more, f"more than {count} packets came: {more}"
    return heard


def nothing_more(receiver: socket.socket) -> list[tuple[bytes, Address]]:
    """Empty, unless something is there to be received."""
    receiver.setblocking(False)
    try:
        return [receiver.recvfrom(65535)]
    except BlockingIOError:
        return []
    finally:
        receiver.settimeout(_PATIENCE_SECONDS)


class Capture:
    """tcpdump on an interface, and a packet socket, which holds clones until they are read."""

    def __init__(self, place: Namespace, interface: str, directory: Path) -> None:
        self._file = directory / f"{interface}.pcap"
        self._tcpdump = _start_tcpdump(place, interface, self._file)
        with place.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()
        _end(self._tcpdump)

    def heard(self, count: int) -> dict[Address, list[bytes]]:
        """The UDP packets' payload by source. `count` packets are waited for.

        A GSO packet is one, not cut yet. Both ways of capturing agree, or it is an error.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(dumped := rdpcap(str(self._file))) < count:
            assert time.monotonic() < deadline, f"{self._file.name}: {dumped}"
            time.sleep(0.02)  # tcpdump has no event for us
        heard = _by_source(dumped)
        assert _by_source(self._clones()) == heard
        return heard

    def _clones(self) -> Iterator[Packet]:
        while True:
            try:
                packet = Ether(self._socket.recv(65535))
            except BlockingIOError:
                return
            if UDP in packet:
                yield packet


def _start_tcpdump(place: Namespace, interface: str, file: Path) -> subprocess.Popen[str]:
    """Returns when it captures."""
    options = ["-i", interface, "-w", str(file), "-n", "-U", "--immediate-mode", "-Z", "root"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", place.name, "tcpdump", *options, "udp"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    said = ""
    while "listening on" not in said:
        line = process.stderr.readline()
        said += line
        if not line:
            _end(process)
            raise AssertionError(f"tcpdump on {interface}: {said}")
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stderr
    process.stderr.close()


def _by_source(packets: Iterable[Packet]) -> dict[Address, list[bytes]]:
    heard: dict[Address, list[bytes]] = {}
    for packet in packets:
        heard.setdefault((packet[IP].src, packet[UDP].sport), []).append(packet[Raw].load)
    return heard
