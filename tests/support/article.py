"""The article's firewall: its commands as printed, and the ordinary firewall they presuppose.

"You did WHAT with iptables? (Part 2: The Almost Solution)". Its eth0 is our `lan`, its eth1 our
`wan`, its 1.1.1.1 our public address; UCM is 10.10.10.10 in both.
"""
# ruff: noqa: E501 (the article's lines are as long as they are)

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.wire import Wire, flow, rtp, udp

COUNT = 23
REWRITER = (sys.executable, str(Path(__file__).with_name("nfqueue_rewriter.py")))
VARIANTS = ("iptables-nft", "iptables-legacy")

# The firewall before its owner had hold music to think of. The last line is what the article
# calls "our default SNAT rule for UCM".
ORDINARY = """
iptables -P INPUT DROP
iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -P FORWARD DROP
iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -A FORWARD -i eth0 -o eth1 -j ACCEPT
iptables -t nat -A POSTROUTING -s 10.10.10.10/32 -o eth1 -j SNAT --to-source 1.1.1.1
"""

IDENTIFY = """
sudo ipset create MOH hash:ip,port timeout 1
sudo ipset create TWO hash:ip,port timeout 1
sudo iptables -t raw -N MOH-LIST
sudo iptables -t raw -A PREROUTING -d 1.1.1.1/32 -i eth1 -p udp -j MOH-LIST
sudo iptables -t raw -A MOH-LIST -d 1.1.1.1/32 -i eth1 -p udp -m udp ! --dport 4000 -j SET --del-set MOH src,src
sudo iptables -t raw -A MOH-LIST -d 1.1.1.1/32 -i eth1 -p udp -m udp --dport 4000 -j SET --del-set TWO src,src
sudo iptables -t raw -A MOH-LIST -d 1.1.1.1/32 -i eth1 -p udp -m udp ! --dport 4000 -j SET --add-set TWO src,src
sudo iptables -t raw -A MOH-LIST -d 1.1.1.1/32 -i eth1 -p udp -m udp --dport 4000 -j SET --add-set MOH src,src
"""

PASS_IDENTIFIED = """
sudo iptables -N MOH-BLOCK
sudo iptables -I FORWARD -s 10.10.10.10/32 -i eth0 -o eth1 -p udp -j MOH-BLOCK
sudo iptables -A MOH-BLOCK -s 10.10.10.10/32 -i eth0 -o eth1 -p udp -m set --match-set TWO dst,dst -j ACCEPT
sudo iptables -A MOH-BLOCK -s 10.10.10.10/32 -i eth0 -o eth1 -p udp -m set --match-set MOH dst,dst -j ACCEPT
"""

DROP_UNIDENTIFIED = """
sudo iptables -A MOH-BLOCK -s 10.10.10.10/32 -i eth0 -o eth1 -p udp -j DROP
"""

PRINTED_SNAT = """
sudo iptables -I POSTROUTING -s 10.10.10.10/32 -o eth1 -m set --match-set MOH dst,dst -j SNAT --to-source 1.1.1.1:4000
"""

# As printed, iptables refuses that line: it names no table, and a port needs a protocol.
SNAT = PRINTED_SNAT.replace("-I POSTROUTING", "-t nat -I POSTROUTING -p udp")

NOTRACK = """
sudo iptables -t raw -A PREROUTING -s 10.10.10.10/32 -i eth0 -p udp -m set --match-set MOH dst,dst -j NOTRACK
"""

SOLUTION = IDENTIFY + PASS_IDENTIFIED + DROP_UNIDENTIFIED + SNAT

# Part 3: what is on hold is neither tracked nor NATed, and waits for a program that rewrites it
# (tests/support/nfqueue_rewriter.py). NOTRACK is the line above; the queue has no bypass, so that
# without the program nothing leaves, rather than the private address.
QUEUE = """
sudo iptables -t mangle -A POSTROUTING -s 10.10.10.10/32 -o eth1 -p udp -m set --match-set MOH dst,dst -j NFQUEUE --queue-num 4000
"""
QUEUE_WITH_BYPASS = QUEUE.replace("--queue-num 4000", "--queue-num 4000 --queue-bypass")
REWRITER_SOLUTION = IDENTIFY + PASS_IDENTIFIED + DROP_UNIDENTIFIED + NOTRACK + QUEUE

