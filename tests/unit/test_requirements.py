"""What a kernel is asked for is what the programs use."""

import re

from moh_ebpf.attach import compiler
from moh_ebpf.kernel.requirements import HELPERS

# Found by other means: the maps' own, and the clock, of which every kernel has one.
NOT_ASKED_FOR = {"bpf_ktime_get_ns", "bpf_map_lookup_elem", "bpf_map_update_elem"}


def test_every_helper_of_the_programs_is_asked_for() -> None:
    text = "".join(path.read_text() for path in compiler.sources().glob("*.[ch]"))
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    called = set(re.findall(r"\b(bpf_\w+)\(", code))
    called |= {f"bpf_{name}" for name in re.findall(r"BPF_FUNC_(\w+)", code)}
    called -= {"bpf_htons", "bpf_ntohs", "bpf_ntohl", "bpf_ktime_get_coarse_ns"}
    assert called - NOT_ASKED_FOR == set(HELPERS)
