"""The programs of what is attached, held open by `run`.

When somebody removes a filter, it can be put back with the very program, so that peers, counters
and events go on: a program keeps its maps. Nothing is compiled.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace

from moh_ebpf.errors import MohError
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.tc import Filter
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.programs import maps_of
from moh_ebpf.registry.record import Place, Role


class Held:
    """Descriptors of the attached programs by role, until `close`. They keep the programs in the
    kernel: they must be closed when other programs have taken their place.

    `record` is what the programs' settings map says. `made` are the ifindexes whose clsact is known
    to be the one that we made.
    """

    def __init__(self, attached: Attached) -> None:
        """Raises OSError if a program is gone, MohError if one role has two programs."""
        self.record = attached.record
        self.made = set(attached.record.clsact)
        self._ids = {place.role: each.program_id for place, each in attached.filters.items()}
        if not self.has_all_of(attached.filters):
            raise MohError("different programs of one role are attached")
        with ExitStack() as stack:
            self.programs: dict[Role, int] = {}
            for role, program_id in self._ids.items():
                self.programs[role] = libbpf.program_fd(program_id or 0)
                stack.callback(os.close, self.programs[role])
            self._close = stack.pop_all().close

    def close(self) -> None:
        """Let go of the programs."""
        self._close()

    @property
    def interfaces(self) -> set[int]:
        """The ifindexes of the interfaces that it is attached to."""
        return {*self.record.wan, *self.record.lan}

    def has_all_of(self, filters: Mapping[Place, Filter]) -> bool:
        """Have all these filters the programs that are held?"""
        return all(
            each.program_id is not None and each.program_id == self._ids.get(place.role)
            for place, each in filters.items()
        )

    def is_whole(self) -> None:
        """All filters are there, so the qdiscs are those that they were attached to."""
        self.made = set(self.record.clsact)

    def hooks_are_gone(self, ifindexes: Collection[int]) -> None:
        """The ingress qdiscs of these interfaces were deleted: one that is there later may be
        somebody else's."""
        self.made.difference_update(ifindexes)

    def write(self, clsact: tuple[int, ...]) -> None:
        """Correct the attachment's record: these are the clsact qdiscs that we made. Raises
        MohError, OSError."""
        record = replace(self.record, clsact=clsact)
        if record != self.record:
            with maps_of(next(iter(self.programs.values()))) as maps:
                maps.put_settings(record.to_bytes())
        self.record, self.made = record, set(clsact)
