"""A check, and how all of them are run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moh_ebpf.doctor.facts import Facts
from moh_ebpf.doctor.findings import Finding, Level
from moh_ebpf.errors import NOT_PERMITTED

Findings = Iterator[tuple[Level, str, str, str]]  # level, found, evidence, remedy


@dataclass(frozen=True)
class Check:
    """A check, what is so where it finds nothing, and what must have been asked for it."""

    look: Callable[[Facts], Findings]
    well: str
    needs: tuple[str, ...]


# By name, in the order in which they are defined.
CHECKS: dict[str, Check] = {}


def check(
    name: str, well: str, *needs: str
) -> Callable[[Callable[[Facts], Findings]], Callable[[Facts], Findings]]:
    """The decorator that makes a function a check."""

    def register(look: Callable[[Facts], Findings]) -> Callable[[Facts], Findings]:
        assert name not in CHECKS, name
        CHECKS[name] = Check(look, well, needs)
        return look

    return register


def run(facts: Facts) -> list[Finding]:
    """All checks' findings, in their order; of what could not be asked, one says what to try."""
    found: list[Finding] = []
    told: set[str] = set()
    for name, each in CHECKS.items():
        unasked = [topic for topic in each.needs if topic in facts.unasked]
        if unasked:
            error = facts.unasked[unasked[0]]
            remedy = "" if error.what in told else error.remedy or WHAT_TO_TRY[unasked[0]]
            told.add(error.what)
            found.append(
                Finding(name, Level.NOTE, "this could not be looked at", error.what, remedy)
            )
        else:
            found += [Finding(name, *row) for row in each.look(facts)] or [
                Finding(name, Level.OK, each.well)
            ]
    return found


# What to try where something could not be asked.
WHAT_TO_TRY = {
    "kernel": NOT_PERMITTED,
    "hooks": NOT_PERMITTED,
    "programs": NOT_PERMITTED,
    "calls": NOT_PERMITTED,
    "rules": "as root: nft list ruleset, iptables-save",
    "conntrack": "as root: conntrack -L -p udp",
    "offload": "ethtool -k INTERFACE",
    "sockets": "ss -lun",
    "routes": "ip route get ADDRESS",
    "neighbours": "ip neigh",
    "modules": "lsmod",
    "interfaces": "ip link",
    "usable": "see interfaces",
    "addresses": "ip addr",
}
