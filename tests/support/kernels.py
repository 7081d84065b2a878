"""The running kernel: what it lacks that a test needs, and what is loaded into it."""

import os
import re

import pytest

from moh_ebpf.kernel import libbpf


def running() -> tuple[int, int]:
    """The kernel's version, such as (6, 1)."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def skip_before(major: int, minor: int, lacks: str) -> None:
    if running() < (major, minor):
        pytest.skip(f"Linux before {major}.{minor}: {lacks}")


def is_loaded(program_id: int) -> bool:
    """Is there a BPF program with this id?"""
    try:
        os.close(libbpf.program_fd(program_id))
    except FileNotFoundError:
        return False
    return True
