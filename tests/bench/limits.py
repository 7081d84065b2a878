"""The programs of limits.c: loaded by BCC, attached by tc, gone with their namespace."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moh_ebpf.attach import compiler
from moh_ebpf.kernel.tc import Hook
from tests.support import foreign
from tests.support.firewall import Firewall
from tests.support.namespace import Namespace

_SOURCE = Path(__file__).with_name("limits.c")
_PRIORITY = 1


class Limits:
    """`fd` of each program by its name."""

    def __init__(self, fw: Firewall) -> None:
        bcc = compiler.import_bcc()
        words = struct.unpack("=III", _mac(fw.wan.mac) + _mac(fw.wan.firewall_mac))
        defines = dict(zip(("MAC_LOW", "MAC_MIDDLE", "MAC_HIGH"), words, strict=True))
        defines["WAN"] = fw.namespace.ifindex("wan")
        flags = (f"-D{name}={value}U" for name, value in defines.items())
        self._module = foreign.load(_SOURCE.read_bytes(), *flags)
        self.fd = {
            name: self._module.load_func(name.encode(), bcc.BPF.SCHED_CLS).fd
            for name in ("empty", "drop", "redirect")
        }

    def attach(self, name: str, namespace: Namespace, interface: str) -> None:
        """At the interface's ingress, for all packets."""
        foreign.add_filter(namespace, interface, Hook.INGRESS, _PRIORITY, self.fd[name])

    def close(self) -> None:
        self._module.cleanup()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def limits(fw: Firewall) -> Iterator[Limits]:
    made = Limits(fw)
    try:
        yield made
    finally:
        made.close()
