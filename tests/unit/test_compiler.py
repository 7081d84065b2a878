"""What surrounds the compiler: limits, directories and errors."""

import os
import resource
import subprocess
import sys

import pytest

from moh_ebpf import compiler

KIB = 1024
NONE = resource.RLIM_INFINITY
REFUSED = "bpf: Failed to load program: Operation not permitted"


@pytest.mark.parametrize(
    ("release", "limit", "may_load", "named"),
    [
        ("5.10.0-30-amd64", 64 * KIB, True, True),
        ("5.10.0-30-amd64", 64 * KIB, False, False),
        ("5.10.0-30-amd64", NONE, True, False),
        ("5.11.0", 64 * KIB, True, False),
        ("6.1.0-18-amd64", 64 * KIB, True, False),
        ("4.19", 64 * KIB, True, True),
    ],
)
def test_a_refusal_for_want_of_locked_memory(
    monkeypatch: pytest.MonkeyPatch, release: str, limit: int, may_load: bool, named: bool
) -> None:
    """Its words are those for want of rights."""
    monkeypatch.setattr(compiler.platform, "release", lambda: release)
    monkeypatch.setattr(compiler.resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(compiler, "_may_load", lambda: may_load)
    said = compiler._explain(REFUSED)
    assert ("LimitMEMLOCK=infinity" in said, "64 KiB" in said) == (named, named)
    assert ("run as root" in said) is not named


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    """Without the right to more, to the hard one."""
    code = (
        "import resource; from moh_ebpf import compiler; compiler._raise_memory_limit();"
        "soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK); print(soft, hard)"
    )
    command = ["prlimit", "--memlock=65536:131072"]
    if os.geteuid() == 0:
        command += ["setpriv", "--bounding-set", "-sys_resource"]
    said = subprocess.check_output([*command, sys.executable, "-c", code], text=True)
    assert said.split() == ["131072", "131072"]
