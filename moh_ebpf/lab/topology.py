"""The lab's three network namespaces, their addresses and their firewalls' rules.

        UCM               firewall                           provider
    10.10.10.10 ── 10.10.10.1 │ 198.51.100.2 ── 198.51.100.1, and its endpoint 203.0.113.10
       eth0              lan     wan               eth0                 lo

The veth pairs are made inside the namespaces: the machine's own sees nothing of them. The same
hosts can be machines of their own (machine.py).
"""

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from string import Template

from moh_ebpf.errors import MohError, UsageError

UCM = "10.10.10.10"
PUBLIC = "198.51.100.2"
PROVIDER_ENDPOINT = "203.0.113.10"

NAMESPACES = Path("/run/netns")  # where ip(8) keeps them
PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}  # program: Debian package
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # which end a lab, and leave nothing of it
RUNNING = 60.0  # seconds for a command to end; the longest, attach, takes one or two
STARTING = 30.0  # seconds: GStreamer's first run on a machine looks through all of its plugins
STOPPING = 5.0  # seconds for killed processes to be gone


class Host(StrEnum):
    UCM = "ucm"
    FIREWALL = "firewall"
    PROVIDER = "provider"


# What each host is wired to, and what the interface is called in the lab.
INTERFACES = {
    Host.UCM: {"lan": "eth0"},
    Host.FIREWALL: {"lan": "lan", "wan": "wan"},
    Host.PROVIDER: {"wan": "eth0"},
}

# The lab's wires, as ip(8) commands of the firewall's namespace.
WIRES = """
    link add lan type veth peer name eth0 netns {ucm}
    link add wan type veth peer name eth0 netns {provider}
"""

# ip(8) commands of each host, run in this order; again, they change nothing.
ADDRESSES = {
    Host.FIREWALL: """
        link set lo up
        address replace 10.10.10.1/24 dev $lan
        address replace 198.51.100.2/24 dev $wan
        link set $lan up
        link set $wan up
        route replace 203.0.113.0/24 via 198.51.100.1
    """,
    Host.UCM: """
        link set lo up
        address replace 10.10.10.10/24 dev $lan
        link set $lan up
        route replace 198.51.100.0/24 via 10.10.10.1
        route replace 203.0.113.0/24 via 10.10.10.1
    """,
    Host.PROVIDER: """
        link set lo up
        address replace 203.0.113.10/32 dev lo
        address replace 198.51.100.1/24 dev $wan
        link set $wan up
    """,
}

# In the lab all other addresses are behind the WAN, too; a machine has a default route of its own.
GATEWAYS = {Host.UCM: "10.10.10.1", Host.FIREWALL: "198.51.100.1"}

# nft(8) rules, in one table that bears the role's name.
RULES = {
    # A firewall as one meets it: forwards what the LAN began, and masquerades it.
    Host.FIREWALL: """
        table ip firewall {
            chain input {
                type filter hook input priority filter; policy drop;
                ct state established,related accept
                iifname "lo" accept
                ip protocol icmp accept
            }
            chain forward {
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname "$lan" oifname "$wan" accept
            }
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oifname "$wan" masquerade
            }
        }
    """,
    # The provider hears only whom it speaks to: RTP from any other port is dropped.
    Host.PROVIDER: """
        table ip provider {
            chain input {
                type filter hook input priority filter; policy drop;
                ct state established accept
            }
        }
    """,
}


