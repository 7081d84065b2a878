"""C and Python must agree on every byte they share."""

import ctypes
import itertools
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moh_ebpf import layout
from moh_ebpf.counters import COUNTERS, VALUE
from tests.packets.bench import Bench

SOURCE = (Path(__file__).parents[2] / "bpf/layout.h").read_text()
SIZES = {"u64": 8, "__be32": 4, "__be16": 2, "u8": 1}


def table(programs: Bench, name: str) -> Any:
    return programs.loaded.module[name.encode()]


def fields(structure: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
    return [
        (name, getattr(structure, name).offset, getattr(structure, name).size)
        for name, *_ in structure._fields_
    ]


def test_peer(programs: Bench) -> None:
    leaf = table(programs, "peers").Leaf
    assert ctypes.sizeof(leaf) == layout.PEER.size
    assert fields(leaf) == placed(layout.PEER_FIELDS, layout.PEER)
    assert fields(dict(leaf._fields_)["in_rtp"]) == placed(layout.RTP_FIELDS, layout.RTP)


def placed(names: Sequence[str], packed: struct.Struct) -> list[tuple[str, int, int]]:
    """The fields with their offsets and sizes, by the letters of the Struct's format."""
    letters = re.findall(r"(\d*)([a-zA-Z])", packed.format)
    sizes = [
        size
        for count, letter in letters
        for size in (
            [int(count)] if letter == "s" else [struct.calcsize(f"={letter}")] * int(count or 1)
        )
    ]
    offsets = itertools.accumulate(sizes, initial=0)
    return list(zip(names, offsets, sizes, strict=False))


def test_endpoint(programs: Bench) -> None:
    key = table(programs, "peers").Key
    assert ctypes.sizeof(key) == layout.ENDPOINT.size
    assert [(offset, size) for _, offset, size in fields(key)] == [(0, 4), (4, 2), (6, 2)]


def test_counters(programs: Bench) -> None:
    leaf = table(programs, "counters").sLeaf
    assert ctypes.sizeof(leaf) == VALUE.size
    assert fields(leaf) == [(name, 8 * i, 8) for i, name in enumerate(COUNTERS)]


def test_event() -> None:
    """No map has it for its value, so BCC does not know it: as the header has it."""
    (body,) = re.findall(r"struct event \{(.*?)\n\};", SOURCE, re.DOTALL)
    declared = re.findall(r"^\t(\w+) (\w+);", body, re.MULTILINE)
    assert [name for _, name in declared] == list(layout.EVENT_FIELDS)
    sizes = [SIZES[kind] for kind, _ in declared]
    assert [(name, size) for name, _, size in placed(layout.EVENT_FIELDS, layout.EVENT)] == list(
        zip(layout.EVENT_FIELDS, sizes, strict=True)
    )
    assert layout.EVENT.size % 8 == 0


def test_enums() -> None:
    for state in layout.State:
        assert f"STATE_{state.name} = {state.value}," in SOURCE
    (body,) = re.findall(r"enum event_kind \{(.*?)\n\};", SOURCE, re.DOTALL)
    named = re.findall(r"^\tEVENT_(\w+)", body, re.MULTILINE)
    assert "EVENT_LEARNED = 1," in body
    assert named == [kind.name for kind in sorted(layout.Kind)]
    assert sorted(layout.Kind) == list(range(1, len(named) + 1))
