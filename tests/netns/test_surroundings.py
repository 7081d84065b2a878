"""What a command finds around it: its directory, its clock, the tools that it asks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import udp

ROOT = Path(__file__).parents[2]
HOLD = f"{PUBLIC}:4000"
MOH = (sys.executable, "-m", "moh_ebpf")
ATTACH = ("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, "--timeout", "60s")


def test_a_deleted_directory(fw: Firewall, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = ["sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "-", *MOH, *ATTACH]
    fw.namespace.run(*command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert fw.moh("status").returncode == 0


def test_rules_that_cannot_be_listed_in_time(fw: Firewall, tmp_path: Path) -> None:
    """They are asked for a hint alone."""
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\nexec sleep 600\n")
    nft.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    attach = ("attach", "--wan", "wan", "--ucm", UCM)
    done = fw.namespace.run(*MOH, *attach, env={**os.environ, "PATH": path})
    assert "rewrites source addresses" not in done.stderr
    assert fw.moh("status").returncode == 0


# Ten days ahead of the machine's clock, and some before it.
@pytest.mark.parametrize("offset", ["864000", "-100"])
def test_a_time_namespace(fw: Firewall, offset: str) -> None:
    """Its clock is not the programs': a live peer is live, kept over a replacement, and told of
    with the time of day."""
    elsewhere = ("unshare", "--time", "--fork", "--monotonic", offset)
    if subprocess.run([*elsewhere, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no time namespaces here")
    fw.namespace.run(*elsewhere, *MOH, *ATTACH)
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)
    fw.wan.sent()

    def peer() -> dict[str, Any]:
        (shown,) = json.loads(fw.namespace.run(*elsewhere, *MOH, "peers", "--json").stdout)
        return shown

    def first_event(*before: str) -> dict[str, Any]:
        told = ("events", "--json", "--history", "--for", "0s")
        return json.loads(fw.namespace.run(*before, *MOH, *told).stdout.splitlines()[0])

    outside = json.loads(fw.moh("peers", "--json").stdout)[0]
    assert not peer()["expired"]
    assert 0 <= outside["since"] <= peer()["since"] < outside["since"] + 60
    fw.namespace.run(*elsewhere, *MOH, *ATTACH, "--max-peers", "1000")
    assert not peer()["expired"]
    assert abs(first_event(*elsewhere)["time"] - first_event()["time"]) < 1


@pytest.mark.parametrize(
    ("public", "warned"),
    [
        (["10.99.0.2"], True),
        (["100.64.1.2"], True),
        ([PUBLIC, "192.168.7.2"], True),
        ([PUBLIC, "172.32.0.1"], False),
        (["10.99.0.2", "--provider", "10.0.0.0/8"], False),
    ],
    ids=lambda each: str(each),
)
def test_a_private_provider_is_pointed_out(fw: Firewall, public: list[str], warned: bool) -> None:
    said = fw.moh(*ATTACH, "--dry-run", "--public", *public).stderr
    assert ("unless its network is named; see: --provider CIDR" in said) is warned
    assert (f"the public address {public[-1]} is a private one" in said) is warned
