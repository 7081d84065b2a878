"""What the settings make of the programs is loaded by this kernel, in each combination of two.

A setting changes what is compiled, so what the compiler makes of one pair of them another kernel's
verifier may refuse.
"""

import pytest

from moh_ebpf.kernel import interfaces
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
