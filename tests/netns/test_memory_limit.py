"""RLIMIT_MEMLOCK, which maps and programs count against before Linux 5.11."""

import subprocess
import sys

import pytest

from moh_ebpf.attach import compiler
from tests.support.firewall import UCM, Firewall

pytestmark = pytest.mark.skipif(
    not compiler.counts_memory(), reason="since Linux 5.11, BPF's memory is the cgroup's"
)
ATTACH = ("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM)
# What the service has: without CAP_SYS_RESOURCE, a hard limit cannot be raised.
BOUNDED = ("setpriv", "--bounding-set", "-all,+sys_admin,+net_admin", "--inh-caps", "-all")


def attach(fw: Firewall, limit: str, *before: str) -> subprocess.CompletedProcess[str]:
    moh = (sys.executable, "-m", "moh_ebpf", *ATTACH)
    return fw.namespace.run("prlimit", f"--memlock={limit}", *before, *moh, check=False)


@pytest.mark.parametrize(
    ("limit", "before"),
    [("65536:65536", ()), ("65536:unlimited", BOUNDED)],
    ids=["root", "bounded"],
)
def test_a_low_limit_is_raised(fw: Firewall, limit: str, before: tuple[str, ...]) -> None:
    done = attach(fw, limit, *before)
    assert done.returncode == 0, done.stderr
    fw.moh("status")


def test_one_that_cannot_be_raised_is_named(fw: Firewall) -> None:
    done = attach(fw, "65536:65536", *BOUNDED)
    assert done.returncode == 1
    assert "RLIMIT_MEMLOCK), which is 64 KiB here; raise it: ulimit -l unlimited" in done.stderr
    assert "Traceback" not in done.stderr
    assert fw.moh("status", check=False).returncode == 3


def test_who_lacks_the_rights_is_told_so(fw: Firewall) -> None:
    done = attach(fw, "65536:65536", "setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    assert done.returncode == 1
    assert "RLIMIT_MEMLOCK" not in done.stderr
    assert "run as root, with CAP_SYS_ADMIN" in done.stderr
