"""Somebody else's tc program: counts the packets that pass it, by skb->priority, no more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.attach import compiler
from moh_ebpf.kernel import libbpf
from moh_ebpf.kernel.libbpf import TCX_EGRESS, TCX_INGRESS
from moh_ebpf.kernel.tc import Hook
from tests.support.firewall import Firewall
from tests.support.namespace import Namespace

_SOURCE = b"""
BPF_ARRAY(seen, u64, 16);

int count(struct __sk_buff *skb)
{
	u32 priority = skb->priority & 15;
	u64 *packets = skb->protocol == bpf_htons(0x0800) ? seen.lookup(&priority) : NULL;

	if (packets)
		__sync_fetch_and_add(packets, 1);
	return -1;
}
"""


def load(source: bytes = _SOURCE, *flags: str) -> Any:
    """The BCC module of some source that is none of ours."""
    includes = (f"-I{path}" for path in compiler.uapi_headers())
    flags = ("-D__LINUX_BPF_H__", *includes, *flags)
    return compiler.import_bcc().BPF(text=source, cflags=list(flags))


def add_filter(
    namespace: Namespace,
    interface: str,
    hook: Hook,
    priority: int,
    fd: int,
    name: str = "somebody-else",
    handle: int = 1,
) -> None:
    """Attach a loaded program there, with a clsact qdisc where there is none."""
    with namespace.entered(), IPRoute() as ipr:
        index = namespace.ifindex(interface)
        if not [q for q in ipr.get_qdiscs(index=index) if q.get_attr("TCA_KIND") == "clsact"]:
            ipr.tc("add", "clsact", index=index)
        ipr.tc(
            "add-filter", "bpf", index=index, parent=hook.value, prio=priority, protocol=3,
            handle=handle, fd=fd, name=name, direct_action=True,
        )  # fmt: skip


class Counter:
    """Its filter at one hook; `packets` by priority so far."""

    def __init__(
        self, firewall: Firewall, interface: str, hook: Hook, priority: int, **options: Any
    ) -> None:
        self._module = load()
        program = self._module.load_func(b"count", compiler.import_bcc().BPF.SCHED_CLS)
        add_filter(firewall.namespace, interface, hook, priority, program.fd, **options)

    @property
    def by_priority(self) -> list[int]:
        return [value.value for value in self._module[b"seen"].values()]

    @property
    def packets(self) -> int:
        return sum(self.by_priority)

    def close(self) -> None:
        self._module.cleanup()


@contextmanager
def counter(
    firewall: Firewall, interface: str, hook: Hook, priority: int = 5000, **filter_options: Any
) -> Iterator[Counter]:
    """Attached before ours (a priority below 4000) or after; gone with the namespace."""
    made = Counter(firewall, interface, hook, priority, **filter_options)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def tcx_program(firewall: Firewall, interface: str, hook: Hook) -> Iterator[None]:
    """Somebody else's TCX program (Linux 6.6) at a hook: counts as the filter does."""
    module = load()
    program = module.load_func(b"count", compiler.import_bcc().BPF.SCHED_CLS)
    kind = TCX_INGRESS if hook is Hook.INGRESS else TCX_EGRESS
    index = firewall.namespace.ifindex(interface)
    with firewall.namespace.entered():
        link = libbpf.call("bpf_link_create", program.fd, index, kind, None)
    try:
        yield
    finally:
        os.close(link)
        module.cleanup()


_XDP = b"int xdp_guard(struct xdp_md *packet) { return XDP_PASS; }"
_BPF_XDP = 37  # enum bpf_attach_type (linux/bpf.h)
_XDP_FLAGS_SKB_MODE = 1 << 1  # linux/if_link.h


@contextmanager
def xdp_program(firewall: Firewall, interface: str, *, generic: bool = False) -> Iterator[None]:
    """Somebody else's XDP program, which lets all packets pass: in the driver by a bpf_link, or
    `generic`, by netlink."""
    bpf = compiler.import_bcc().BPF
    module = load(_XDP)
    program = module.load_func(b"xdp_guard", bpf.XDP)
    index = firewall.namespace.ifindex(interface)
    link = None
    with firewall.namespace.entered():
        if generic:
            bpf.attach_xdp(interface.encode(), program, _XDP_FLAGS_SKB_MODE)
        else:
            link = libbpf.call("bpf_link_create", program.fd, index, _BPF_XDP, None)
    try:
        yield
    finally:
        if link is None:
            with firewall.namespace.entered():
                bpf.remove_xdp(interface.encode(), _XDP_FLAGS_SKB_MODE)
        else:
            os.close(link)
        module.cleanup()
