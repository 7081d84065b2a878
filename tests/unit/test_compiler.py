"""What surrounds the compiler: limits, directories and errors."""

import os
import platform
import re
import resource
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from moh_ebpf.attach import compiler
from moh_ebpf.attach.plan import Plan
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.settings import from_values

KIB = 1024
NONE = resource.RLIM_INFINITY
REFUSED = "bpf: Failed to load program: Operation not permitted"

TOO_LONG = "bpf: Argument list too long. Program  too large (7966 insns), at most 4096 insns"
DEFINED = re.compile(r"-D(\w+)[(=]")


def test_programs_that_are_too_long_to_verify() -> None:
    """BCC's own words would mislead: 4,096 instructions is the limit of long ago."""
    assert "try fewer of them, or --no-signalling:\n" in compiler.explain(TOO_LONG)


@pytest.mark.parametrize(
    ("release", "limit", "may_load", "named"),
    [
        ("5.10.0-30-amd64", 64 * KIB, True, True),
        ("5.10.0-30-amd64", 64 * KIB, False, False),
        ("5.10.0-30-amd64", NONE, True, False),
        ("5.11.0", 64 * KIB, True, False),
        ("6.1.0-18-amd64", 64 * KIB, True, False),
        ("4.19", 64 * KIB, True, True),
    ],
)
def test_a_refusal_for_want_of_locked_memory(
    monkeypatch: pytest.MonkeyPatch, release: str, limit: int, may_load: bool, named: bool
) -> None:
    """Its words are those for want of rights."""
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(compiler, "may_load", lambda: may_load)
    said = compiler.explain(REFUSED)
    assert ("LimitMEMLOCK=infinity" in said, "64 KiB" in said) == (named, named)
    assert ("run as root" in said) is not named


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    """Without the right to more, to the hard one."""
    code = (
        "import resource; from moh_ebpf.attach import compiler; compiler.raise_memory_limit();"
        "soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK); print(soft, hard)"
    )
    command = ["prlimit", "--memlock=65536:131072"]
    if os.geteuid() == 0:
        command += ["setpriv", "--bounding-set", "-sys_resource"]
    said = subprocess.check_output([*command, sys.executable, "-c", code], text=True)
    assert said.split() == ["131072", "131072"]


# The machine that the kernel names, Debian's name for it as its Python has it, and what there is.
MACHINES = [
    ("x86_64", "x86_64-linux-gnu", ["x86_64-linux-gnu"]),
    ("aarch64", "aarch64-linux-gnu", ["aarch64-linux-gnu"]),
    ("ppc64le", "powerpc64le-linux-gnu", ["powerpc64le-linux-gnu"]),
    ("armv7l", "arm-linux-gnueabihf", ["arm-linux-gnueabihf"]),
    ("i686", "i386-linux-gnu", ["i386-linux-gnu"]),
    ("mips64", "mips64el-linux-gnuabi64", ["mips64el-linux-gnuabi64"]),
    # A 32-bit system under a 64-bit kernel, and headers for another architecture beside its own.
    ("x86_64", "i386-linux-gnu", ["i386-linux-gnu", "x86_64-linux-gnu"]),
]


@pytest.mark.parametrize(("machine", "multiarch", "there"), MACHINES)
def test_the_c_library_s_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, multiarch: str, there: list[str]
) -> None:
    headers(monkeypatch, tmp_path, machine, multiarch, there)
    assert compiler.uapi_headers() == [tmp_path, tmp_path / multiarch]


@pytest.mark.parametrize("multiarch", [None, "x86_64-elsewhere"])
def test_a_python_that_does_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, multiarch: str | None
) -> None:
    headers(monkeypatch, tmp_path, "x86_64", multiarch, ["x86_64-linux-gnu"])
    assert compiler.uapi_headers() == [tmp_path, tmp_path / "x86_64-linux-gnu"]


def headers(
    monkeypatch: pytest.MonkeyPatch,
    include: Path,
    machine: str,
    multiarch: str | None,
    there: list[str],
) -> None:
    for name in ["linux/pkt_cls.h", *(f"{each}/asm/types.h" for each in there)]:
        (include / name).parent.mkdir(parents=True)
        (include / name).touch()
    monkeypatch.setattr(compiler, "_INCLUDE", include)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sysconfig, "get_config_var", {"MULTIARCH": multiarch}.get)


def test_no_jump_is_by_a_table() -> None:
    """The verifier refuses those; clang makes one of a switch on ppc64le, and none here."""
    interface = Interface(1, "wan", 14, (), None)
    chosen = from_values({"wan": "wan", "ucm": "10.10.10.10"})
    assert "-fno-jump-tables" in compiler.flags(Plan(chosen, [interface], []), 100)


def test_config_h_knows_each_constant() -> None:
    """It asks for those that there must be, and has words for those that there may be."""
    values = {"wan": "wan", "ucm": "10.10.10.10", "public": "198.51.100.2", "flip_hold": True}
    networks = {"sip_from": ["203.0.113.0/24"], "provider": ["203.0.113.0/24"]}
    plan = Plan(from_values(values | networks), [Interface(1, "wan", 14, (), None)], [])
    given = {found[1] for each in compiler.flags(plan, 100) if (found := DEFINED.match(each))}
    config = (compiler.sources() / "config.h").read_text()
    wanted = set(re.findall(r"!defined\((\w+)\)", config))
    in_words = {
        name
        for clause in re.findall(r"([^.;]*), if defined:", config)
        for name in re.findall(r"[A-Z][A-Z_]+", clause)
    }
    assert wanted <= given
    assert given - wanted - {"__LINUX_BPF_H__"} <= in_words
