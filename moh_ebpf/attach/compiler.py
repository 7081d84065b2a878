"""Compiling and loading the C programs with BCC.

BCC is shown a small header tree of our own (bpf/headers), so the running kernel's headers are not
needed. It is imported only here and only when something is compiled.
"""

import contextlib
import math
import mmap
import os
import platform
import re
import resource
import socket
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from moh_ebpf import layout, maps
from moh_ebpf.attach.plan import Plan
from moh_ebpf.calls.peers import GOES_ON_SECONDS, LONGEST_DEAF_HOLD_SECONDS
from moh_ebpf.counters import COUNTERS
from moh_ebpf.errors import NOT_PERMITTED, MohError
from moh_ebpf.kernel import libbpf, requirements
from moh_ebpf.registry.contents import Maps
from moh_ebpf.registry.record import Role
from moh_ebpf.settings import MOST_INTERFACES

_INCLUDE = Path("/usr/include")
_CAP_SYS_ADMIN = 21  # linux/capability.h
_PART = re.compile(r'^#include "(\w+\.c)"$', re.MULTILINE)
_LOCAL_FREE_TARGET = 128  # kernel/bpf/bpf_lru_list.c

_BCC_MISSING = "BCC's Python module is missing"
_OTHER_BCC = (
    "the Python module named bcc is not BCC (PyPI's bcc is another program)",
    "pip uninstall bcc, apt install python3-bpfcc",
)
_HEADERS_MISSING = "the C library's kernel headers are missing", "apt install linux-libc-dev"


@dataclass(frozen=True)
class Loaded:
    """Loaded programs by role and their maps by name: open descriptors, until `close`."""

    module: Any
    programs: dict[Role, int]
    maps: Maps

    def close(self) -> None:
        """Let go of programs and maps: what is attached stays, the rest is freed."""
        self.module.cleanup()


def sources() -> Path:
    """The directory of the C sources: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "bpf"
    return inside if inside.is_dir() else inside.parent.parent / "bpf"


def source() -> str:
    """The programs as one text: moh.c with the parts that it includes in their place, because BCC
    turns map accesses into helper calls in its main buffer only. Errors name file and line."""

    def text(name: str) -> str:
        return (sources() / name).read_text(encoding="utf-8")

    def part(include: re.Match[str]) -> str:
        line = main.count("\n", 0, include.end()) + 2
        return f'#line 1 "{include[1]}"\n{text(include[1])}#line {line} "moh.c"'

    main = text("moh.c")
    return '#line 1 "moh.c"\n' + _PART.sub(part, main)


def load(plan: Plan, settings_size: int, adopt: dict[str, int]) -> Loaded:
    """Compile for this plan and load all programs.

    `settings_size` is the size of the settings map's value in bytes. `adopt` names maps not to
    make anew: their descriptors are those of maps to share, with the same layout and size.
    Raises MohError with the compiler's or the verifier's own lines.
    """
    bcc = _prepared_bcc()
    with _errors_explained():
        module = bcc.BPF(text=source().encode(), cflags=flags(plan, settings_size))
        _check_layout(module)
        for name, fd in adopt.items():
            # BCC resolves maps by descriptor number when a program is loaded.
            os.dup2(fd, module[name.encode()].map_fd, inheritable=False)
        programs = {
            role: module.load_func(role.program.encode(), bcc.BPF.SCHED_CLS).fd for role in Role
        }
    opened = {
        row.name: libbpf.map_info(module[row.name.encode()].map_fd)
        for row in maps.of(plan.settings)
    }
    loaded = Loaded(module, programs, Maps(opened))
    _check_names(loaded)
    return loaded


def load_filter(file: str, program: str, **defines: int) -> tuple[Any, int]:
    """Compile a C file that has one program for a packet socket: BCC's module, to be closed by its
    `cleanup`, and the program's descriptor. Raises MohError as `load` does."""
    bcc = _prepared_bcc()
    text = f'#line 1 "{file}"\n' + (sources() / file).read_text(encoding="utf-8")
    with _errors_explained():
        module = bcc.BPF(text=text.encode(), cflags=_flags(defines))
        return module, module.load_func(program.encode(), bcc.BPF.SOCKET_FILTER).fd


def _prepared_bcc() -> Any:
    bcc = import_bcc()
    raise_memory_limit()
    _leave_deleted_directory()
    return bcc


@contextlib.contextmanager
def _errors_explained() -> Iterator[None]:
    """What BCC, clang or libbpf did not like, as a MohError."""
    try:
        with _captured_output() as output:
            yield
    except MohError:
        raise
    except Exception as error:  # BCC raises bare Exceptions; what matters it has printed.
        raise MohError(explain("".join(output) or str(error))) from error


