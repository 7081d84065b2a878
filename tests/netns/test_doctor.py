"""`doctor` on a firewall that is well, and on firewalls with one real fault each."""

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_ebpf.doctor import CHECKS
from moh_ebpf.tc import Hook
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall
from tests.support.foreign import counter
from tests.support.wire import udp

HOLD = f"{PUBLIC}:4000"
ROOT = Path(__file__).parents[2]


def examine(fw: Firewall, *arguments: str) -> tuple[int, dict]:
    done = fw.moh("doctor", "--json", "--for", "100ms", *arguments, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def troubles(shown: dict) -> dict[str, dict]:
    return {each["check"]: each for each in shown["findings"] if each["level"] != "ok"}


def test_a_firewall_that_is_well(fw: Firewall) -> None:
    before = fw.namespace.tc_state("lan", "wan")
    fw.attach("--provider", "203.0.113.0/24")
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(f"{UCM}:24576", PROVIDER))
    status, shown = examine(fw)
    assert (status, shown["worst"], troubles(shown)) == (0, "ok", {})
    assert [each["check"] for each in shown["findings"]] == list(CHECKS)
    fw.moh("detach")
    assert fw.namespace.tc_state("lan", "wan") == before


def test_before_attaching(fw: Firewall, tmp_path: Path) -> None:
    config = tmp_path / "moh-ebpf.toml"
    config.write_text(f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\n')
    status, shown = examine(fw, "--config", str(config))
    assert (status, shown["worst"]) == (0, "note")
    assert list(troubles(shown)) == ["attached"]
    done = fw.moh("doctor", check=False)
    assert done.returncode == 1
    assert "--config" in done.stderr


def forwarding_off(fw: Firewall) -> None:
    fw.namespace.sysctl("net.ipv4.conf.lan.forwarding", 0)


def gateway_is_silent(fw: Firewall) -> None:
    fw.namespace.run(*f"ip neigh replace {GATEWAY} dev wan nud failed".split())


def no_route(fw: Firewall) -> None:
    fw.namespace.run("ip", "route", "del", "default")


def port_taken_by_snat(fw: Firewall) -> None:
    fw.namespace.nft(f"add rule ip nat postrouting udp sport 24576 snat to {HOLD}")


def port_taken_by_notrack(fw: Firewall) -> None:
    fw.namespace.nft(
        "table ip raw { chain p { type filter hook prerouting priority raw; "
        "udp dport 4000 notrack; }; }"
    )


def input_open(fw: Firewall) -> None:
    fw.namespace.nft("delete table ip filter")


def program_missing(fw: Firewall) -> None:
    fw.namespace.run("tc", "filter", "del", "dev", "lan", "ingress", "pref", "4000")


def music_dropped(fw: Firewall) -> None:
    """The one that is dropped comes while doctor looks."""
    done = threading.Event()

    def play() -> None:
        while not done.wait(0.01):
            fw.lan.send(udp(f"{UCM}:24576", "203.0.113.99:21000"))

    thread = threading.Thread(target=play)
    thread.start()
    fw.stack.callback(thread.join)
    fw.stack.callback(done.set)


def pause_longer_than_the_timeout(fw: Firewall) -> None:
    fw.attach("--timeout", "100ms", "--provider", "203.0.113.0/24")
    fw.wan.send(udp(PROVIDER, HOLD))
    threading.Event().wait(0.3)  # it is the time that is wanted
    fw.wan.send(udp(PROVIDER, HOLD))


@pytest.mark.parametrize(
    ("fault", "check", "level", "evidence"),
    [
        (forwarding_off, "forwarding", "error", "net.ipv4.conf.lan.forwarding = 0"),
        (gateway_is_silent, "wan-neighbour", "error", f"{GATEWAY} dev wan: FAILED"),
        (no_route, "wan-route", "error", "ip route get 203.0.113.1"),
        (port_taken_by_snat, "phantom-port", "warning", "ip nat postrouting handle"),
        (port_taken_by_notrack, "phantom-port", "warning", "ip raw p handle"),
        (input_open, "input-chain", "warning", "masquerade"),
        (program_missing, "attached", "error", "tc filter show dev lan ingress"),
        (music_dropped, "unidentified", "warning", "dropped_unidentified grew by"),
        (pause_longer_than_the_timeout, "pauses", "warning", "timeout 0.1 s"),
    ],
)
def test_a_fault_is_found_and_nothing_else(
    fw: Firewall, fault: Callable[[Firewall], None], check: str, level: str, evidence: str
) -> None:
    fw.attach("--provider", "203.0.113.0/24")
    fault(fw)
    status, shown = examine(fw)
    found = troubles(shown)
    assert list(found) == [check]
    assert found[check]["level"] == shown["worst"] == level
    assert evidence in found[check]["evidence"]
    assert found[check]["remedy"]
    assert status == (1 if level == "error" else 4)


def test_ucm_elsewhere(fw: Firewall) -> None:
    fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", "172.16.9.9")
    _, shown = examine(fw)
    assert "172.16.9.9: dev wan" in troubles(shown)["ucm-route"]["evidence"]


def test_somebody_listens_or_stands_before(fw: Firewall) -> None:
    fw.attach()
    with (
        fw.namespace.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        counter(fw, "wan", Hook.EGRESS, 10),
    ):
        listener.bind(("0.0.0.0", 4001))
        found = troubles(examine(fw)[1])
    assert "4001" in found["listeners"]["found"]
    assert "runs before enforce" in found["other-programs"]["found"]


def test_strict_filtering_with_two_uplinks(fw: Firewall) -> None:
    fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    fw.moh("attach", "--wan", "wan", "wan2", "--lan", "lan", "--ucm", UCM)
    fw.namespace.sysctl("net.ipv4.conf.wan2.rp_filter", 1)
    found = troubles(examine(fw)[1])
    assert found["rp-filter"]["evidence"] == "net.ipv4.conf.wan2.rp_filter = 1"


def test_text_shows_evidence_and_remedy_only_where_something_is_wrong(fw: Firewall) -> None:
    fw.attach()
    assert "try:" not in fw.moh("doctor", "--for", "0s").stdout
    forwarding_off(fw)
    shown = fw.moh("doctor", "--for", "0s", check=False).stdout
    assert re.search(r"^error +forwarding +packets that come in by lan", shown, re.M)
    assert "try: sysctl -w net.ipv4.ip_forward=1" in shown


def test_the_checks_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (listed,) = re.findall(r"Its checks: ([\w, \n-]+)\.", page)
    assert re.split(r",\s+", listed) == list(CHECKS)
