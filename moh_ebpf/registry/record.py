"""Where programs are attached, and the record that an attachment leaves of itself."""

import json
from dataclasses import dataclass, replace
from enum import Enum

from moh_ebpf.errors import MohError
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.kernel.tc import Hook
from moh_ebpf.maps import layouts
from moh_ebpf.registry.contents import Maps
from moh_ebpf.settings import Settings, from_values


class Role(Enum):
    """What a program does, in the order in which roles are attached."""

    LEARN = "learn"
    ENFORCE = "enforce"
    BYPASS = "bypass"

    def __str__(self) -> str:
        return self.value

    @property
    def program(self) -> str:
        """The name of its program and of its filter."""
        return f"moh_{self.value}"

    @property
    def hook(self) -> Hook:
        """Where it is attached."""
        return Hook.EGRESS if self is Role.ENFORCE else Hook.INGRESS


ROLES = {role.program: role for role in Role}


@dataclass(frozen=True)
class Place:
    """Where a program of a role is, or belongs."""

    ifindex: int
    role: Role

    def to_json(self) -> dict[str, str]:
        """With the interface's present name."""
        return {
            "interface": interface_name(self.ifindex),
            "hook": str(self.role.hook),
            "role": str(self.role),
        }


@dataclass(frozen=True)
class Record:
    """What an attachment leaves in its settings map.

    `wan` and `lan` are ifindexes, for interfaces can be renamed; a peer's WAN is an index into
    `wan`. `clsact` are those whose clsact qdisc was made by attach.
    """

    settings: Settings
    version: str
    wan: tuple[int, ...]
    lan: tuple[int, ...]
    clsact: tuple[int, ...]

    @property
    def places(self) -> list[Place]:
        """Where its programs belong, in the order of attaching."""
        return [
            *(Place(ifindex, role) for role in (Role.LEARN, Role.ENFORCE) for ifindex in self.wan),
            *(Place(ifindex, Role.BYPASS) for ifindex in self.lan),
        ]

    def size(self) -> int:
        """How many bytes the map needs for it, whichever clsact qdiscs will be made."""
        return len(replace(self, clsact=(*self.wan, *self.lan)).to_bytes())

    def to_bytes(self) -> bytes:
        """As it lies in the map, but for zeros at the end: JSON."""
        values = {
            "version": self.version,
            "layouts": layouts(self.settings),
            "wan": self.wan,
            "lan": self.lan,
            "clsact": self.clsact,
            "settings": self.settings.to_json(),
        }
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Raises ValueError, KeyError, TypeError or MohError if it is none that we understand."""
        values = json.loads(data.rstrip(b"\0"))
        return cls(
            settings=from_values(values["settings"]),
            version=str(values["version"]),
            wan=tuple(values["wan"]),
            lan=tuple(values["lan"]),
            clsact=tuple(values["clsact"]),
        )


def read_record(maps: Maps) -> tuple[Record | None, dict[str, str]]:
    """The record in the maps, and the layouts that it names; None if it is not understood."""
    try:
        data = maps.settings()
        return Record.from_bytes(data), dict(json.loads(data.rstrip(b"\0"))["layouts"])
    except (KeyError, ValueError, TypeError, MohError):
        return None, {}