def raise_memory_limit() -> None:
    """Before Linux 5.11, maps and programs count against RLIMIT_MEMLOCK, 64 KiB as a rule. Above
    the hard limit, raising it takes CAP_SYS_RESOURCE."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for most in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
            return


def _memory_limit() -> str | None:
    """What to do about RLIMIT_MEMLOCK, if that is why the kernel does not permit more; None if it
    is not: it does not count there, or there is no limit, or we lack the rights."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or not counts_memory() or not may_load():
        return None
    return (
        f"before Linux 5.11, maps count against the limit of locked memory (RLIMIT_MEMLOCK), which "
        f"is {limit // 1024} KiB here; raise it: ulimit -l unlimited, in a systemd unit "
        "LimitMEMLOCK=infinity"
    )


def counts_memory() -> bool:
    """Does this kernel count BPF's memory against RLIMIT_MEMLOCK, and not to the cgroup's?"""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    return version is not None and (int(version[1]), int(version[2])) < (5, 11)


def may_load() -> bool:
    """Have we CAP_SYS_ADMIN, in the user namespace of the machine itself?"""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    users = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    effective = re.search(r"^CapEff:\s*(\w+)$", status, re.M)
    if effective is None or users != ["0", "0", str(2**32 - 1)]:
        return False
    return bool(int(effective[1], 16) >> _CAP_SYS_ADMIN & 1)


def _check_names(loaded: Loaded) -> None:
    """Programs and maps are found again by their names, which libbpf leaves out if the kernel did
    not take its one try with a name, be it for want of memory."""
    names = {role.program: libbpf.program_info(fd).name for role, fd in loaded.programs.items()}
    names |= {name: each.name for name, each in loaded.maps.opened.items()}
    for wanted, name in names.items():
        if name != wanted:
            loaded.close()
            raise MohError(
                f"the kernel has loaded {wanted} without its name, by which it is found again; "
                "is it short of memory? Try again"
            )


def explain(output: str) -> str:
    """What went wrong, by what BCC, clang and libbpf have printed, and that itself."""
    if "Operation not permitted" in output:
        reason = f"the kernel does not permit it: {_memory_limit() or NOT_PERMITTED}"
    elif "Cannot allocate memory" in output:
        reason = (
            "the kernel has no memory for programs and maps; free some, or try a smaller "
            "--max-peers, not below the number of endpoints in calls at one time"
        )
    elif lacks := requirements.lacking():
        reason = lacks
    elif "Argument list too long" in output:  # E2BIG: it gives up after a million instructions
        reason = (
            f"the kernel ({platform.release()}) finds the programs too long to verify, with so "
            "many interfaces and addresses; try fewer of them, or --no-signalling"
        )
    elif (
        "libbpf: " in output
        or "processed" in output
        or "bpf: Failed" in output
        or "open bpf map" in output
    ):
        reason = f"the kernel ({platform.release()}) refuses the programs"
    else:
        reason = "BCC could not compile the programs"
    return f"{reason}:\n{output.strip()}"


def flags(plan: Plan, settings_size: int) -> list[str]:
    """The compiler's flags: where headers are, and the constants that bpf/config.h wants."""
    settings = plan.settings
    interfaces = [*plan.wan, *plan.lan]
    defines = {
        "IS_UCM(a)": _any("a", map(_network_order, settings.ucm)),
        "IS_PUBLIC(a)": _any("a", map(_network_order, settings.public)),
        "IS_LAN(i)": _any("i", (each.index for each in plan.lan)),
        "WAN_INDEX(i)": _choice("i", {each.index: n for n, each in enumerate(plan.wan)}, 255),
        "WAN_IFINDEX(n)": _choice("n", {n: each.index for n, each in enumerate(plan.wan)}, 0),
        "LINK_HEADER(i)": _choice(
            "i", {each.index: 0 for each in interfaces if not each.link_header}, 14
        ),
        "FINDS_HEADER(i)": _any("i", (i.index for i in interfaces if i.link_header is None)),
        "WANS_WITH_HEADER": _bits(bool(each.link_header) for each in plan.wan),
        "WANS_MAKING_HEADER": _bits(each.link_header is None for each in plan.wan),
        "MOH_PORT": settings.port,
        "LAST_PHANTOM_PORT": settings.phantom_ports[-1],
        "RTP_PORT_MIN": settings.rtp_ports.low,
        "RTP_PORT_MAX": settings.rtp_ports.high,
        "TIMEOUT_NS": f"{round(settings.timeout * 1e9)}ULL",
        "MAX_PEERS": settings.max_peers,
        "MAX_WANS": MOST_INTERFACES,
        "GOES_ON_NS": f"{round(GOES_ON_SECONDS * 1e9)}ULL",
        "LONGEST_DEAF_HOLD_NS": f"{round(LONGEST_DEAF_HOLD_SECONDS * 1e9)}ULL",
        "LRU_SPARE": _lru_spare(),
        "SETTINGS_SIZE": settings_size,
        "PAGE_SIZE": mmap.PAGESIZE,
    }
    if settings.quality:
        defines["QUALITY"] = 1
    if settings.signalling:
        defines["MAX_SIGNALLED"] = maps.MOST_SIGNALLED
    if requirements.has_coarse_clock():
        defines["COARSE_CLOCK"] = 1
    if math.isfinite(settings.patience):
        defines["PATIENCE_NS"] = f"{round(settings.patience * 1e9)}ULL"
    if settings.rtcp_timeout:
        defines["RTCP_TIMEOUT_NS"] = f"{round(settings.rtcp_timeout * 1e9)}ULL"
    if settings.flip_hold:
        phantom = str(settings.port).encode()
        defines |= {
            "IS_SIP_PORT(p)": _any("p", (socket.htons(each) for each in settings.sip_ports)),
            "PHANTOM_TEXT": f"{int.from_bytes(phantom, 'little'):#x}ULL",
            "PHANTOM_DIGITS": len(phantom),
        }
    if settings.flip_hold and settings.sip_from:
        defines["MAX_SIP_FROM"] = len(settings.sip_from)
    if settings.provider:
        defines["MAX_PROVIDERS"] = len(settings.provider)
    return _flags(defines)


