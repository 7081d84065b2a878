"""The examples of docs/operations.md, run as they stand but for the interfaces' names."""

import re
import tomllib
from pathlib import Path

import pytest

from moh_ebpf.settings import from_values
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
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
