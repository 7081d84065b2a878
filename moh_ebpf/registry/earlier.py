"""What runs before our programs: lower filters, TCX and XDP programs. Each may hide packets from
them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.kernel import tc
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.kernel.tc import PRIORITY, Filter, Hook
from moh_ebpf.registry.programs import open_program, tcx_names
from moh_ebpf.registry.record import Place, Record


@dataclass(frozen=True)
class Earlier:
    """What runs before our program of a place. `kind` is filter, tcx or xdp. A filter has a
    `priority` and a `classifier` (bpf, u32, …); without a name, it has that of its classifier."""

    place: Place
    kind: str
    name: str
    priority: int | None = None
    classifier: str = ""

    @property
    def where(self) -> str:
        """The interface's present name, and the hook of our program."""
        return f"{interface_name(self.place.ifindex)} {self.place.role.hook}"

    @property
    def evidence(self) -> str:
        """As tc and bpftool name it."""
        if self.kind != "filter":
            return f"{self.where}: {self.kind} {self.name}"
        name = "" if self.name == self.classifier else f" {self.name}"
        return f"{self.where}: pref {self.priority} {self.classifier}{name}"

    def __str__(self) -> str:
        """A warning, with what to look at."""
        return f"{self.what}; see: {self.shown_by}"

    @property
    def what(self) -> str:
        """The warning alone."""
        return (
            f"{self.where}: {self._what} runs before {self.place.role}, which sees only what that "
            "lets go on"
        )

    @property
    def gone(self) -> str:
        """What is to be said when it no longer is there."""
        return f"{self.where}: {self._what} no longer runs before {self.place.role}"

    @property
    def _what(self) -> str:
        if self.kind != "filter":
            return f"the {self.kind.upper()} program {self.name}"
        if self.name == self.classifier:
            return f"a {self.classifier} filter at priority {self.priority}"
        return f"the {self.classifier} filter {self.name} at priority {self.priority}"

    @property
    def shown_by(self) -> str:
        """The command that shows it."""
        interface = interface_name(self.place.ifindex)
        return {
            "filter": f"tc filter show dev {interface} {self.place.role.hook}",
            "tcx": "bpftool net",
            "xdp": f"ip -d link show dev {interface}",
        }[self.kind]

    def to_json(self) -> dict[str, Any]:
        """What `status --json` shows of it."""
        return self.place.to_json() | {
            "kind": self.kind,
            "name": self.name,
            "priority": self.priority,
        }


def found(ipr: IPRoute, record: Record) -> list[Earlier]:
    """All that runs before the record's programs, place by place, in the order in which it runs.
    Raises OSError, MohError."""
    return [each for place in record.places for each in _before(ipr, place)]


def _before(ipr: IPRoute, place: Place) -> Iterator[Earlier]:
    hook = place.role.hook
    if hook is Hook.INGRESS:
        yield from (Earlier(place, "xdp", name) for name in _xdp_names(ipr, place.ifindex))
    yield from (Earlier(place, "tcx", name) for name in tcx_names(place.ifindex, hook))
    for each in _filters(ipr, place):
        yield Earlier(place, "filter", each.name or each.kind, each.priority, each.kind)


def _filters(ipr: IPRoute, place: Place) -> list[Filter]:
    """Filters before ours; of one classifier with several, such as u32 with its hash tables,
    one."""
    by_priority = {
        (each.priority, each.kind, each.name): each
        for each in tc.filters(ipr, place.ifindex)
        if each.hook is place.role.hook and each.priority < PRIORITY
    }
    return list(by_priority.values())


def _xdp_names(ipr: IPRoute, ifindex: int) -> list[str]:
    """The names of the XDP programs of an interface, in whichever mode: generic, native or in the
    hardware, or several of them at once."""
    try:
        (link,) = whole(lambda: ipr.get_links(ifindex))
    except OSError:  # it has vanished
        return []
    xdp = link.get_attr("IFLA_XDP")
    ids = {value for name, value in xdp["attrs"] if name.endswith("PROG_ID")} if xdp else set()
    names = []
    for program_id in sorted(ids):
        name = ""
        with suppress(OSError), open_program(program_id) as (_, program):
            name = program.name
        names.append(name or f"with id {program_id}")
    return names
