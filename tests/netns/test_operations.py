"""The examples of docs/operations.md, run as they stand but for the interfaces' names."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moh_ebpf.settings import from_values
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.waiting import until
from tests.support.wire import flow, udp

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
CONFIGS = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
CALL, HOLD = f"{PUBLIC}:24600", f"{PUBLIC}:4000"


def example(title: str) -> str:
    """The shell commands below a heading."""
    (commands,) = re.findall(rf"### {title}\n.*?```sh\n(.*?)```", PAGE, re.S)[:1]
    return commands.replace("eth0", "lan").replace("eth1", "wan")


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_are_right(config: str) -> None:
    assert from_values(tomllib.loads(config)).wan


def test_iptables_example_carries_call_and_hold() -> None:
    with firewall(masquerade=False) as fw:
        fw.namespace.run("sh", "-ec", example("iptables"))
        fw.attach("--timeout", "60s")
        assert_call_and_hold(fw)


def test_firewalld_example_carries_call_and_hold(tmp_path: Path) -> None:
    """By Debian's firewalld, whose reload leaves what is attached alone."""
    with firewall(masquerade=False) as fw, firewalld(fw, tmp_path) as bus:
        fw.namespace.run("sh", "-ec", example("firewalld"), env=bus)
        fw.attach("--timeout", "60s")
        assert_call_and_hold(fw)
        programs = program_ids(fw)
        fw.namespace.run("firewall-cmd", "--reload", env=bus)
        assert program_ids(fw) == programs
        fw.lan.send(udp(f"{UCM}:29376", PROVIDER))
        assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER)]


def program_ids(fw: Firewall) -> list[int]:
    return [each["id"] for each in json.loads(fw.moh("status", "--json").stdout)["programs"]]


# What firewalld writes, and the modules it would load, are its own mount namespace's.
FIREWALLD = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mount --bind "$1" /etc/firewalld
mount --bind /bin/true /bin/kmod
exec firewalld --nofork --nopid
"""
BUS = """
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=PATH</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/> <allow receive_sender="*"/> <allow own="*"/>
  </policy>
</busconfig>
"""


@contextmanager
def firewalld(fw: Firewall, directory: Path) -> Iterator[dict[str, str]]:
    """The daemon with its config as it is shipped, on a bus of its own; the environment in which
    firewall-cmd finds it."""
    assert shutil.which("firewalld"), "scripts/setup --dev installs it"
    shutil.copytree("/etc/firewalld", directory / "etc")
    (directory / "bus.conf").write_text(BUS.replace("PATH", str(directory / "bus")).strip())
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={directory / 'bus'}"}
    bus = ["dbus-daemon", f"--config-file={directory / 'bus.conf'}", "--nofork"]
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    daemon = [*own, "sh", "-ec", FIREWALLD, "sh", str(directory / "etc")]

    def answers() -> bool:
        said = fw.namespace.run("firewall-cmd", "--state", env=environment, check=False)
        return said.stdout == "running\n"

    with (directory / "log").open("w") as log, fw.namespace.entered():
        processes = [subprocess.Popen(bus, stdout=log, stderr=log)]
        try:
            until("the bus listens", (directory / "bus").exists)
            processes.append(subprocess.Popen(daemon, stdout=log, stderr=log, env=environment))
            until("firewalld answers", answers)
            yield environment
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


def assert_call_and_hold(fw: Firewall) -> None:
    """A two-way call leaves by the rules' NAT with its port, also after inbound RTP that came
    first; its hold by ours."""
    fw.wan.send(udp(PROVIDER, CALL))
    assert fw.wan.sent() == []
    fw.lan.send(udp(f"{UCM}:24600", PROVIDER))
    assert [flow(each) for each in fw.wan.sent()] == [(CALL, PROVIDER)]
    fw.wan.send(udp(PROVIDER, CALL))
    assert [flow(each) for each in fw.lan.sent()] == [(PROVIDER, f"{UCM}:24600")]
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(f"{UCM}:29376", PROVIDER))
    assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER)]
