"""What the numbers were measured on."""

import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench import native

# What each says of its version, the first number with a dot in it.
_VERSIONS = {
    "nft": ["nft", "--version"],
    "iptables": ["iptables", "--version"],
    "ipset": ["ipset", "--version"],
    "gcc": ["gcc", "-dumpfullversion"],
}


def describe() -> dict[str, Any]:
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "cpu": _of("/proc/cpuinfo", r"model name\s*: (.*)"),
        "cores": os.cpu_count(),
        "hypervisor": bool(re.search(r"\bhypervisor\b", Path("/proc/cpuinfo").read_text())),
        "measured_on_cpu": native.CPU,
        "kernel": platform.release(),
        "system": _of("/etc/os-release", r'PRETTY_NAME="(.*)"'),
        "mitigations": _of("/sys/devices/system/cpu/vulnerabilities/spectre_v2", r"(.*)"),
        "clocksource": _of(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource", r"(.*)"
        ),
        "load_before": os.getloadavg()[0],
        "versions": _versions(),
    }


def _of(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def _versions() -> dict[str, str]:
    found = {name: _version(command) for name, command in _VERSIONS.items()}
    return {"Python": platform.python_version()} | found | _compiler()


def _version(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return "none"
    number = re.search(r"\d+\.[\d.]*\d", said)
    return number[0] if number else "unknown"


def _compiler() -> dict[str, str]:
    """BCC, and the clang inside it: the one that Debian's libbcc is linked to."""
    packages = ["python3-bpfcc", "libbpf1"]
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\n", *packages]
    shown = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    versions = dict(line.split() for line in shown.splitlines())
    depends = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Depends}", "libbpfcc"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    clang = re.search(r"libclang(?:-cpp|1-)(\d+)|libllvm(\d+)", depends, re.IGNORECASE)
    return {
        "BCC": versions.get("python3-bpfcc", "unknown"),
        "libbpf": versions.get("libbpf1", "unknown"),
        "clang in BCC": next(filter(None, clang.groups())) if clang else "unknown",
    }
