"""What the settings make of the programs is loaded by this kernel, in each combination of two.

A setting changes what is compiled, so what the compiler makes of one pair of them another kernel's
verifier may refuse.
"""

from ipaddress import IPv4Address

import pytest

from moh_ebpf.attach import compiler
from moh_ebpf.attach.plan import Plan
from moh_ebpf.kernel import interfaces
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.registry.record import Role
from moh_ebpf.settings import MOST_ADDRESSES, MOST_INTERFACES, MOST_SIP_PORTS, from_values
from tests.packets.bench import bench
from tests.support.firewall import Firewall

SETTINGS: dict[str, tuple[object, object]] = {
    "quality": (True, False),
    "flip_hold": (False, True),
    "patience": ("3s", "never"),
    "timeout": ("1s", "30m"),
    "provider": ([], ["203.0.113.0/24"]),
    "lan": (["lan"], []),
}
# Each two of the seven columns have all four pairs: an orthogonal array, L8.
ROWS = [tuple(bin(row & column).count("1") % 2 for column in range(1, 8)) for row in range(8)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "".join(map(str, row)))
def test_each_pair_of_settings(
    shared_firewall: Firewall, monkeypatch: pytest.MonkeyPatch, row: tuple[int, ...]
) -> None:
    *choices, searches = row
    if searches:
        monkeypatch.setattr(interfaces, "link_header_of", lambda link, links: None)
    values = {
        name: both[choice] for (name, both), choice in zip(SETTINGS.items(), choices, strict=True)
    }
    with bench(shared_firewall, **values) as programs:
        assert len(programs.programs) == 3


def test_the_rows_have_each_pair() -> None:
    for one in range(7):
        for other in range(one):
            assert {(row[one], row[other]) for row in ROWS} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("flip_hold", [False, True])
def test_every_list_at_its_limit(flip_hold: bool) -> None:
    """The verifier may follow what comes after a list once for each of it, and give up after a
    million instructions; so the programs must not let it know which of the list it was."""
    links = [
        Interface(1000 + 37 * n, f"if{n}", (14, None, 0)[n % 3], (), None)
        for n in range(2 * MOST_INTERFACES)
    ]
    wan, lan = links[:MOST_INTERFACES], links[MOST_INTERFACES:]
    addresses = [str(IPv4Address("198.51.0.1") + n) for n in range(2 * MOST_ADDRESSES)]
    settings = from_values(
        {
            "wan": [each.name for each in wan],
            "lan": [each.name for each in lan],
            "ucm": addresses[:MOST_ADDRESSES],
            "public": addresses[MOST_ADDRESSES:],
            "provider": ["203.0.113.0/24"],
            "timeout": "30m",
            "sip_ports": list(range(5060, 5060 + MOST_SIP_PORTS)),
            "flip_hold": flip_hold,
            "sip_from": ["203.0.113.0/24"] if flip_hold else [],
        }
    )
    loaded = compiler.load(Plan(settings, wan, lan), settings_size=4096, adopt={})
    assert len(loaded.programs) == len(Role)
    loaded.close()
