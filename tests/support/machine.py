"""Vagrant's machines without a hypervisor: a namespace of each kind for each, and its disk.

A machine sees this one's disk, and what it writes there is its own and gone with it. It has the
interfaces that Vagrant gives it: eth0, of Vagrant's own network and the default route, then those
of the Vagrantfile.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.namespace import Namespace, namespace
from tests.systems.roots import MORTAL

CHECKOUT = Path(__file__).parents[2]
DIRECTORY = CHECKOUT / "vagrant"
# As VirtualBox has it: each machine alone with its hypervisor.
HYPERVISOR, MANAGEMENT = "10.0.2.2", "10.0.2.15"

# What is written to these stays in memory; services that run here are not seen, nor asked.
_DISK = """
set -e
mount -t tmpfs -o mode=755 disk /mnt
for directory in /etc /usr /var /opt "$@"; do
    mkdir -p "/mnt/upper$directory" "/mnt/work$directory"
    mount -t overlay disk "$directory" \
        -o "lowerdir=$directory,upperdir=/mnt/upper$directory,workdir=/mnt/work$directory"
done
mount -t tmpfs -o mode=755 run /run
echo ready
exec cat
"""
_ENVIRONMENT = {"SYSTEMD_OFFLINE": "1", "LANG": "C.UTF-8"}


def vagrant(home: Path, *command: str) -> str:
    """What a program of Vagrant's says of the Vagrantfile; its own files are kept in `home`."""
    done = subprocess.run(
        command,
        cwd=DIRECTORY,
        env=os.environ
        | {
            "VAGRANT_HOME": str(home / "home"),
            "VAGRANT_DOTFILE_PATH": str(home / "dot"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def described(home: Path) -> dict[str, dict[str, Any]]:
    """The Vagrantfile's machines, as Vagrant understands it (machines.rb)."""
    script = Path(__file__).with_name("machines.rb")
    return json.loads(vagrant(home, "ruby", str(script), str(DIRECTORY)))


@dataclass(frozen=True)
class Machine:
    namespace: Namespace
    hypervisor: Namespace
    pid: int

    def run(self, command: str) -> str:
        """What a shell's command says there."""
        done = self.attempt(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net"]
        return subprocess.run(
            [*enter, "sh", "-c", command],
            env=os.environ | _ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )


@contextmanager
def machines(descriptions: dict[str, dict[str, Any]]) -> Iterator[dict[str, Machine]]:
    """The machines, switched on, with nothing provisioned."""
    with ExitStack() as stack:
        made = {name: stack.enter_context(_machine(name)) for name in descriptions}
        _wire({made[name].namespace: each["networks"] for name, each in descriptions.items()})
        yield made


@contextmanager
def _machine(name: str) -> Iterator[Machine]:
    with namespace(name) as own, namespace("hyper") as hypervisor:
        _veth(own, "eth0", hypervisor, name)
        _address(own, "eth0", MANAGEMENT)
        _address(hypervisor, name, HYPERVISOR)
        own.run("ip", "route", "add", "default", "via", HYPERVISOR)
        enter = ["ip", "netns", "exec", own.name, *MORTAL, "--mount-proc"]
        with subprocess.Popen(
            [*enter, "sh", "-c", _DISK, "sh", str(CHECKOUT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                yield Machine(own, hypervisor, int(children))
            finally:
                process.kill()


def _wire(networks: dict[Namespace, list[str]]) -> None:
    """A network is a wire: it has two ends. A machine's interfaces are in its networks' order."""
    ends: dict[str, list[tuple[Namespace, int]]] = {}
    for place, names in networks.items():
        for number, name in enumerate(names, 1):
            ends.setdefault(name, []).append((place, number))
    for (left, one), (right, other) in ends.values():
        _veth(left, f"eth{one}", right, f"eth{other}", 10 + one, 10 + other)


def _veth(
    left: Namespace, one: str, right: Namespace, other: str, index: int = 2, far_index: int = 2
) -> None:
    """The indexes are the order in which a machine's kernel found its interfaces."""
    near = ["name", one, "index", str(index)]
    far = ["name", other, "index", str(far_index), "netns", right.name]
    left.run("ip", "link", "add", *near, "type", "veth", "peer", *far)


def _address(place: Namespace, interface: str, address: str) -> None:
    place.run("ip", "address", "add", f"{address}/24", "dev", interface)
    place.run("ip", "link", "set", interface, "up")
