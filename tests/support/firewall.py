"""A firewall between a LAN and WANs, as the end-to-end tests need it."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from tests.support.namespace import Namespace, namespace
from tests.support.wire import Tun, Wire

UCM = "10.10.10.10"
PUBLIC = "198.51.100.2"
GATEWAY = "198.51.100.1"
PROVIDER = "203.0.113.10:21000"

# As a real firewall has it. The input chain matters: where it is open, inbound RTP makes a
# conntrack entry of its own first, and masquerade then moves UCM's source port.
MASQUERADE = """
table ip filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept;
    };
};
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan*" masquerade;
    };
};
"""


@dataclass
class Firewall:
    """`namespace` is the firewall itself; `lan` and `wan` are the far ends of its interfaces.

    The provider (any address) is behind the WAN's gateway; neighbours are static.
    """

    namespace: Namespace
    outside: Namespace
    lan: Wire
    wan: Wire
    stack: ExitStack

    def moh(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.namespace.moh(*arguments, check=check)

    def attach(self, *arguments: str) -> None:
        """Attach with the usual interfaces and UCM; arguments come after them."""
        self.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, *arguments)

    def add_wire(self, interface: str, address: str, neighbour: str) -> Wire:
        """Another interface with its address/length, and a static neighbour behind it."""
        wire = Wire(self.outside, self.namespace, interface)
        self.stack.enter_context(closing(wire))
        self.namespace.run("ip", "addr", "add", address, "dev", interface)
        self.add_neighbour(neighbour, wire)
        return wire

    def add_tun(self, interface: str, address: str) -> Tun:
        tun = Tun(self.namespace, interface)
        self.stack.enter_context(closing(tun))
        self.namespace.run("ip", "addr", "add", address, "dev", interface)
        return tun

    def add_neighbour(self, address: str, wire: Wire, mac: str | None = None) -> None:
        self.namespace.run(
            "ip",
            "neigh",
            "replace",
            address,
            "lladdr",
            mac or wire.mac,
            "dev",
            wire.interface,
            "nud",
            "permanent",
        )


@contextmanager
def firewall(*, masquerade: bool = True) -> Iterator[Firewall]:
    """LAN 10.10.10.1/24 with UCM, WAN 198.51.100.2/24 with a default gateway, forwarding on."""
    with namespace("fw") as inside, namespace("out") as outside, ExitStack() as stack:
        lan = stack.enter_context(closing(Wire(outside, inside, "lan")))
        wan = stack.enter_context(closing(Wire(outside, inside, "wan")))
        made = Firewall(inside, outside, lan, wan, stack)
        inside.run("ip", "addr", "add", "10.10.10.1/24", "dev", "lan")
        inside.run("ip", "addr", "add", f"{PUBLIC}/24", "dev", "wan")
        made.add_neighbour(UCM, lan)
        made.add_neighbour(GATEWAY, wan)
        inside.run("ip", "route", "add", "default", "via", GATEWAY)
        inside.sysctl("net.ipv4.ip_forward", 1)
        if masquerade:
            inside.nft(MASQUERADE)
        yield made
