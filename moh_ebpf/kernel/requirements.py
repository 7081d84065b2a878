"""What the programs need of a kernel and of who runs us, and the names of what this one lacks.

What it lacks is asked only when it has refused something: one that takes the programs needs no
questions but for what they can do without, and a version number says little where distributions
backport.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from moh_ebpf.errors import MohError
from moh_ebpf.kernel import libbpf

# enum bpf_map_type, enum bpf_func_id (linux/bpf.h)
_MAPS = {
    "array maps": (2, "3.19"),
    "per-CPU array maps": (6, "4.6"),
    "LRU hash maps": (9, "4.10"),
    "LPM trie maps": (11, "4.11"),
    "ring buffer maps": (27, "5.8"),
}
HELPERS = {
    "bpf_skb_store_bytes": (9, "4.1"),
    "bpf_l4_csum_replace": (11, "4.1"),
    "bpf_skb_vlan_pop": (19, "4.3"),
    "bpf_redirect": (23, "4.4"),
    "bpf_skb_load_bytes": (26, "4.5"),
    "bpf_skb_pull_data": (39, "4.9"),
    "bpf_csum_update": (40, "4.9"),
    "bpf_skb_change_head": (43, "4.10"),
    "bpf_skb_adjust_room": (50, "4.13"),
    "bpf_skb_load_bytes_relative": (68, "4.18"),
    "bpf_fib_lookup": (69, "4.18"),
    "bpf_redirect_neigh": (152, "5.10"),
}
_COARSE_CLOCK = 160  # bpf_ktime_get_coarse_ns, Linux 5.11


@dataclass(frozen=True)
class Need:
    """Something of the kernel's, the Linux version that brought it, and how to ask for it."""

    name: str
    since: str
    is_there: Callable[[], bool]


def _needs() -> list[Need]:
    maps = [
        Need(name, since, partial(libbpf.has_map_type, kind))
        for name, (kind, since) in _MAPS.items()
    ]
    helpers = [
        Need(f"the helper {name}", since, partial(libbpf.has_helper, number))
        for name, (number, since) in HELPERS.items()
    ]
    return [
        *maps,
        *helpers,
        Need("BPF_MAP_LOOKUP_BATCH", "5.6", libbpf.has_lookup_batch),
        Need("BPF_PROG_BIND_MAP", "5.10", libbpf.has_bind_map),
    ]


def lacking() -> str | None:
    """One line with what this kernel lacks; None if all is there. To be asked by root, and when it
    is not memory that the kernel lacks: else the answer misleads. Raises OSError."""
    if not libbpf.has_tc_programs():
        return f"this kernel ({platform.release()}) lacks BPF programs for tc (Linux 4.1)"
    lacks = [f"{need.name} (Linux {need.since})" for need in _needs() if not need.is_there()]
    return f"this kernel ({platform.release()}) lacks {', '.join(lacks)}" if lacks else None


def has_coarse_clock() -> bool:
    """Does it have the cheaper clock? The programs do without. Raises OSError: not permitted."""
    return libbpf.has_helper(_COARSE_CLOCK)


def require_root() -> None:
    """Raises MohError unless we are root."""
    if os.geteuid() != 0:
        raise MohError("this needs root, to read and attach BPF programs", "sudo moh-ebpf …")
