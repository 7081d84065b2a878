"""Programs in the kernel, and their maps, by descriptors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.libbpf import TCX_EGRESS, TCX_INGRESS, Map, Program
from moh_ebpf.kernel.tc import Filter, Hook
from moh_ebpf.registry.contents import Maps


@contextmanager
def open_program(program_id: int) -> Iterator[tuple[int, Program]]:
    """A program's file descriptor, and what the kernel says of it. Raises OSError."""
    fd = libbpf.program_fd(program_id)
    try:
        yield fd, libbpf.program_info(fd)
    finally:
        os.close(fd)


def tcx_names(ifindex: int, hook: Hook) -> list[str]:
    """The names of the TCX programs at an interface's hook, which run before its filters."""
    kind = TCX_INGRESS if hook is Hook.INGRESS else TCX_EGRESS
    names = []
    for program_id in libbpf.tcx_programs(ifindex, kind):
        with suppress(FileNotFoundError), open_program(program_id) as (_, program):
            names.append(program.name or f"with id {program_id}")
    return names


def open_maps(each: Filter) -> Maps:
    """The maps of a filter's program. Raises FileNotFoundError if it is gone."""
    with open_program(each.program_id or 0) as (_, program):
        return _opened(program)


def _opened(program: Program) -> Maps:
    found: dict[str, Map] = {}
    try:
        for map_id in program.map_ids:
            each = libbpf.open_map(map_id)
            found[each.name] = each
    except OSError:
        Maps(found).close()
        raise
    return Maps(found)


_COMMAND = bytes(12) + b"\x88\xb5"  # an Ethernet header: of an experiment (IEEE 802)


def tell_signalled(learn: int, endpoint: bytes) -> None:
    """What signalling says of a struct endpoint has changed in the map: have the kernel change its
    peer, by learn's program. Raises OSError."""
    libbpf.test_run(learn, _COMMAND + endpoint)


@contextmanager
def maps_of(program: int) -> Iterator[Maps]:
    """The maps of an open program. Raises OSError."""
    maps = _opened(libbpf.program_info(program))
    try:
        yield maps
    finally:
        maps.close()
