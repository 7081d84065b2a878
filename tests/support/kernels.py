"""What an older kernel lacks that a test needs: the test is skipped there, and says why."""

import os
import re

import pytest


def running() -> tuple[int, int]:
    """The kernel's version, such as (6, 1)."""
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    return int(major), int(minor)


def skip_before(major: int, minor: int, lacks: str) -> None:
    if running() < (major, minor):
        pytest.skip(f"Linux before {major}.{minor}: {lacks}")
