"""Interfaces by their altnames (ip-link(8), property): wherever a name is taken."""

import json
from pathlib import Path

import pytest

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.service import service
from tests.support.wire import flow, udp

WAN, LAN = "internet-by-" + "w" * 115, "enx0123456789abcdef"
HOLD = f"{PUBLIC}:4000"


@pytest.fixture
def named(fw: Firewall) -> Firewall:
    for name, altname in (("wan", WAN), ("lan", LAN), ("wan", "wan-too")):
        fw.namespace.run("ip", "link", "property", "add", "dev", name, "altname", altname)
    return fw


def test_attach_and_doctor(named: Firewall) -> None:
    options = ("--wan", WAN, "wan-too", "--lan", LAN, "--ucm", UCM)
    named.moh("attach", *options)
    named.wan.send(udp(PROVIDER, HOLD))
    named.lan.send(udp(f"{UCM}:24576", PROVIDER))
    assert [flow(each) for each in named.wan.sent()] == [(HOLD, PROVIDER)]
    shown = json.loads(named.moh("status", "--json").stdout)
    assert (shown["settings"]["wan"], shown["settings"]["lan"]) == (["wan"], ["lan"])
    assert len(shown["programs"]) == 3
    by_name = ("--wan", "wan", "--lan", "lan", "--ucm", UCM)
    said = [named.moh("doctor", "--for", "0s", *each, check=False) for each in (options, by_name)]
    assert said[0].stdout == said[1].stdout


def test_the_service(named: Firewall, tmp_path: Path) -> None:
    config = f'wan = ["{WAN}"]\nlan = ["{LAN}"]\nucm = ["{UCM}"]\ntimeout = "60s"\n'
    with service(named.namespace, tmp_path, config) as run:
        assert "wan wan, lan lan" in run.wait_for_line("attached (nothing was attached)")
        run.wait_for_word("READY")
        named.namespace.run("tc", "filter", "del", "dev", "wan", "ingress", "pref", "4000")
        run.wait_for_line("put back (somebody had removed learn on wan)")
        assert run.stop() == 0


def test_errors_name_interfaces_once(named: Firewall) -> None:
    done = named.moh("attach", "--wan", "nowhere", "--ucm", UCM, check=False)
    assert done.returncode == 2
    assert "there are lo, lan, wan\n" in done.stderr
    done = named.moh("attach", "--wan", WAN, "--lan", "wan", "--ucm", UCM, check=False)
    assert done.returncode == 2
    assert "wan is given as --wan and as --lan" in done.stderr