# nftables can rewrite statelessly, which iptables of 2014 could not: in the ip family, and at a
# device's ingress, where the packet is forwarded at once as ours is. Both learn as ours does, RTP
# alone (two bits of the payload's first byte), and drop the unidentified only where it would leave
# by the WAN. The map remembers which phantom port, 4000 or 4001 (RTCP), an endpoint sends to. What
# is not tracked and forgotten on its way to postrouting would leak: dropped.
_NFT_SETS = """
    map phantom { type ipv4_addr . inet_service : inet_service; size 65535; flags dynamic,timeout; timeout 60s; }
    set two { type ipv4_addr . inet_service; size 65535; flags dynamic,timeout; timeout 60s; }
    chain learn {
        udp dport 4000-4001 goto hold
        delete @phantom { ip saddr . udp sport : udp dport } update @two { ip saddr . udp sport }
    }
    chain hold {
        delete @two { ip saddr . udp sport } update @phantom { ip saddr . udp sport : udp dport }
        drop
    }"""
NFT_IP = f"""
table ip stateless {{{_NFT_SETS}
    chain judge {{
        ip daddr . udp dport @phantom notrack return
        ip daddr . udp dport @two return
        fib daddr oifname "wan" drop
    }}
    chain rewrite {{
        udp checksum 0 udp sport set ip daddr . udp dport map @phantom ip saddr set {PUBLIC} udp checksum set 0 accept
        udp sport set ip daddr . udp dport map @phantom ip saddr set {PUBLIC} accept
        ct state untracked drop
    }}
    chain prerouting {{
        type filter hook prerouting priority raw;
        iifname "wan" ip daddr {PUBLIC} @th,64,2 2 jump learn
        iifname "lan" ip saddr {UCM} udp sport 16384-32767 @th,64,2 2 jump judge
    }}
    chain postrouting {{
        type filter hook postrouting priority srcnat;
        oifname "wan" ip saddr {UCM} udp sport 16384-32767 @th,64,2 2 jump rewrite
    }}
}}
"""
NFT_NETDEV = f"""
table netdev stateless {{{_NFT_SETS}
    chain judge {{
        udp checksum 0 udp sport set ip daddr . udp dport map @phantom ip saddr set {PUBLIC} udp checksum set 0 fwd ip to {GATEWAY} device "wan"
        udp sport set ip daddr . udp dport map @phantom ip saddr set {PUBLIC} fwd ip to {GATEWAY} device "wan"
        ip daddr . udp dport @two return
        fib daddr oifname "wan" drop
    }}
    chain wan {{
        type filter hook ingress device "wan" priority 0;
        ip daddr {PUBLIC} @th,64,2 2 jump learn
    }}
    chain lan {{
        type filter hook ingress device "lan" priority 0;
        ip saddr {UCM} udp sport 16384-32767 @th,64,2 2 jump judge
    }}
}}
"""


def careless(rules: str) -> str:
    """nftables' rules without those that put a UDP checksum of 0 back in its place."""
    return "".join(line for line in rules.splitlines(keepends=True) if "checksum 0" not in line)


# The article says 1, and its rules do not renew a member (they lack --exist): a provider is
# forgotten every second even as it speaks, and which packets fall into that gap is chance.
TIMEOUT = 60
_OURS = {
    "sudo ": "",
    "1.1.1.1": PUBLIC,
    "eth0": "lan",
    "eth1": "wan",
    "timeout 1\n": f"timeout {TIMEOUT}\n",
}


class ArticleFirewall:
    """An ordinary firewall of iptables, `iptables` being the program it is made with."""

    def __init__(self, fw: Firewall, iptables: str) -> None:
        self.fw = fw
        self.iptables = iptables
        self.run(ORDINARY)

    def run(self, commands: str, *, check: bool = True) -> int:
        """Run commands as the article prints them; the exit status."""
        for theirs, ours in _OURS.items():
            commands = commands.replace(theirs, ours)
        # -w: iptables-legacy has one lock for the whole machine, whatever the namespace.
        commands = commands.replace("iptables ", f"{self.iptables} -w ")
        return self.fw.namespace.run("sh", "-e", input=commands, check=check).returncode

    def identified(self) -> dict[str, int]:
        """The sets that the provider is in, and the seconds until it is forgotten."""
        member = re.escape(PROVIDER.replace(":", ",udp:"))
        shown = self.fw.namespace.run("ipset", "save").stdout
        found = re.findall(rf"^add (\w+) {member} timeout (\d+)$", shown, re.MULTILINE)
        return {name: int(seconds) for name, seconds in found}

    def conntrack_errors(self) -> dict[str, int]:
        """The namespace's counters of packets that conntrack could make no entry for."""
        shown = self.fw.namespace.run("conntrack", "-S").stdout
        return {
            name: sum(map(int, re.findall(rf"\b{name}=(\d+)", shown)))
            for name in ("insert_failed", "drop")
        }

    def entries(self) -> list[tuple[str, str]]:
        """conntrack's entries of UDP: the source, and the destination of the reply."""
        shown = self.fw.namespace.run("conntrack", "-L", "-p", "udp").stdout
        entry = r"src=(\S+) dst=\S+ sport=(\d+) dport=\d+.* dst=(\S+) sport=\d+ dport=(\d+)"
        return sorted(
            (f"{source}:{sport}", f"{public}:{dport}")
            for source, sport, public, dport in re.findall(entry, shown)
        )

    def forget(self, ucm_port: int) -> None:
        """What 180 seconds without a packet would do to the entry of UCM's port."""
        self.fw.namespace.run("conntrack", "-D", "-p", "udp", "--orig-port-src", str(ucm_port))


