"""What `doctor` shows."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from rich.segment import Segment

from moh_ebpf.show.lines import ALARM, DIM, NOTICE, PLAIN, Explained, Line

if TYPE_CHECKING:
    from moh_ebpf.doctor import Finding


LEVELS = {"ok": DIM, "note": PLAIN, "warning": NOTICE, "error": ALARM}


def findings_table(found: Collection["Finding"]) -> Explained:
    """A line for each; under one that is not well, its evidence and what to try."""
    names = max((len(each.check) for each in found), default=0)
    lines: list[tuple[Line, Segment]] = []
    for each in found:
        level = str(each.level)
        head = [Segment(f"{level:<8} {each.check:<{names}} ", LEVELS[level])]
        lines.append((head, Segment(each.found)))
        for word, text in (("seen", each.evidence), ("try", each.remedy)):
            if text:
                lines.append(([Segment(f"{'':<{names + 9}} {word}: ")], Segment(text, DIM)))
    return Explained(lines)
