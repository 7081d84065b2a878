"""What a system has of all that moh_ebpf stands on, as JSON; run there, by its Python."""

import ctypes
import json
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import bcc


def loaded(library: str) -> str:
    """The version in the name of a library that BCC has brought into this process."""
    found = re.search(rf"/{library}[-.a-z]*([0-9.]*[0-9])", Path("/proc/self/maps").read_text())
    return found[1] if found else "?"


def libbpf() -> str:
    library = ctypes.CDLL("libbpf.so.1")
    library.libbpf_version_string.restype = ctypes.c_char_p
    return library.libbpf_version_string().decode().lstrip("v")


def nft() -> str:
    said = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"[0-9.]*[0-9]", said)[0]


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "bcc": bcc.__version__,
        "llvm": loaded("libLLVM"),
        "libbpf": libbpf(),
        "nft": nft(),
        **{name: metadata.version(name) for name in ("pyroute2", "typer", "rich")},
    }


if __name__ == "__main__":
    print(json.dumps(versions()))
