"""On which side of the firewall a packet was seen (service/sides.py)."""

import socket
from ipaddress import IPv4Address
from unittest.mock import Mock

import pytest

from moh_ebpf.kernel.interfaces import entrances
from moh_ebpf.service import sides as service
from moh_ebpf.service.sides import Side, Sides
from tests.support.firewall import UCM, Firewall


@pytest.fixture(autouse=True)
def _asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sides, "_SECONDS", 0.0)


def sides(*, has_lan: bool = True) -> Sides:
    wan, lan = map(socket.if_nametoindex, ("wan", "lan"))
    return Sides([wan], [lan] if has_lan else [], [IPv4Address(UCM)])


def test_interfaces(fw: Firewall) -> None:
    """Those that are named, and the macvlans on them, which may come later; no others."""
    run = fw.namespace.run
    run("ip", "link", "add", "other", "type", "veth", "peer", "name", "rehto")
    with fw.namespace.entered():
        asked = sides()
        assert (asked.of("wan"), asked.of("lan")) == (Side.WAN, Side.LAN)
        assert [asked.of(name) for name in ("vrrp20", "other", "lo")] == [None] * 3
        for name, below in (("vrrp20", "wan"), ("vrrp10", "lan"), ("vrrp30", "other")):
            run("ip", "link", "add", name, "link", below, "type", "macvlan", "mode", "bridge")
        found = [asked.of(name) for name in ("vrrp20", "vrrp10", "vrrp30")]
        assert found == [Side.WAN, Side.LAN, None]
        run("ip", "link", "del", "vrrp20")
        assert asked.of("vrrp20") is None


def test_without_a_lan_the_routes_say_where_ucm_is(fw: Firewall) -> None:
    with fw.namespace.entered():
        asked = sides(has_lan=False)
        assert (asked.of("wan"), asked.of("lan"), asked.has_lan()) == (Side.WAN, Side.LAN, True)
        fw.namespace.run("ip", "route", "add", f"{UCM}/32", "via", "198.51.100.1")
        assert (asked.of("wan"), asked.of("lan"), asked.has_lan()) == (Side.WAN, None, False)
        fw.namespace.run("ip", "route", "replace", "unreachable", f"{UCM}/32")
        assert (asked.of("lan"), asked.has_lan()) == (None, False)


def test_addresses_of_this_machine(fw: Firewall) -> None:
    with fw.namespace.entered():
        asked, address = sides(), socket.inet_aton("10.10.10.7")
        assert asked.is_own(socket.inet_aton("10.10.10.1"))
        assert not asked.is_own(address)
        fw.namespace.run("ip", "addr", "add", "10.10.10.7/32", "dev", "lan")
        assert asked.is_own(address)


def test_it_asks_seldom(fw: Firewall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all that there are, and again for one that is new, though not at once."""
    monkeypatch.setattr(Sides, "_SECONDS", 3600.0)
    monkeypatch.setattr(Sides, "_SECONDS_FOR_NEW", 3600.0)
    asked_for = Mock(side_effect=entrances)
    monkeypatch.setattr(service, "entrances", asked_for)
    with fw.namespace.entered():
        asked = sides()
        for name in ("wan", "lan", "lo", "vrrp20"):
            asked.of(name)
        assert asked_for.call_count == 1
        fw.namespace.run("ip", "link", "add", "vrrp20", "link", "wan", "type", "macvlan")
        assert asked.of("vrrp20") is None
        monkeypatch.setattr(Sides, "_SECONDS_FOR_NEW", 0.0)
        assert asked.of("vrrp20") is Side.WAN
        assert [asked.of(name) for name in ("lo", "wan", "lan")] == [None, Side.WAN, Side.LAN]
        assert asked_for.call_count == 2
