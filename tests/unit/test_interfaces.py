"""What a link's kind says of where IP begins, for kinds that this machine's kernel may lack."""

from collections.abc import Mapping
from typing import Any

import pytest

from moh_ebpf.kernel import interfaces

ETHERNET, PPP, TUNNEL, GRE, NONE = 1, 512, 768, 778, 65534
REORDERED, WITH_GVRP = {"flags": 1, "mask": 0xFFFFFFFF}, {"flags": 2, "mask": 0xFFFFFFFF}


class Link(dict[str, Any]):
    """As pyroute2 has a message: fields are items, attributes are asked for."""

    def __init__(self, index: int, link_type: int = ETHERNET, kind: str | None = None, **more: Any):
        super().__init__(index=index, ifi_type=link_type)
        own = Attributes(
            (f"IFLA_{name}", each) for name, each in more.items() if name.startswith(("VLAN", "IP"))
        )
        info = Attributes(IFLA_INFO_KIND=kind, IFLA_INFO_DATA=own or None)
        self._attributes: Mapping[str, Any] = {
            "IFLA_LINKINFO": info if kind else None,
            "IFLA_LINK": more.get("LINK"),
            "IFLA_LINK_NETNSID": more.get("LINK_NETNSID"),
            "IFLA_MASTER": more.get("MASTER"),
            "IFLA_IFNAME": f"if{index}",
        }

    def get_attr(self, name: str) -> Any:
        return self._attributes.get(name)


class Attributes(dict[str, Any]):
    def get_attr(self, name: str) -> Any:
        return self.get(name)


ETH = Link(1)
VLAN = Link(2, kind="vlan", LINK=1, VLAN_FLAGS=REORDERED)
# The kernel leaves out flags of which none is set.
UNORDERED = Link(3, kind="vlan", LINK=1, VLAN_ID=7)


@pytest.mark.parametrize(
    ("link", "others", "link_header"),
    [
        (ETH, [], 14),
        (VLAN, [ETH], 14),
        (UNORDERED, [ETH], None),
        (Link(4, kind="vlan", LINK=1, VLAN_FLAGS=WITH_GVRP), [ETH], None),
        (Link(4, kind="vlan", LINK=3, VLAN_FLAGS=REORDERED), [ETH, UNORDERED], None),
        (Link(4, kind="bond"), [Link(3, kind="vlan", VLAN_ID=7, MASTER=4)], None),
        (Link(4, kind="ipvlan", LINK=3, IPVLAN_MODE=1), [UNORDERED], None),
        # The index of an interface in another namespace.
        (Link(4, kind="macvlan", LINK=3, LINK_NETNSID=0), [UNORDERED], 14),
        (Link(4, kind="macvlan", LINK=3), [UNORDERED], None),
        (Link(4, kind="bridge"), [Link(3, kind="vlan", VLAN_ID=7, MASTER=4)], 14),
        # Both ends here: each is the other's link.
        (Link(4, kind="veth", LINK=5), [Link(5, kind="veth", LINK=4)], 14),
        (Link(4, PPP, "ppp"), [], 0),
        (Link(4, NONE, "tun"), [], 0),
        (Link(4, NONE, "wireguard"), [], 0),
        (Link(4, NONE, "xfrm"), [], None),
        (Link(4, NONE), [], None),
        (Link(4, TUNNEL, "vti"), [], None),
        (Link(4, TUNNEL, "ipip"), [], None),
        (Link(4, GRE, "gre"), [], None),
    ],
)
def test_where_ip_begins(link: Link, others: list[Link], link_header: int | None) -> None:
    assert interfaces.link_header_of(link, [*others, link]) == link_header


@pytest.mark.parametrize(("mode", "is_blind"), [(0, False), (1, False), (2, True)])
def test_an_ipvlan_is_blind_in_mode_l3s_alone(mode: int, is_blind: bool) -> None:
    link = Link(4, kind="ipvlan", LINK=1, IPVLAN_MODE=mode)
    assert bool(interfaces.why_blind(link, [ETH, link], "--wan")) is is_blind


def test_an_ipvlan_is_no_lan() -> None:
    """It is given only what is sent to its own addresses."""
    link = Link(4, kind="ipvlan", LINK=1, IPVLAN_MODE=0)
    said = interfaces.why_blind(link, [ETH, link], "--lan")
    assert said is not None
    assert "interface below" in said[1]


def test_a_vrfs_ports_are_named_in_its_place() -> None:
    vrf = Link(4, kind="vrf")
    said = interfaces.why_blind(vrf, [ETH, Link(5, MASTER=4), Link(6, MASTER=4), vrf], "--wan")
    assert said is not None
    assert said[1] == "those that are meant, of if5, if6"
