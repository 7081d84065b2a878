"""A network namespace of one's own."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h


def in_new_namespace(do: Callable[[], T]) -> T:
    """What `do` returns in a network namespace of its own, which has a loopback interface alone and
    goes with the thread that it was made for. Raises OSError if there can be none."""

    def there() -> T:
        _enter_new_namespace()
        return do()

    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        return elsewhere.submit(there).result()


def _enter_new_namespace() -> None:
    # os.unshare() is Python 3.12's.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "unshare")
