"""The rows of maps.py: those of the C, and what an attach goes on with."""

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from moh_ebpf import maps
from moh_ebpf.maps import Change
from moh_ebpf.settings import Settings

ROOT = Path(__file__).parents[2]
C = (ROOT / "bpf/maps.c").read_text()
PLAIN = Settings(wan=("wan",), ucm=(IPv4Address("10.10.10.10"),))
WITH_ALL = replace(
    PLAIN,
    flip_hold=True,
    provider=(IPv4Network("203.0.113.0/24"),),
    sip_from=(IPv4Network("203.0.113.0/24"),),
)
ALWAYS = {"counters", "events", "others", "signalled"}


def adopted(
    old: Settings, new: Settings, *, same_wans: bool = True, same_room: bool = True
) -> set[str]:
    change = Change(old, new, same_wans, same_room)
    return {row.name for row in maps.of(new) if row.is_adopted(change)}


def test_they_are_those_of_the_c() -> None:
    declared = re.findall(r"^BPF_(\w+)\(([^;]*)\);$", C, re.MULTILINE)
    tables = ("TABLE", "F_TABLE")
    names = [re.split(r",\s+", words)[3 if kind in tables else 0] for kind, words in declared]
    assert sorted(names) == sorted(maps.ROWS)


def test_each_exists_where_its_settings_ask_for_it() -> None:
    plain = {row.name for row in maps.of(PLAIN)}
    everything = {row.name for row in maps.of(WITH_ALL)}
    assert everything == set(maps.ROWS) - {"unborn", "sip_text"}
    assert everything - plain == {
        *("dialogs", "holding", "segments", "segments_back", "cut_lines", "cut_lines_back"),
        *("providers", "sip_networks"),
    }
    assert "reports" not in maps.layouts(replace(PLAIN, rtcp_timeout=0.0))
    assert "sip_networks" not in maps.layouts(replace(WITH_ALL, flip_hold=False))


@pytest.mark.parametrize(
    ("new", "also", "lost"),
    [
        (PLAIN, {}, set()),
        (replace(PLAIN, timeout=9.0, port=5000), {}, set()),
        (replace(PLAIN, patience=9.0), {}, {"waiting_for"}),
        (PLAIN, {"same_room": False}, {"peers", "reports"}),
        (PLAIN, {"same_wans": False}, {"peers", "reports", "wans"}),
    ],
)
def test_an_attach_goes_on_with(new: Settings, also: dict[str, bool], lost: set[str]) -> None:
    all_of_them = {*ALWAYS, "waiting_for", "wans", "peers", "reports"}
    assert adopted(PLAIN, new, **also) == all_of_them - lost


def test_what_is_known_of_sip_is_kept() -> None:
    gone_on = adopted(WITH_ALL, WITH_ALL)
    assert {"dialogs", "holding"} <= gone_on
    assert not {"providers", "sip_networks", "settings"} & gone_on


def test_a_layout_is_that_of_its_parts() -> None:
    peers = maps.ROWS["peers"]
    assert replace(peers, parts=(*peers.parts, "more")).layout != peers.layout
    assert replace(peers, is_scratch=True).layout == peers.layout


def test_one_module_names_maps() -> None:
    """The others ask registry/contents.py; the rows are in maps.py."""
    names = "|".join(maps.ROWS)
    naming = re.compile(rf'\b(?:maps|opened)\[|"(?:{names})" (?:not )?in ')
    files = (ROOT / "moh_ebpf").rglob("*.py")
    assert {each.name for each in files if naming.search(each.read_text())} == {"contents.py"}
