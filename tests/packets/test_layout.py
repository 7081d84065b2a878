"""C and Python must agree on every byte they share."""

import ctypes
from pathlib import Path

from moh_ebpf import layout
from tests.packets.bench import Bench


def table(programs: Bench, name: str):
    return programs._loaded.module[name.encode()]


def fields(structure: type[ctypes.Structure]) -> list[tuple[str, int, int]]:
    return [
        (name, getattr(structure, name).offset, getattr(structure, name).size)
        for name, *_ in structure._fields_
    ]


def test_peer(programs: Bench) -> None:
    leaf = table(programs, "peers").Leaf
    assert ctypes.sizeof(leaf) == layout.PEER.size
    assert fields(leaf) == [(name, 8 * i, 8) for i, name in enumerate(layout.PEER_FIELDS)]


def test_endpoint(programs: Bench) -> None:
    key = table(programs, "peers").Key
    assert ctypes.sizeof(key) == layout.ENDPOINT.size
    assert [(offset, size) for _, offset, size in fields(key)] == [(0, 4), (4, 2), (6, 2)]


def test_counters(programs: Bench) -> None:
    leaf = table(programs, "counters").sLeaf
    assert ctypes.sizeof(leaf) == layout.COUNTERS_VALUE.size
    assert fields(leaf) == [(name, 8 * i, 8) for i, name in enumerate(layout.COUNTERS)]


def test_states() -> None:
    source = (Path(__file__).parents[2] / "bpf/layout.h").read_text()
    for state in layout.State:
        assert f"STATE_{state.name} = {state.value}," in source
