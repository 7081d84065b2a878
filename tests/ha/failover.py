"""The same calls by several ways through a pair of firewalls, and what a change of master costs.

All calls are in progress at once, so that what they lose is lost at the same failover. moh_ebpf is
told of one address of UCM's and of one of the provider's networks; the other addresses and networks
are without it, in the same firewalls.
"""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.ha.calls import Call, Traffic, Way
from tests.ha.pair import Pair, Router, example, pair, with_macvlans, with_virtual_macs
from tests.support import article
from tests.support.firewall import PUBLIC, UCM
from tests.support.hosts import Address, udp_socket
from tests.support.namespace import Namespace
from tests.support.service import service
from tests.support.telephony import UCM_PORTS
from tests.support.waiting import until

PHANTOM = 4000
PROVIDER_PORT = 20000
ROUNDS = 50  # packets each way before a change of master, after it, and of a new hold
OTHER_UCM, ARTICLES_UCM = "10.10.10.20", "10.10.10.30"


class By(StrEnum):
    """What brings UCM's packets to the provider."""

    MOH = "moh_ebpf"
    NAT = "NAT alone"
    ARTICLE = "the article's rules"
    OPEN_INPUT = "NAT alone, INPUT accepts RTP"
    DNAT = "NAT alone, DNAT of RTP to UCM"


@dataclass(frozen=True)
class Case:
    """A call: who takes part in it, and how. Where UCM's end pauses, it says nothing while the
    master changes, and for a second after, as a phone whose user listens (voice activity
    detection)."""

    hold: bool
    by: By
    ucm: str
    provider: str
    pauses: bool = False

    @property
    def name(self) -> str:
        kind = "hold music" if self.hold else "two-way call"
        return f"{kind}{', silent' if self.pauses else ''}; {self.by}"


CASES = (
    Case(True, By.MOH, UCM, "203.0.113.10"),
    Case(False, By.MOH, UCM, "203.0.113.11"),
    Case(False, By.NAT, OTHER_UCM, "192.0.2.10"),
    Case(False, By.NAT, OTHER_UCM, "192.0.2.15", pauses=True),
    Case(False, By.OPEN_INPUT, OTHER_UCM, "192.0.2.11", pauses=True),
    Case(False, By.DNAT, OTHER_UCM, "192.0.2.14", pauses=True),
    Case(True, By.NAT, OTHER_UCM, "192.0.2.12"),
    Case(True, By.ARTICLE, ARTICLES_UCM, "192.0.2.13"),
)


_PROVIDER = {case.by: case.provider for case in CASES}
# Each for its own call only.
MORE_RULES = f"""
table ip firewall {{
    chain input {{
        iifname "eth1" ip saddr {_PROVIDER[By.OPEN_INPUT]} udp dport 16384-32767 accept
    }}
    chain forward {{
        ct status dnat accept
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        iifname "eth1" ip saddr {_PROVIDER[By.DNAT]} udp dport 16384-32767 dnat to {OTHER_UCM}
    }}
}}
"""
# As printed, with this firewall's addresses and the same timeout.
ARTICLES_RULES = (
    article.SOLUTION.replace("sudo ", "")
    .replace("1.1.1.1", PUBLIC)
    .replace("10.10.10.10/", f"{ARTICLES_UCM}/")
    .replace("timeout 1\n", f"timeout {article.TIMEOUT}\n")
    .replace("iptables ", "iptables-nft -w ")
)

# Nobody is forgotten, however slow the machine.
TIMEOUT = f'timeout = "{article.TIMEOUT}s"\n'


@dataclass(frozen=True)
class Seen:
    """A call at one change of master: packets lost each way (`inbound` is None where nothing can
    hear them), and the sources that the provider saw before it, after it, and of the next hold.
    `port` is UCM's, `next_port` that of the next hold."""

    outbound: int
    inbound: int | None
    before: set[str]
    after: set[str]
    next_hold: set[str] | None
    port: int
    next_port: int


