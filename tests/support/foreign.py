"""Somebody else's tc program: counts the packets that pass it, by skb->priority, no more."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from moh_ebpf import compiler
from moh_ebpf.tc import Hook
from tests.support.firewall import Firewall

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


class Counter:
    """Its filter at one hook; `packets` by priority so far."""

    def __init__(self, firewall: Firewall, interface: str, hook: Hook, priority: int) -> None:
        bcc = compiler._import_bcc()
        flags = ["-D__LINUX_BPF_H__", *(f"-I{path}" for path in compiler._uapi_headers())]
        self._module = bcc.BPF(text=_SOURCE, cflags=flags)
        program = self._module.load_func(b"count", bcc.BPF.SCHED_CLS)
        with firewall.namespace.entered(), IPRoute() as ipr:
            index = firewall.namespace.ifindex(interface)
            if not [q for q in ipr.get_qdiscs(index=index) if q.get_attr("TCA_KIND") == "clsact"]:
                ipr.tc("add", "clsact", index=index)
            ipr.tc(
                "add-filter", "bpf", index=index, parent=hook.value, prio=priority, protocol=3,
                fd=program.fd, name="somebody-else", direct_action=True,
            )  # fmt: skip

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
    firewall: Firewall, interface: str, hook: Hook, priority: int = 5000
) -> Iterator[Counter]:
    """Attached before ours (a priority below 4000) or after; gone with the namespace."""
    made = Counter(firewall, interface, hook, priority)
    try:
        yield made
    finally:
        made.close()