@contextmanager
def article_firewall(iptables: str) -> Iterator[ArticleFirewall]:
    with firewall(masquerade=False) as fw:
        yield ArticleFirewall(fw, iptables)


def why_not(iptables: str) -> str:
    """Why this variant of iptables is of no use here; empty if it works."""
    with firewall(masquerade=False) as fw:
        tried = fw.namespace.run(iptables, "-w", "-t", "raw", "-S", check=False)
    return f"{iptables}: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def rewriter(fw: Firewall, command: Sequence[str] = REWRITER) -> Iterator[subprocess.Popen[str]]:
    """The program that QUEUE leads packets to, at work in the firewall."""
    program = [*command, "4000", f"{PUBLIC}:4000"]
    process = subprocess.Popen(
        ["ip", "netns", "exec", fw.namespace.name, *program], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", "the rewriter does not run: see above"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_rewriter(fw: Firewall, process: subprocess.Popen[str]) -> None:
    """Until it has dealt with all packets: none waits for its verdict, and it sleeps again."""
    deadline = time.monotonic() + 10
    while _waiting(fw) or _state(process.pid) != "S":
        assert time.monotonic() < deadline, "the rewriter does not come to an end"


def _waiting(fw: Firewall) -> int:
    """Packets that wait in the queue. (Its line: number, port, packets waiting, …)"""
    with fw.namespace.entered():
        queue = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
    return int(queue.split()[2])


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]


def why_no_rewriter() -> str:
    """Why the rewriter cannot run here; empty if it can."""
    try:
        import netfilterqueue  # noqa: F401
    except ImportError:
        return "PyPI's NetfilterQueue is not in .venv: scripts/setup --dev installs it"
    return ""


def udp_flows(wire: Wire) -> list[tuple[str, str]]:
    """What came out of the firewall by this wire: UDP, and nothing but UDP."""
    packets = wire.sent()
    assert all(UDP in packet for packet in packets), [packet.summary() for packet in packets]
    return [flow(packet) for packet in packets]


def say(fw: Firewall, ucm_port: int, count: int = COUNT) -> None:
    """UCM speaks."""
    fw.lan.send(*[udp(f"{UCM}:{ucm_port}", PROVIDER)] * count)


def talk(fw: Firewall, ucm_port: int, public_port: int) -> None:
    """Both speak by turns, COUNT packets each. The provider is first, so it stays identified."""
    for number in range(COUNT):
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:{public_port}", rtp(number)))
        fw.lan.send(udp(f"{UCM}:{ucm_port}", PROVIDER, rtp(number)))


def left(fw: Firewall, ucm_port: int, public_port: int) -> list[tuple[str, str]]:
    """The two `talk`; what left by the WAN."""
    talk(fw, ucm_port, public_port)
    return udp_flows(fw.wan)


def udp_checksum(packet: Packet) -> int:
    """What the packet's UDP checksum ought to be."""
    copy = packet[IP].copy()
    del copy[UDP].chksum
    return IP(bytes(copy))[UDP].chksum


def nft_spoils_zero() -> bool:
    """Does this nft turn a UDP checksum of 0 into garbage? 1.0 has the kernel adjust whatever
    stands there; 1.1 tells it that it is UDP's."""
    version = subprocess.run(
        ["nft", "--version"], capture_output=True, text=True, check=True
    ).stdout
    major, minor = re.findall(r"\d+", version)[:2]
    return (int(major), int(minor)) < (1, 1)