class LabExistsError(MohError):
    """The name is taken, and what bears it is not ours to touch."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"lab {name} exists already: try `moh-ebpf lab down --name {name}`, or another --name"
        )


class Lab:
    """One lab; its name is part of its namespaces' names, so that several can stand at once."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
            raise UsageError(f"lab name {name!r}: use up to 32 small letters, digits and hyphens")
        self.name = name
        self.directory = Path(f"/run/moh-lab-{name}")  # the endpoints' sockets and logs
        self._children: list[subprocess.Popen[str]] = []

    def namespace(self, role: Host) -> str:
        return f"moh-{self.name}-{'fw' if role is Host.FIREWALL else role}"

    def control(self, role: Host) -> Path:
        """The socket on which a role's endpoint takes requests (endpoint.py)."""
        return self.directory / f"{role}.sock"

    @property
    def exists(self) -> bool:
        return self.directory.exists() or bool(self._standing())

    def build(self) -> None:
        """Make the directory, which claims the name, then the namespaces, then what is in them."""
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            raise LabExistsError(self.name) from None
        for role in Host:
            run(["ip", "netns", "add", self.namespace(role)])
        names = {role.value: self.namespace(role) for role in Host}
        self.run(Host.FIREWALL, ["ip", "-batch", "-"], WIRES.format(**names))
        for role in ADDRESSES:
            self.configure(role, INTERFACES[role])
        for role, gateway in GATEWAYS.items():
            self.run(role, ["ip", "route", "add", "default", "via", gateway])

    def configure(self, role: Host, interfaces: Mapping[str, str], more_rules: str = "") -> None:
        """Give a host its addresses, routes and rules; again, it is as it was after the first time.

        `interfaces` are their names by what they are wired to (INTERFACES). `more_rules` come into
        force with the host's own, at once.
        """
        self.run(role, ["ip", "-batch", "-"], Template(ADDRESSES[role]).substitute(interfaces))
        if role in RULES:
            rules = Template(RULES[role]).substitute(interfaces)
            afresh = f"table ip {role}\ndelete table ip {role}\n"
            self.run(role, ["nft", "-f", "-"], afresh + rules + more_rules)
        if role is Host.FIREWALL:
            self.run(role, ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])

    def destroy(self) -> None:
        """Kill what runs in this lab's namespaces, then remove them and the directory."""
        left = self._standing()
        self._kill(left)
        failures = []
        for namespace in left:
            try:
                run(["ip", "netns", "delete", namespace])
            except MohError as error:
                failures.append(str(error))
        shutil.rmtree(self.directory, ignore_errors=True)
        if failures:
            raise MohError("\n".join(failures))

    def command(self, role: Host, command: Sequence[str]) -> list[str]:
        """What runs a command in a role's namespace."""
        return ["ip", "netns", "exec", self.namespace(role), *command]

    def run(self, role: Host, command: Sequence[str], stdin: str = "") -> str:
        """The output of a command in a role's namespace; MohError if it fails."""
        return run(self.command(role, command), stdin)

    def spawn(self, role: Host, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start what stays in a role's namespace; it outlives this process, not the lab."""
        with open(self.directory / f"{role}.log", "w") as log, _signals_held():
            child = subprocess.Popen(
                self.command(role, command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )
            self._children.append(child)
        return child

    def wait_ready(self, role: Host, child: subprocess.Popen[str]) -> None:
        """Until a spawned program says "ready", its first line; MohError if it does not."""
        assert child.stdout
        with child.stdout:
            readable, _, _ = select.select([child.stdout], [], [], STARTING)
            said = child.stdout.readline().strip() if readable else f"silent for {STARTING:.0f} s"
        if said != "ready":
            log = (self.directory / f"{role}.log").read_text().strip().splitlines()
            reason = said or (log[-1] if log else "it ended at once")
            raise MohError(f"lab {self.name}: the {role}'s RTP endpoint does not start: {reason}")

    def _standing(self) -> list[str]:
        """Those of this lab's namespaces that there are."""
        return [name for name in map(self.namespace, Host) if (NAMESPACES / name).exists()]

    def _kill(self, namespaces: list[str]) -> None:
        for child in self._children:  # one just started is not in its namespace yet
            child.kill()
            child.wait(STOPPING)
        deadline = time.monotonic() + STOPPING
        while pids := [pid for name in namespaces for pid in _processes(name)]:
            if time.monotonic() > deadline:
                raise MohError(f"lab {self.name}: processes {pids} do not end, though killed")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def run(command: Sequence[str], stdin: str = "") -> str:
    """The output of a program that ends by itself; MohError with its own words if it fails."""
    try:
        with _signals_held():
            done = subprocess.run(
                command,
                input=stdin,
                text=True,
                capture_output=True,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
                timeout=RUNNING,
            )
    except subprocess.TimeoutExpired:
        raise MohError(f"{' '.join(command)}: no end within {RUNNING:.0f} s") from None
    if done.returncode:
        words = done.stderr.strip() or done.stdout.strip() or "no message"
        raise MohError(f"{' '.join(command)}: exit status {done.returncode}: {words}")
    return done.stdout


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keep signals waiting: what is half started would escape the clean-up that they cause."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def require() -> None:
    """Before anything is made: root, and the programs the lab is built with."""
    if os.geteuid() != 0:
        raise MohError("the lab is made of network namespaces, which takes root: try sudo")
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            raise MohError(
                f"{program} is not in PATH ({os.environ.get('PATH', '')});"
                f" try: apt install {package}, or add /usr/sbin to PATH"
            )


def _processes(namespace: str) -> Iterator[int]:
    """The processes in a namespace, ourselves excepted (`lab down` may be called from within)."""
    pids = map(int, run(["ip", "netns", "pids", namespace]).split())
    return (pid for pid in pids if pid != os.getpid())
