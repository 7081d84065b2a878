"""`doctor`: what may keep hold music from being heard, each finding with its evidence and a remedy.

It only looks: gather.py asks, rules.py knows what netfilter's rules do, checks/ judges.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moh_ebpf import settings as values
from moh_ebpf.doctor import gather
from moh_ebpf.doctor.checks import CHECKS, run
from moh_ebpf.doctor.findings import Finding, Level, worst
from moh_ebpf.errors import UsageError
from moh_ebpf.settings import Settings

__all__ = ["CHECKS", "CONFIG", "Finding", "Level", "examine", "worst"]

CONFIG = Path("/etc/moh-ebpf.toml")


def examine(config: Path | None, options: Mapping[str, Any], seconds: float) -> list[Finding]:
    """All checks' findings. Calls, where they can be seen, are looked at for so many seconds.

    The settings are those of the options and the file, if any is given; else those of what is
    attached; else those of CONFIG. Raises UsageError: there are none, or they are wrong.
    """
    return run(gather.gather(_chooser(config, options), seconds))


def _chooser(
    config: Path | None, options: Mapping[str, Any]
) -> Callable[[Settings | None, bool], Settings]:
    """Options that come without a file change single settings of what is looked at."""

    def choose(attached: Settings | None, is_other_version: bool) -> Settings:
        if attached and not config:
            return values.from_values(attached.to_json() | values.given(options))
        file = config or (CONFIG if CONFIG.exists() else None)
        if not file and not options.get("wan") and not options.get("ucm"):
            here = "nothing is attached here"
            if os.geteuid() != 0:
                here += " that can be seen without root"
            elif is_other_version:
                here = "what is attached here is of another version of moh-ebpf"
            raise UsageError(
                f"{here}, and there is no {CONFIG}; "
                "say what is to be, with --config FILE or --wan, --lan and --ucm"
            )
        return values.from_both(file, options)

    return choose
