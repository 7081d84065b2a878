"""A kernel that lacks something is refused with the name of it, by attach and by its dry run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moh_ebpf.attach import compiler
from moh_ebpf.kernel import requirements
from tests.support.firewall import UCM, Firewall

ATTACH = ("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM)

# moh-ebpf for a kernel that does not have bpf_redirect_neigh yet: what is asked for in its place is
# a helper that no kernel has.
WITHOUT_HELPER = """
from pathlib import Path
from moh_ebpf import cli
from moh_ebpf.attach import compiler
from moh_ebpf.kernel import requirements
compiler.sources = lambda: Path({sources!r})
requirements.HELPERS["bpf_redirect_neigh"] = ({number}, "5.10")
cli.main()
"""
NO_HELPER = 9999


def test_nothing_is_lacking_here() -> None:
    assert requirements.lacking() is None


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_helper_that_the_kernel_lacks(fw: Firewall, tmp_path: Path, more: tuple[str, ...]) -> None:
    sources = tmp_path / "bpf"
    shutil.copytree(compiler.sources(), sources)
    forward = sources / "forward.h"
    forward.write_text(forward.read_text().replace("BPF_FUNC_redirect_neigh", str(NO_HELPER)))
    script = WITHOUT_HELPER.format(sources=str(sources), number=NO_HELPER)
    before = fw.namespace.tc_state("lan", "wan")
    refused = fw.namespace.run(
        "env", f"PYTHONPATH={Path.cwd()}", sys.executable, "-c", script, *ATTACH, *more, check=False
    )
    assert refused.returncode == 1
    said = f"this kernel ({os.uname().release}) lacks the helper bpf_redirect_neigh (Linux 5.10):"
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert fw.namespace.tc_state("lan", "wan") == before


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("cls_bpf", "this kernel lacks BPF filters (module cls_bpf, CONFIG_NET_CLS_BPF)"),
        (
            "sch_ingress",
            "this kernel lacks the clsact qdisc (module sch_ingress, CONFIG_NET_SCH_INGRESS)",
        ),
    ],
)
def test_module_that_is_not_there(
    fw: Firewall, module: str, said: str, more: tuple[str, ...]
) -> None:
    before = fw.namespace.tc_state("lan", "wan")
    with without_module(module):
        refused = fw.moh(*ATTACH, *more, check=False)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert fw.namespace.tc_state("lan", "wan") == before


@contextmanager
def without_module(module: str) -> Iterator[None]:
    """The module out of the kernel, and kept from being loaded: in a virtual machine alone."""
    if "MOH_KERNEL_TESTS" not in os.environ:
        pytest.skip("takes a kernel's module away: scripts/test-kernels does that to its own")
    subprocess.run(["modprobe", "-r", module], check=True)
    refusal = Path("/etc/modprobe.d/moh-test.conf")
    refusal.write_text(f"install {module} /bin/false\n")
    try:
        yield
    finally:
        refusal.unlink()
        subprocess.run(["modprobe", module], check=True)