class Site:
    """The pair with moh_ebpf and the other ways, and the calls. Firewall a is the master.
    `has_run`: `moh-ebpf run` is there, and has not only attached and gone."""

    def __init__(self, made: Pair, stack: ExitStack, *, has_run: bool) -> None:
        self.pair, self.has_run = made, has_run
        self._sockets = stack.enter_context(ExitStack())
        self._ports = iter(random.sample(UCM_PORTS, 50))
        self.calls = {case: self._call(case) for case in CASES}
        for call in self.calls.values():
            call.inbound.speaking = False  # at a call's beginning UCM is first, as NAT needs it
        self._traffic = stack.enter_context(closing(Traffic(list(self.calls.values()))))
        self._traffic.await_rounds(1)
        for case, call in self.calls.items():
            call.inbound.speaking = True
            self._await_resumed(case)
        self._traffic.drain()

    def change(self, act: Callable[[], None], master: Router) -> dict[Case, Seen]:
        """Have the master change in the middle of all calls, then hold anew."""
        ways = [way for call in self.calls.values() for way in call.ways]
        begun = {id(way): way.sent for way in ways}
        consumed = self._consumed()
        self._speak()
        self._traffic.await_rounds(ROUNDS)
        for case, call in self.calls.items():
            call.outbound.speaking = not case.pauses
        acted = {case: call.outbound.sent for case, call in self.calls.items()}
        act()
        until(f"{master.name} is the master", master.is_master)
        changed = {case: call.outbound.sent for case, call in self.calls.items()}
        for case in CASES:
            if case.by in (By.MOH, By.NAT) and not case.pauses:
                self._await_resumed(case)
        self._traffic.await_rounds(ROUNDS)
        self._speak()  # those that were silent, too
        self._traffic.await_rounds(ROUNDS)
        self._traffic.drain()
        consumed = self._consumed() - consumed
        ended = {case: call.outbound.sent for case, call in self.calls.items()}
        outbound: dict[Case, int] = {}
        inbound: dict[Case, int | None] = {}
        for case, call in self.calls.items():
            outbound[case] = call.outbound.lost(begun[id(call.outbound)])
            inbound[case] = call.inbound.lost(begun[id(call.inbound)])
        for case, call in self.calls.items():
            if case.hold:
                # Nobody hears it: the firewalls know how much came, of the one they are told of.
                heard = consumed if case.by is By.MOH else None
                sent = call.inbound.sent - begun[id(call.inbound)]
                inbound[case] = None if heard is None else sent - heard
        ports = self._ucm_ports()
        self._hold_anew()
        next_ports = self._ucm_ports()
        return {
            case: Seen(
                outbound[case],
                inbound[case],
                call.outbound.sources(begun[id(call.outbound)], acted[case]),
                call.outbound.sources(changed[case], ended[case]),
                call.outbound.sources(ended[case], call.outbound.sent) if case.hold else None,
                ports[case],
                next_ports[case],
            )
            for case, call in self.calls.items()
        }

    def _consumed(self) -> int:
        return sum(each.counters()["consumed"] for each in (self.pair.a, self.pair.b))

    def _ucm_ports(self) -> dict[Case, int]:
        return {case: call.outbound.sender.getsockname()[1] for case, call in self.calls.items()}

    def _speak(self) -> None:
        for call in self.calls.values():
            call.speak(True)

    def _await_resumed(self, case: Case) -> None:
        way = self.calls[case].outbound
        sent = way.sent
        until(f"{case.name} is heard", lambda: way.sources(sent, way.sent))

    def _hold_anew(self) -> None:
        for case, call in self.calls.items():
            if case.hold:
                call.move(self._ucm_socket(case, next(self._ports)))
                call.speak(True)
        self._traffic.await_rounds(ROUNDS)
        self._traffic.drain()

    def _call(self, case: Case) -> Call:
        port = next(self._ports)
        ucm = self._ucm_socket(case, port)
        provider = self._socket(self.pair.wan, (case.provider, PROVIDER_PORT))
        return Call(
            inbound=Way(provider, (PUBLIC, PHANTOM if case.hold else port), ucm),
            outbound=Way(ucm, (case.provider, PROVIDER_PORT), provider),
        )

    def _ucm_socket(self, case: Case, port: int) -> socket.socket:
        return self._socket(self.pair.lan, (case.ucm, port))

    def _socket(self, place: Namespace, at: Address) -> socket.socket:
        made = self._sockets.enter_context(udp_socket(place, at))
        made.setblocking(False)
        return made


@contextmanager
def site(directory: Path, *, virtual_macs: bool = False) -> Iterator[Site]:
    """With virtual MACs, keepalived makes the interfaces anew when it starts; so there
    `moh-ebpf run` keeps the programs attached, elsewhere they are attached once."""
    keepalived, config = example("keepalived"), example("toml") + TIMEOUT
    # The article's source NAT comes before the firewall's own.
    rules = example("nft").replace("priority srcnat", "priority srcnat + 1") + MORE_RULES
    if virtual_macs:
        keepalived = with_virtual_macs(keepalived)
        rules, config = with_macvlans(rules), with_macvlans(config)
    ucm, provider = sorted({case.ucm for case in CASES}), sorted({case.provider for case in CASES})
    with pair(directory, ucm, provider, keepalived, rules) as made, ExitStack() as stack:
        made.start()
        for router in (made.a, made.b):
            router.place.run("sh", "-e", input=ARTICLES_RULES)
            (own := directory / router.name).mkdir()
            if virtual_macs:
                running = stack.enter_context(service(router.place, own, config))
                assert running.wait_for_word("READY") == "1"
                continue
            (file := own / "moh-ebpf.toml").write_text(config)
            router.place.moh("attach", "--config", str(file))
        yield Site(made, stack, has_run=virtual_macs)


def changes(made: Site) -> Iterator[tuple[str, dict[Case, Seen]]]:
    """Three changes in a row: what is done, and what was seen."""
    a, b = made.pair.a, made.pair.b
    yield "the master falls silent", made.change(lambda: made.pair.die(a), b)
    yield "it comes back", made.change(lambda: made.pair.revive(a), a)
    yield "its keepalived is stopped", made.change(a.stop, b)
