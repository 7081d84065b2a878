"""Two firewalls that share their addresses by VRRP: Debian's keepalived, in network namespaces.

       lan                     firewall a, b                      wan
  switch: UCM's ── eth0 .2, .3 │ eth1 .3, .4 ── switch: the gateway; lo: the provider's
             the virtual 10.10.10.1   198.51.100.2

Their configs are those of docs/ha.md as they stand there, with a priority for each firewall.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.firewall import GATEWAY, PUBLIC
from tests.support.namespace import Namespace, namespace
from tests.support.telephony import Program
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs/ha.md"
LAN_GATEWAY = "10.10.10.1"
NAMES = ("fw-a", "fw-b")


def example(language: str) -> str:
    """A config of docs/ha.md, by the language of its block."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)
    return found


def with_virtual_macs(config: str) -> str:
    """keepalived's config with virtual MACs: macvlans vrrp10, vrrp20 have the addresses."""
    return re.sub(
        r"( *)virtual_router_id (\d+)\n",
        r"\g<0>\1use_vmac vrrp\2\n\1vmac_xmit_base\n",
        config,
    )


def with_macvlans(rules: str) -> str:
    """The firewall's rules and moh_ebpf's config, with those macvlans beside what they are on: the
    kernel also names the MAC below for a virtual address, when it asks for a neighbour from it."""
    for interface, macvlan in (("eth0", "vrrp10"), ("eth1", "vrrp20")):
        rules = rules.replace(f'iifname "{interface}"', f'iifname {{ "{interface}", "{macvlan}" }}')
    return rules.replace('lan = ["eth0"', 'lan = ["eth0", "vrrp10"')


class Keepalived(Program):
    """The program that is our child waits for it, and ends with it."""

    def end(self, number: signal.Signals) -> None:
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in map(int, children):
            os.kill(child, number)
        until(f"{self.name} ends", lambda: self._process.poll() is not None)


class Router:
    """A firewall of the pair. Its keepalived has all its files in `directory`."""

    def __init__(self, place: Namespace, name: str, directory: Path, config: str) -> None:
        self.place = place
        self.name = name
        self._directory = directory
        self._runs = 0
        self._keepalived: Keepalived | None = None
        self._config = directory / f"keepalived-{name}.conf"
        self._config.write_text(config)

    def start(self, state: str = "Entering BACKUP STATE") -> None:
        """Start keepalived; it is in this state afterwards."""
        self._runs += 1
        name = f"keepalived-{self.name}-{self._runs}"
        files = {option: self._directory / f"{name}.{option}" for option in ("pid", "vrrp_pid")}
        self._keepalived = Keepalived(
            self.place,
            self._directory,
            name,
            *("keepalived", "--vrrp", "--dont-fork", "--no-syslog", "--log-console"),
            "--log-detail",
            *("--use-file", str(self._config)),
            *(word for option, file in files.items() for word in (f"--{option}", str(file))),
        )
        self._keepalived.says(state)

    def kill(self) -> None:
        """kill -9: it says nothing to the other, and leaves the addresses where they are."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as systemctl stop does: it gives the addresses up, and says so to the other."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        keepalived, self._keepalived = self._keepalived, None
        if keepalived:
            with closing(keepalived):
                keepalived.end(number)

    def has(self, address: str) -> bool:
        return f" {address}/" in self.place.run("ip", "-oneline", "-4", "address", "show").stdout

    def is_master(self) -> bool:
        return self.has(LAN_GATEWAY) and self.has(PUBLIC)

    def counters(self) -> dict[str, int]:
        # It fails where a macvlan of keepalived's is gone, and counts all the same.
        return json.loads(self.place.moh("status", "--json", check=False).stdout)["counters"]


@dataclass
class Pair:
    """`a` has the higher priority. UCM and its like are in `lan`, the provider is in `wan`."""

    a: Router
    b: Router
    lan: Namespace
    wan: Namespace

    def start(self) -> None:
        """VRRP on both; `a` is the master afterwards."""
        for router in (self.a, self.b):
            router.start()
        until("fw-a is the master", self.a.is_master)
        assert not self.b.is_master()

    def links(self, router: Router, state: str) -> None:
        """Pull the cables of a firewall at the switches, or plug them in: down, up."""
        for bridge in (self.lan, self.wan):
            bridge.run("ip", "link", "set", router.name, state)

    def die(self, router: Router) -> None:
        """Power is lost: no word more from it, nor a packet."""
        router.kill()
        self.links(router, "down")

    def revive(self, router: Router) -> None:
        """Started without cables: it first takes away the addresses that it died with."""
        router.start("entering FAULT state")
        until(f"{router.name} is clean", lambda: not router.has(PUBLIC))
        self.links(router, "up")


@contextmanager
def pair(
    directory: Path, ucm: list[str], provider: list[str], config: str, rules: str
) -> Iterator[Pair]:
    """The two, nothing attached, keepalived not started. `ucm` and `provider` are the addresses
    on the LAN, and behind the WAN's gateway; `config` is keepalived's, `rules` nftables'."""
    with ExitStack() as stack:
        lan, wan, *places = (
            stack.enter_context(namespace(role)) for role in ("lan", "wan", *NAMES)
        )
        for bridge in (lan, wan):
            bridge.run("ip", "link", "add", "switch", "type", "bridge")
            bridge.run("ip", "link", "set", "switch", "up")
        routers = []
        for number, (name, place) in enumerate(zip(NAMES, places, strict=True)):
            _connect(place, "eth0", lan, name, f"10.10.10.{2 + number}/24")
            _connect(place, "eth1", wan, name, f"198.51.100.{3 + number}/24")
            place.run("ip", "route", "add", "default", "via", GATEWAY)
            place.sysctl("net.ipv4.ip_forward", 1)
            place.nft(rules)
            mine = config.replace("priority 150", f"priority {150 - 50 * number}")
            routers.append(Router(place, name, directory, mine))
            stack.callback(routers[-1].kill)
        _addresses(lan, "switch", ucm)
        lan.run("ip", "route", "add", "default", "via", LAN_GATEWAY)
        _addresses(wan, "switch", [GATEWAY])
        _addresses(wan, "lo", provider)
        a, b = routers
        yield Pair(a, b, lan, wan)


def _connect(place: Namespace, interface: str, bridge: Namespace, name: str, address: str) -> None:
    peer = ("peer", "name", name, "netns", bridge.name)
    place.run("ip", "link", "add", interface, "type", "veth", *peer)
    bridge.run("ip", "link", "set", name, "master", "switch", "up")
    # A real interface does not hear what a switch floods for another's MAC; a veth would.
    bridge.run("bridge", "link", "set", "dev", name, "flood", "off")
    place.run("ip", "address", "add", address, "dev", interface)
    place.run("ip", "link", "set", interface, "up")


def _addresses(place: Namespace, interface: str, addresses: list[str]) -> None:
    length = 24 if interface == "switch" else 32
    for address in addresses:
        place.run("ip", "address", "add", f"{address}/{length}", "dev", interface)
