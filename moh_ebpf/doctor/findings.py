"""A finding, and how bad it is."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """What a check has found: `evidence` is the rule, value or route itself."""

    check: str
    level: Level
    found: str
    evidence: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """One object of `doctor --json`."""
        return {
            "check": self.check,
            "level": str(self.level),
            "found": self.found,
            "evidence": self.evidence,
            "remedy": self.remedy,
        }


def worst(findings: Collection[Finding]) -> Level:
    """The worst level of all."""
    return max((each.level for each in findings), default=Level.OK)
