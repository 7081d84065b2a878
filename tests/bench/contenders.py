"""What hold music is sent through: the limits, the alternatives, and moh_ebpf.

Each is a firewall in namespaces of its own, made as the end-to-end tests make theirs; its far
ends are in one other namespace, where the sink drops what has come through. The veths have GRO
off, as is their default, and no RPS: the CPU that sends a packet is the one that forwards it.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from scapy.packet import Packet

from moh_ebpf.errors import MohError
from moh_ebpf.kernel.capture import Capture
from tests.bench import native
from tests.bench.limits import Limits, limits
from tests.support import article
from tests.support.article import ArticleFirewall
from tests.support.firewall import PUBLIC, UCM, Firewall, firewall
from tests.support.wire import flow, udp

UCM_PORT = 16384
UCM_ENDPOINT = f"{UCM}:{UCM_PORT}"
MOH_ENDPOINT = f"{PUBLIC}:4000"
# The first of as many as are asked for; generator.c counts up from it.
FIRST_PROVIDER = "203.0.0.1:20000"

# A set's member and a peer outlive the run. The most that moh_ebpf takes is an hour.
# Each round learns anew. From more than a minute on, moh_ebpf asks for learn's clock, too, which
# with its default of a second it does not.
LIFETIME = "60s"
# The article's ipset keeps an entry so long from its first packet on, whatever comes after: that
# must not end within a measurement.
_ARTICLE_LIFETIME_SECONDS = 3600
_PATIENCE_SECONDS = 5.0

PLAYED = udp(UCM_ENDPOINT, FIRST_PROVIDER)


@dataclass
class Built:
    """A firewall ready for packets; `workers` are processes that see each of them."""

    fw: Firewall
    limits: Limits
    workers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Contender:
    """`source` is where its packets come from at the provider, None where none gets there."""

    name: str
    label: str
    source: str | None
    build: Callable[[], AbstractContextManager[Built]]
    learns: bool = True
    in_user_space: bool = False


class Running:
    """A contender that is built, and was seen to do its work."""

    def __init__(self, contender: Contender, built: Built) -> None:
        self.contender, self.fw, self.workers = contender, built.fw, built.workers
        self.learn(1)
        self._check()
        built.limits.attach("drop", self.fw.outside, self.fw.wan.end)
        # Their sockets would see each packet, which costs.
        self.fw.lan.close()
        self.fw.wan.close()

    def learn(self, flows: int) -> None:
        """The provider's endpoints send to the phantom port, two packets each: a stream."""
        if self.contender.learns:
            self.hear(flows, 2 * flows)

    def hear(self, flows: int, count: int, first: str = FIRST_PROVIDER) -> native.Sent:
        """RTP to the phantom port from so many endpoints, of which this is the first."""
        packet = udp(first, MOH_ENDPOINT)
        return native.send(self.fw.wan, self.fw.lan, packet, flows=flows, count=count, side="from")

    def ns(self, flows: int, count: int) -> float:
        """CPU time of a packet's whole way, from the generator to the sink, when one follows
        another. All must get there, or none where they are dropped."""
        ns, arrived = self._measure(flows, count, "arrival" if self.contender.in_user_space else 0)
        expected = count if self.contender.source else 0
        if arrived != expected:
            raise MohError(f"{self.contender.name}: {arrived} of {expected} packets arrived")
        return ns

    def at_pace(self, flows: int, count: int, burst: int, pause: int) -> tuple[float, float]:
        """The same at a pace that a firewall may be too slow for; and how many got lost, in %."""
        ns, arrived = self._measure(flows, count, pause, burst)
        return ns, 100 * (1 - arrived / count) if self.contender.source else 0.0

    def _measure(
        self, flows: int, count: int, pause: int | str, burst: int = native.BURST
    ) -> tuple[float, int]:
        """A program in user space counts with its own CPU time."""
        before = sum(map(native.cpu_ns, self.workers))
        sent = native.send(
            self.fw.lan, self.fw.wan, PLAYED, flows=flows, count=count, burst=burst, pause=pause
        )
        worked = sum(map(native.cpu_ns, self.workers)) - before
        return sent.ns + worked / count, sent.arrived

    def _check(self) -> None:
        """One packet: what is measured does what it is there for."""
        self.fw.wan.sent()
        self.fw.lan.send(PLAYED)
        seen = [flow(each) for each in self._came_through()]
        source = self.contender.source
        expected = [(source, FIRST_PROVIDER)] if source else []
        if seen != expected:
            raise MohError(f"{self.contender.name}: {seen} came through, not {expected}")

    def _came_through(self) -> list[Packet]:
        """A program in user space takes its time; where nothing comes, nothing is waited for."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (packets := self.fw.wan.sent()) and self.contender.source:
            if time.monotonic() > deadline:
                break
        return packets


@contextmanager
def running(contender: Contender) -> Iterator[Running]:
    with contender.build() as built:
        yield Running(contender, built)


@contextmanager
def bare(program: str | None = None, interface: str = "lan") -> Iterator[Built]:
    """Plain forwarding, or one of limits.c at the first hook."""
    with firewall(masquerade=False) as fw, limits(fw) as programs:
        if program:
            programs.attach(program, fw.namespace, interface)
        yield Built(fw, programs)


@contextmanager
def _nft(rules: str = "") -> Iterator[Built]:
    """Beside the masquerade that two-way calls take."""
    with firewall() as fw, limits(fw) as programs:
        if rules:
            fw.namespace.nft(rules.replace("timeout 60s", f"timeout {LIFETIME}"))
        yield Built(fw, programs)


@contextmanager
def _article(iptables: str, rules: str = article.SOLUTION) -> Iterator[Built]:
    with firewall(masquerade=False) as fw, limits(fw) as programs:
        rules = rules.replace("timeout 1\n", f"timeout {_ARTICLE_LIFETIME_SECONDS}\n")
        ArticleFirewall(fw, iptables).run(rules)
        yield Built(fw, programs)


@contextmanager
def _queue(command: Sequence[str]) -> Iterator[Built]:
    """The article's last answer: a program on the measured CPU rewrites each packet."""
    with (
        _article(article.VARIANTS[0], article.REWRITER_SOLUTION) as built,
        article.rewriter(built.fw, command) as worker,
    ):
        os.sched_setaffinity(worker.pid, {native.CPU})
        built.workers.append(worker.pid)
        yield built


