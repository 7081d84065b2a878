"""A network namespace of one's own."""

import ctypes
import os

_CLONE_NEWNET = 0x40000000  # linux/sched.h


def enter_new_namespace() -> None:
    """This thread goes on in a network namespace of its own, with a loopback interface alone, that
    ends with the thread. Raises OSError."""
    # os.unshare() is Python 3.12's.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "unshare")
