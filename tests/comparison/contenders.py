"""Those that are compared: how each is set to work on an ordinary firewall, and taken away."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from subprocess import Popen
from typing import NamedTuple

from scapy.layers.inet import UDP
from scapy.packet import Packet

from tests.support import article
from tests.support.article import COUNT, ArticleFirewall
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import flow, rtp, udp

Flow = tuple[str, str]
_MOH = f"{sys.executable} -m moh_ebpf"


class Contender(NamedTuple):
    """`rules` is what its owner writes, in `language`; `remove` is what takes it away; `why_not`
    tells why it cannot run here, or nothing."""

    name: str
    about: str
    rules: str
    language: str
    start: Callable[["Site"], None]
    remove: str
    why_not: Callable[[], str] = str


@dataclass
class Site:
    """An ordinary firewall, on which a contender is started and judged by what leaves it."""

    contender: Contender
    article: ArticleFirewall
    stack: ExitStack
    program: Popen[str] | None = None
    seen: list[Packet] = field(default_factory=list)

    @property
    def fw(self) -> Firewall:
        return self.article.fw

    def start(self) -> None:
        self.contender.start(self)

    def remove(self) -> int:
        """Take the contender away; the number of commands that it took, the program's end one."""
        if self.program:
            self.kill_program()
        self.article.run(self.contender.remove.replace("moh-ebpf", _MOH))
        return len(self.contender.remove.splitlines()) + bool(self.program)

    def kill_program(self) -> None:
        assert self.program
        self.program.kill()
        self.program.wait()

    def say(self, ucm_port: int, count: int = COUNT) -> list[Flow]:
        """UCM speaks; what left by the WAN."""
        article.say(self.fw, ucm_port, count)
        return self.left()

    def talk(self, ucm_port: int, public_port: int) -> list[Flow]:
        """The provider and UCM speak by turns; what left by the WAN."""
        article.talk(self.fw, ucm_port, public_port)
        return self.left()

    def turn(self, ucm_port: int, public_port: int) -> list[Flow]:
        """One packet each, the provider's, then UCM's; what left by the WAN."""
        self.fw.wan.send(udp(PROVIDER, f"{PUBLIC}:{public_port}", rtp()))
        self.fw.lan.send(udp(f"{UCM}:{ucm_port}", PROVIDER, rtp()))
        return self.left()

    def left(self) -> list[Flow]:
        """As `packets`, but UDP's flows; a wrong checksum is an error, whoever made it."""
        packets = [packet for packet in self.packets() if UDP in packet]
        assert all(packet[UDP].chksum in (0, article.udp_checksum(packet)) for packet in packets)
        return [flow(packet) for packet in packets]

    def packets(self) -> list[Packet]:
        """What has left by the WAN since the last call, of whatever kind."""
        if self.program and self.program.poll() is None:
            article.wait_for_rewriter(self.fw, self.program)
        packets = self.fw.wan.sent()
        self.seen += packets
        return packets


@contextmanager
def site(contender: Contender) -> Iterator[Site]:
    """The firewall, the contender not started yet."""
    with article.article_firewall(_iptables()) as made, ExitStack() as stack:
        yield Site(contender, made, stack)


@cache
def _iptables() -> str:
    return next(name for name in article.VARIANTS if not article.why_not(name))


def with_rules(rules: str) -> Callable[[Site], None]:
    """A start by rules: a table of nftables, or commands as the article prints them."""

    def start(site: Site) -> None:
        if rules.lstrip().startswith("table "):
            site.fw.namespace.nft(rules)
        else:
            site.article.run(rules)

    return start


def attached(*options: str) -> Callable[[Site], None]:
    return lambda site: site.fw.attach("--timeout", "60s", *options)


def _start_queue(site: Site) -> None:
    site.article.run(article.REWRITER_SOLUTION)
    site.program = site.stack.enter_context(article.rewriter(site.fw))


def _removal(rules: str) -> str:
    """The commands that take the article's rules away, each chain before its sets."""
    lines = [line for line in rules.replace("sudo ", "").splitlines() if line]
    chains = [line for line in lines if " -N " in line]
    calls = [line for line in lines if line.startswith("iptables") and not _within(line, chains)]
    return "\n".join(
        [
            *(_deleted(line) for line in calls),
            *(line.replace(" -N ", verb) for line in chains for verb in (" -F ", " -X ")),
            *(f"ipset destroy {line.split()[2]}" for line in lines if line.startswith("ipset")),
        ]
    )


def _within(line: str, chains: list[str]) -> bool:
    own = [chain.split()[-1] for chain in chains]
    return line in chains or any(f" -A {name} " in line for name in own)


def _deleted(line: str) -> str:
    return line.replace(" -A ", " -D ").replace(" -I ", " -D ")


ATTACH = ("--wan", "wan", "--lan", "lan", "--ucm", UCM)

CONTENDERS = [
    Contender(
        "no rules",
        "An ordinary firewall and no more: INPUT and FORWARD drop what is not asked for, SNAT for "
        "UCM. All the others stand on it, too.",
        article.ORDINARY,
        "sh",
        with_rules(""),
        "",
    ),
    Contender(
        "iptables + ipset",
        "The article's rules of Part 2, as printed, but for two words that iptables asks for in "
        "the SNAT line (`-t nat`, `-p udp`). The NOTRACK line that it ends with is "
        "[judged apart](#checked-beside-the-table).",
        article.SOLUTION,
        "sh",
        with_rules(article.SOLUTION),
        _removal(article.SOLUTION),
    ),
    Contender(
        "NFQUEUE",
        "The article's last answer: the same sets, NOTRACK, and a program that rewrites each "
        "packet of hold music. The author's was Perl; this one is "
        "[Python](../tests/support/nfqueue_rewriter.py), with a checksum of 0 left alone, and no "
        "`--queue-bypass`.",
        article.REWRITER_SOLUTION,
        "sh",
        _start_queue,
        _removal(article.REWRITER_SOLUTION),
        article.why_no_rewriter,
    ),
    Contender(
        "nft ip",
        "nftables' stateless rewriting where the article's rules were: raw, and postrouting.",
        article.NFT_IP,
        "",
        with_rules(article.NFT_IP),
        "nft delete table ip stateless",
    ),
    Contender(
        "nft netdev",
        "nftables by its shortest way: at both interfaces' ingress, the packet forwarded at once "
        "(`fwd`). The gateway is named in the rules.",
        article.NFT_NETDEV,
        "",
        with_rules(article.NFT_NETDEV),
        "nft delete table netdev stateless",
    ),
    Contender(
        "moh_ebpf",
        "This project.",
        f"moh-ebpf attach {' '.join(ATTACH)} --timeout 60s",
        "sh",
        attached(),
        "moh-ebpf detach",
    ),
]