@contextmanager
def moh(*arguments: str, masquerade: bool = True) -> Iterator[Built]:
    """moh_ebpf, attached with these interfaces."""
    with firewall(masquerade=masquerade) as fw, limits(fw) as programs:
        fw.moh("attach", "--wan", "wan", "--ucm", UCM, "--timeout", LIFETIME, *arguments)
        yield Built(fw, programs)


@contextmanager
def _moh_reading() -> Iterator[Built]:
    """The same, with the packet socket by which `run` hears SIP."""
    with moh("--lan", "lan") as built:
        with built.fw.namespace.entered():
            capture = Capture([5060])
        with closing(capture):
            yield built


DROP = Contender("drop", "dropped at the first hook", None, lambda: bare("drop"), learns=False)
REDIRECT = Contender(
    "redirect", "bare bpf_redirect", UCM_ENDPOINT, lambda: bare("redirect"), learns=False
)
PLAIN = Contender("plain", "forwarding without NAT", UCM_ENDPOINT, bare, learns=False)
MASQUERADE = Contender(
    "masquerade", "forwarding with masquerade", f"{PUBLIC}:{UCM_PORT}", _nft, learns=False
)
ARTICLE = [
    Contender(name, f"{name} + ipset (article)", MOH_ENDPOINT, partial(_article, name))
    for name in article.VARIANTS
]
QUEUE_C = Contender(
    "nfqueue-c",
    "NFQUEUE and a rewriter in C",
    MOH_ENDPOINT,
    lambda: _queue([str(native.program("queue_rewriter", "netfilter_queue"))]),
    in_user_space=True,
)
QUEUE_PYTHON = Contender(
    "nfqueue-python",
    "NFQUEUE and a rewriter in Python",
    MOH_ENDPOINT,
    lambda: _queue(article.REWRITER),
    in_user_space=True,
)
NFT_IP = Contender("nft-ip", "nftables, ip family", MOH_ENDPOINT, lambda: _nft(article.NFT_IP))
NFT_NETDEV = Contender(
    "nft-netdev", "nftables, netdev + fwd", MOH_ENDPOINT, lambda: _nft(article.NFT_NETDEV)
)
MOH = Contender("moh", "moh_ebpf, LAN + WAN", MOH_ENDPOINT, lambda: moh("--lan", "lan"))
MOH_NO_QUALITY = Contender(
    "moh-no-quality",
    "moh_ebpf, LAN + WAN, --no-quality",
    MOH_ENDPOINT,
    lambda: moh("--lan", "lan", "--no-quality"),
)
MOH_FLIP = Contender(
    "moh-flip",
    "moh_ebpf, LAN + WAN, --flip-hold",
    MOH_ENDPOINT,
    lambda: moh("--lan", "lan", "--flip-hold"),
)
MOH_READING = Contender(
    "moh-reading", "moh_ebpf, LAN + WAN, SIP read", MOH_ENDPOINT, lambda: _moh_reading()
)
MOH_WAN = Contender("moh-wan", "moh_ebpf, WAN only", MOH_ENDPOINT, lambda: moh(masquerade=False))


def usable_article() -> list[Contender]:
    """The article's rules by the variants of iptables that work here."""
    return [each for each in ARTICLE if not article.why_not(each.name)]


def contenders() -> list[Contender]:
    """All that work on this machine."""
    queues = [QUEUE_C] + [QUEUE_PYTHON] * (not article.why_no_rewriter())
    ours = [MOH, MOH_NO_QUALITY, MOH_FLIP, MOH_READING, MOH_WAN]
    others = [PLAIN, NFT_NETDEV, NFT_IP, MASQUERADE]
    return [DROP, REDIRECT, *ours, *others, *usable_article(), *queues]


@contextmanager
def all_running(chosen: list[Contender]) -> Iterator[list[Running]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(each)) for each in chosen]
