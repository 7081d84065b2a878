"""What stands in the way of an attach: attach raises the first, doctor lists all."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pyroute2 import IPRoute

from moh_ebpf.errors import MohError
from moh_ebpf.kernel import tc
from moh_ebpf.kernel.interfaces import Interface, interface_name
from moh_ebpf.kernel.tc import PRIORITY, Filter
from moh_ebpf.registry import walk
from moh_ebpf.registry.record import Place


def without_egress(wan: Iterable[Interface], qdiscs: Mapping[int, str]) -> Iterator[MohError]:
    """WANs that have an ingress qdisc, and so cannot have both hooks. `qdiscs` are those of
    tc.ingress_qdiscs()."""
    for each in wan:
        if qdiscs.get(each.index) == "ingress":
            yield MohError(
                f"{each.name}: it has an ingress qdisc, which has no egress hook for enforce",
                f"tc qdisc replace dev {each.name} clsact (its filters must be added again)",
            )


@dataclass(frozen=True)
class Taken:
    """A place of ours, by its interface and hook, where a filter of somebody else's has our
    priority."""

    where: str
    filter: Filter

    @property
    def evidence(self) -> str:
        """As tc names it."""
        each = self.filter
        return f"{self.where}: pref {each.priority} {each.kind} {each.name or ''}"

    @property
    def error(self) -> MohError:
        """What attach says of it."""
        return MohError(
            f"{self.where}: there is a {self.filter.kind} filter of somebody else's at "
            f"priority {PRIORITY}, which is ours; see: "
            f"tc filter show dev {self.where}; it must move to another priority"
        )


def taken(ipr: IPRoute, places: Iterable[Place]) -> Iterator[Taken]:
    """The places that are taken, in their order. Raises OSError."""
    for place in places:
        for each in tc.filters(ipr, place.ifindex):
            if each.hook is not place.role.hook or each.priority != PRIORITY:
                continue
            if walk.role_of(each) is None:
                name = interface_name(place.ifindex)
                yield Taken(f"{name} {each.hook}", each)