def _flags(defines: Mapping[str, object]) -> list[str]:
    return [
        # The verifier refuses a jump by a table, which clang makes of a switch on some machines.
        "-fno-jump-tables",
        # BCC optimizes what clang has made of the source: twice takes longer, and is no better.
        *("-Xclang", "-disable-llvm-passes"),
        # BCC defines these types itself, from its own copy of linux/bpf.h.
        "-D__LINUX_BPF_H__",
        f"-I{sources()}",
        *(f"-I{path}" for path in uapi_headers()),
        *(f"-D{name}={value}" for name, value in defines.items()),
    ]


def peers_entries(max_peers: int) -> int:
    """The entries of the map `peers` that has room for so many live ones. Raises OSError."""
    return max_peers + _lru_spare()


def _lru_spare() -> int:
    """The elements of an LRU hash beyond those that it is to keep.

    A CPU that needs one takes up to LOCAL_FREE_TARGET of them, and evicts others where that many
    are not free (kernel/bpf/bpf_lru_list.c). Newer kernels take fewer in a small map; there it is
    memory alone.
    """
    return _LOCAL_FREE_TARGET * libbpf.possible_cpus()


def _network_order(address: IPv4Address) -> int:
    """The number that the address is when its four bytes are loaded as a u32 of this machine."""
    return int.from_bytes(address.packed, sys.byteorder)


def _any(name: str, values: Any) -> str:
    return "(" + ("||".join(f"({name})=={value:#x}" for value in values) or "0") + ")"


def _choice(name: str, values: dict[int, int], otherwise: int) -> str:
    choices = "".join(f"({name})=={key}?{value}:" for key, value in values.items())
    return f"({choices}{otherwise})"


def _bits(values: Iterable[bool]) -> str:
    return f"{sum(value << n for n, value in enumerate(values)):#x}ULL"


def uapi_headers() -> list[Path]:
    """linux-libc-dev's directories: the common one, and Debian's for this architecture's asm/.
    Raises MohError if they are not there."""
    if not (_INCLUDE / "linux/pkt_cls.h").exists():
        raise MohError(*_HEADERS_MISSING)
    # The interpreter knows Debian's name: powerpc64le-linux-gnu is none that the kernel's has.
    own = _INCLUDE / str(sysconfig.get_config_var("MULTIARCH"))
    if (own / "asm/types.h").exists():
        return [_INCLUDE, own]
    guessed = sorted(_INCLUDE.glob(f"{platform.machine()}-linux-gnu*/asm/types.h"))
    return [_INCLUDE, *(path.parent.parent for path in guessed)]


def import_bcc() -> Any:
    os.environ["BCC_KERNEL_SOURCE"] = str(sources() / "headers")
    try:
        import bcc
    except ImportError as error:
        raise MohError(_BCC_MISSING, f"apt install python3-bpfcc ({error})") from error
    if not hasattr(bcc, "BPF"):
        raise MohError(*_OTHER_BCC)
    return bcc


def _check_layout(module: Any) -> None:
    """The C fields must be those that the Python names: a shifted one would lie quietly."""
    names = [name for name, _ in module[b"counters"].sLeaf._fields_]
    peer = [name for name, _ in module[b"peers"].Leaf._fields_]
    if names != list(COUNTERS) or peer != list(layout.PEER_FIELDS):
        raise MohError("bpf/layout.h and moh_ebpf/layout.py differ: reinstall moh-ebpf")


def _leave_deleted_directory() -> None:
    """BCC compiles in another directory and goes back, which fails if ours was deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


@contextlib.contextmanager
def _captured_output() -> Iterator[list[str]]:
    """What BCC, clang and libbpf write to descriptors 1 and 2, past Python; there at the end."""
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None where it was closed before we began
            stream.flush()
    captured: list[str] = []
    saved = {fd: os.dup(fd) for fd in (1, 2)}
    with os.fdopen(os.memfd_create("moh-ebpf-compiler"), "r", errors="replace") as output:
        try:
            for fd in saved:
                os.dup2(output.fileno(), fd)
            yield captured
        finally:
            for fd, copy in saved.items():
                os.dup2(copy, fd)
                os.close(copy)
            output.seek(0)
            captured.append(output.read())
