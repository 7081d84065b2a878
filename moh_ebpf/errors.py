"""What can go wrong, and the exit status it ends with.

Every error that a user can meet is a MohError whose text says what failed, where,
and what to try. Only the outermost layer (cli.main) prints it.
"""

from enum import IntEnum

NOT_PERMITTED = "run as root, with CAP_SYS_ADMIN, CAP_BPF and CAP_NET_ADMIN"


class ExitStatus(IntEnum):
    """Exit statuses of the command line; 3 follows systemctl's "not running", 4 is doctor's."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_ATTACHED = 3
    WARNINGS = 4
    INTERRUPTED = 130


class MohError(Exception):
    """Something failed; nothing of it remains. `what` failed, and what to try: the `remedy`, empty
    if `what` says it already."""

    status = ExitStatus.FAILURE

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; try: {remedy}" if remedy else what)
        self.what, self.remedy = what, remedy


class UsageError(MohError):
    """A setting is wrong or does not fit this machine; nothing was tried."""

    status = ExitStatus.USAGE


class NotAttachedError(MohError):
    """The command needs attached programs and there are none in this network namespace."""

    status = ExitStatus.NOT_ATTACHED
