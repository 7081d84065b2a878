"""A host of the lab that is a machine of its own (vagrant/): same addresses, rules and endpoint.

`python -m moh_ebpf.lab.machine ROLE` sets up this machine; again, it changes nothing. The lab's
interfaces are those beside the one of the default route, in the kernel's order: lan before wan.

UCM's machine plays the call with the verbs of a standing lab, `moh-ebpf lab hold` and so on.
The far endpoint is steered as SIP would do it, by TCP through the firewall:

    UCM's machine                                        provider's machine
    ucm.sock ── endpoint
    provider.sock ── socat ── firewall ── 203.0.113.10:7000, socat ── provider.sock ── endpoint
"""

import json
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moh_ebpf.errors import ExitStatus, MohError, UsageError
from moh_ebpf.lab.call import spawn_endpoint
from moh_ebpf.lab.topology import (
    INTERFACES,
    PROVIDER_ENDPOINT,
    STARTING,
    UCM,
    Host,
    Lab,
    require,
    run,
)

LAB = "lab"  # the name that the verbs of `moh-ebpf lab` have by default
CONTROL = (PROVIDER_ENDPOINT, 7000)  # where the provider's endpoint takes requests by TCP
CONFIG = Path("/etc/moh-ebpf.toml")

Address = str | tuple[str, int]  # of a Unix socket, or of TCP


class Machine(Lab):
    """The lab, as seen by the one of its hosts that this machine is."""

    def __init__(self, role: Host) -> None:
        super().__init__(LAB)
        self.role = role

    def command(self, role: Host, command: Sequence[str]) -> list[str]:
        """Whatever the role, it is done here."""
        return list(command)

    def set_up(self) -> None:
        """Addresses, routes and rules; then the firewall's config, or an end of the call."""
        management, interfaces = find_interfaces(self.role)
        self.configure(self.role, interfaces, self._more_rules(management))
        if self.role is Host.FIREWALL:
            write_config(interfaces)
            return
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self._serve()

    def _more_rules(self, management: str) -> str:
        """Whoever logs in by the default route's interface is not locked out."""
        rules = f'add rule ip {self.role} input iifname "{management}" accept\n'
        if self.role is Host.PROVIDER:
            rules += f"add rule ip {self.role} input tcp dport {CONTROL[1]} accept\n"
        return rules

    def _serve(self) -> None:
        """The endpoint, and the way to it or to the other one; what answers already, stays."""
        control = self.control(self.role)
        if not _answers(str(control)):
            control.unlink(missing_ok=True)
            self.wait_ready(self.role, spawn_endpoint(self, self.role))
        host, port = CONTROL
        if self.role is Host.PROVIDER:
            there = f"TCP-LISTEN:{port},bind={host},reuseaddr,fork"
            self._relay(Host.UCM, CONTROL, there, f"UNIX-CONNECT:{control}")
        else:
            far = self.control(Host.PROVIDER)
            here = f"UNIX-LISTEN:{far},unlink-early,fork"
            self._relay(Host.PROVIDER, str(far), here, f"TCP:{host}:{port},connect-timeout=5")

    def _relay(self, towards: Host, address: Address, listen: str, connect: str) -> None:
        """Pass on what comes to an address, until the machine goes down."""
        if _answers(address):
            return
        if not shutil.which("socat"):
            raise MohError("socat is not in PATH; try: vagrant/provision install")
        child = self.spawn(towards, ["socat", listen, connect])
        deadline = time.monotonic() + STARTING
        while not _answers(address):
            if child.poll() is not None or time.monotonic() > deadline:
                log = self.directory / f"{towards}.log"
                raise MohError(f"socat does not start: {log.read_text().strip() or 'no message'}")
            time.sleep(0.05)


def find_interfaces(role: Host) -> tuple[str, dict[str, str]]:
    """The interface of the default route, and the others by what they are wired to."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "default"]))
    if not routes:
        raise MohError("no default route tells the interface that is not the lab's: see `ip route`")
    management: str = routes[0]["dev"]
    others = [name for _, name in sorted(socket.if_nameindex()) if name not in ("lo", management)]
    wanted = INTERFACES[role]
    if len(others) != len(wanted):
        raise MohError(
            f"{role} needs {' and '.join(wanted)} beside {management}, of the default route;"
            f" there is: {', '.join(others) or 'nothing'}"
        )
    return management, dict(zip(wanted, others, strict=True))


def write_config(interfaces: dict[str, str]) -> None:
    """The settings of attach; a file that is there is somebody's, and stays."""
    if not CONFIG.exists():
        lan, wan = interfaces["lan"], interfaces["wan"]
        CONFIG.write_text(f'wan = ["{wan}"]\nlan = ["{lan}"]\nucm = ["{UCM}"]\n')


def _answers(address: Address) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as line:
        line.settimeout(STARTING)
        return line.connect_ex(address) == 0


def main() -> int:
    try:
        require()
        if len(sys.argv) != 2 or sys.argv[1] not in list(Host):
            raise UsageError(f"usage: python -m moh_ebpf.lab.machine {'|'.join(Host)}")
        Machine(Host(sys.argv[1])).set_up()
    except MohError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.status
    return ExitStatus.OK


if __name__ == "__main__":
    sys.exit(main())
