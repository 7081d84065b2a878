"""Peers, snapshots and a description of what is attached, as a test wants to see them."""

from typing import Any

import pytest

from moh_ebpf.calls.peers import Peer, Snapshot
from moh_ebpf.counters import COUNTERS
from moh_ebpf.layout import State
from moh_ebpf.settings import from_values

DESCRIPTION: dict[str, Any] = {
    "attached": True,
    "version": "0.1.0",
    "settings": from_values(
        {
            "wan": ["eth1"],
            "ucm": ["10.10.10.10", "10.10.10.11"],
            "lan": ["eth0"],
            "public": ["198.51.100.2"],
        }
    ).to_json(),
    "programs": [
        {"interface": "eth1", "hook": "ingress", "role": "learn", "id": 21},
        {"interface": "eth1", "hook": "egress", "role": "enforce", "id": 22},
        {"interface": "eth0", "hook": "ingress", "role": "bypass", "id": 23},
    ],
    "missing": [],
    "wans": [
        {
            "interface": "eth1",
            "learn_age": 0.02,
            "failing_open": False,
            "blind": False,
            "blind_for": None,
        }
    ],
    "earlier": [],
    "counters": dict.fromkeys(COUNTERS, 0),
}

# The same, when somebody has taken bypass away.
WITHOUT_BYPASS = DESCRIPTION | {
    "programs": DESCRIPTION["programs"][:2],
    "missing": [{"interface": "eth0", "hook": "ingress", "role": "bypass"}],
}


def about(value: float) -> Any:
    """pytest.approx, where a number is declared."""
    return pytest.approx(value)


def peer(number: int = 1, state: State = State.MOH, **changes: Any) -> Peer:
    """The provider's endpoint of this number, at least 0: a peer like any, but for the changes."""
    return Peer(
        address=f"203.0.113.{number % 256}",
        port=20000 + number,
        state=state,
        expired=False,
        public_address="198.51.100.2",
        public_port=4000 if state is State.MOH else 24576,
        interface="eth1",
        age=0.01,
        since=12.0,
        longest_gap=0.04,
        in_packets=600,
        in_bytes=120000,
        out_packets=600,
        out_bytes=120000,
    )._replace(**changes)


def snapshot(*peers: Peer, time: float = 100.0, **counters: int) -> Snapshot:
    """The peers at a time, and the counters that are not 0."""
    return Snapshot(time, list(peers), dict.fromkeys(COUNTERS, 0) | counters)


def later(before: Snapshot, *, packets: int, seconds: float = 1.0, **counters: int) -> Snapshot:
    """The same peers after so many packets each way; the counters have grown by what is given."""
    return Snapshot(
        before.time + seconds,
        [
            each._replace(
                in_packets=each.in_packets + packets, out_packets=each.out_packets + packets
            )
            for each in before.peers
        ],
        {name: value + counters.get(name, 0) for name, value in before.counters.items()},
    )
