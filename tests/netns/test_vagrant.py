"""vagrant/: what Vagrant makes of the Vagrantfile; its machines, provisioned and played on."""

import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf.lab.topology import INTERFACES, PROVIDER_ENDPOINT, PUBLIC, Host
from tests.support.machine import CHECKOUT, MANAGEMENT, Machine, described, machines, vagrant

CALLER = (PROVIDER_ENDPOINT, 20000)
PACKETS = 25  # half a second of a stream


@pytest.fixture(scope="module")
def descriptions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return described(tmp_path_factory.mktemp("vagrant"))


@pytest.fixture(scope="module")
def standing(descriptions: dict[str, dict[str, Any]]) -> Iterator[dict[str, Machine]]:
    """The machines after `vagrant up`."""
    needs_pip()
    with machines(descriptions) as made:
        for name, machine in made.items():
            provision(machine, descriptions[name])
        yield made


def needs_pip() -> None:
    """A machine's own network leads nowhere here: it can but find installed what it asks for."""
    if not (CHECKOUT / ".venv/bin/moh-ebpf").exists():
        pytest.skip("the machines use pip and .venv, which scripts/setup --packaged does without")


def provision(machine: Machine, description: dict[str, Any], *, again: bool = False) -> None:
    """What Vagrant runs there, in its order: all of it, or what it runs at each start."""
    (checkout,) = description["folders"]
    for each in description["commands"]:
        if each["always"] or not again:
            machine.run(each["command"].replace(checkout, str(CHECKOUT)))


def sources(machine: Machine, count: int) -> set[tuple[str, int]]:
    """Where the caller's next packets come from, as they arrive on the provider's wire."""
    with machine.namespace.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    found: list[tuple[str, int]] = []
    with wire:
        wire.settimeout(10)
        wire.bind(("eth1", 0x0800))
        while len(found) < count:
            packet = wire.recv(2048)
            source, to = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
            port, to_port = struct.unpack("!HH", packet[20:24])
            if packet[9] == socket.IPPROTO_UDP and (to, to_port) == CALLER:
                found.append((source, port))
    return set(found)


def port_told(said: str) -> int:
    return int(re.findall(r"port (?:is )?(\d{5})", said)[0])


def test_vagrant_finds_the_vagrantfile_valid(tmp_path: Path) -> None:
    """Without a provider, for there is no hypervisor here."""
    said = vagrant(tmp_path, "vagrant", "validate", "--ignore-provider")
    assert "validated successfully" in said


def test_machines_are_wired_as_the_lab(descriptions: dict[str, dict[str, Any]]) -> None:
    wires = {name: [*each["networks"]] for name, each in descriptions.items()}
    assert wires == {role: [f"moh-{wire}" for wire in INTERFACES[role]] for role in Host}
    assert all(each["networks"] == each["libvirt_networks"] for each in descriptions.values())
    assert {each["box"] for each in descriptions.values()} == {"debian/bookworm64"}
    assert {tuple(each["folders"].values()) for each in descriptions.values()} == {("..",)}


def test_the_call_is_played_on_the_machines(standing: dict[str, Machine]) -> None:
    ucm, firewall, provider = (standing[role] for role in Host)
    both = "caller hears: agent. At UCM's end one hears: caller."
    said = ucm.run("moh-ebpf lab resume")
    assert both in said
    assert sources(provider, PACKETS) == {(PUBLIC, port_told(said))}

    said = ucm.run("moh-ebpf lab hold")
    assert "caller hears: dead air" in said

    firewall.run("moh-ebpf attach --config /etc/moh-ebpf.toml")
    for _ in range(2):  # the second hold is the one that conntrack cannot do
        assert "caller hears: hold music" in ucm.run("moh-ebpf lab hold")
        assert sources(provider, PACKETS) == {(PUBLIC, 4000)}
    said = ucm.run("moh-ebpf lab resume")
    assert both in said
    assert sources(provider, PACKETS) == {(PUBLIC, port_told(said))}
    said = ucm.run("moh-ebpf lab voicemail")
    assert "caller hears: greeting. At UCM's end one hears: caller." in said
    firewall.run("moh-ebpf detach")


@pytest.mark.parametrize("role", Host)
def test_provisioning_again_changes_nothing(
    role: Host, standing: dict[str, Machine], descriptions: dict[str, dict[str, Any]]
) -> None:
    """Nor does it end a call: the endpoints' sockets are those from before."""
    machine = standing[role]
    asked = """
        ip -brief address; ip route; nft --stateless list ruleset
        cat /proc/sys/net/ipv4/ip_forward
        ls -i /etc/moh-ebpf.toml /run/moh-lab-lab 2>&1 || true
    """
    before = machine.run(asked)
    provision(machine, descriptions[role], again=True)
    assert machine.run(asked) == before


@pytest.mark.parametrize("role", Host)
def test_the_hypervisor_gets_in_as_before(role: Host, standing: dict[str, Machine]) -> None:
    """`vagrant ssh` is a new connection, from the network that is not the lab's."""
    machine = standing[role]
    with machine.namespace.entered():
        server = socket.create_server((MANAGEMENT, 22))
    with machine.hypervisor.entered():
        client = socket.socket()
    with server, client:
        client.settimeout(10)
        client.connect((MANAGEMENT, 22))


def test_the_call_tells_when_the_far_end_is_not_there(
    descriptions: dict[str, dict[str, Any]],
) -> None:
    needs_pip()
    with machines(descriptions) as made:
        provision(made["ucm"], descriptions["ucm"])
        done = made["ucm"].attempt("moh-ebpf lab resume")
        assert done.returncode == 1
        assert re.fullmatch("moh-ebpf: RTP endpoint provider(:| does not answer).*\n", done.stderr)


def test_a_machine_with_other_interfaces_is_refused(
    descriptions: dict[str, dict[str, Any]],
) -> None:
    needs_pip()
    with machines(descriptions) as made:
        provider = made["provider"]
        before = provider.run("ip address; nft list ruleset")
        done = provider.attempt(f"{CHECKOUT}/vagrant/provision firewall")
        assert done.returncode == 1
        assert done.stderr == (
            "machine: firewall needs lan and wan beside eth0, of the default route;"
            " there is: eth1\n"
        )
        assert provider.run("ip address; nft list ruleset") == before
