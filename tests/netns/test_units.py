"""The systemd units: right, hardened, and with the capabilities that the commands need."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import flow, udp

UNITS = Path(__file__).parents[2] / "scripts" / "systemd"
DOCS = Path(__file__).parents[2] / "docs"
# systemd's own scale goes from 0 (all is closed) to 10; a plain service has 9.6.
MOST_EXPOSED = 4.0


def analyze(*arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(each.name for each in UNITS.iterdir()))
def test_units_are_right(name: str, tmp_path: Path) -> None:
    """As they stand, but for the command, which is not installed here."""
    for each in UNITS.iterdir():
        text = each.read_text().replace("/usr/bin/moh-ebpf", sys.executable)
        (tmp_path / each.name).write_text(text)
    said = analyze("verify", "--man=no", "--recursive-errors=no", str(tmp_path / name))
    assert name not in said, said


def test_service_is_hardened() -> None:
    unit = str(UNITS / "moh-ebpf.service")
    shown = analyze("security", "--offline=yes", "--no-pager", unit)
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", shown)
    assert float(exposure) <= MOST_EXPOSED, shown
    assert f"at most {MOST_EXPOSED} of 10" in (DOCS / "operations.md").read_text()


@pytest.mark.parametrize("unit", sorted(UNITS.iterdir()), ids=lambda each: each.name)
def test_units_do_not_limit_locked_memory(unit: Path) -> None:
    """Before Linux 5.11, maps count against it."""
    assert "\nLimitMEMLOCK=infinity\n" in unit.read_text()


def test_service_keeps_the_capabilities_that_it_needs(fw: Firewall) -> None:
    (kept,) = re.findall(
        "^CapabilityBoundingSet=(.*)$", (UNITS / "moh-ebpf.service").read_text(), re.M
    )
    names = ["+" + each.removeprefix("CAP_").lower() for each in kept.split()]
    bounded = ["setpriv", "--bounding-set", ",".join(["-all", *names]), "--inh-caps", "-all"]
    moh = [*bounded, "--no-new-privs", sys.executable, "-m", "moh_ebpf"]
    fw.namespace.run(
        *moh, "attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, "--timeout", "60s"
    )
    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:4000"))
    fw.lan.send(udp(f"{UCM}:24576", PROVIDER))
    assert [flow(each) for each in fw.wan.sent()] == [(f"{PUBLIC}:4000", PROVIDER)]
    fw.namespace.run(*moh, "status")
    fw.namespace.run(*moh, "peers")
    fw.namespace.run(*moh, "detach")
