"""Questions to the machine: rights, interfaces, hooks, sysctls, sockets, modules."""

import ctypes
import fcntl
import importlib.util
import os
import re
import socket
import struct
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf.attach import compiler, obstacles
from moh_ebpf.attach.plan import make_plan
from moh_ebpf.errors import MohError, UsageError
from moh_ebpf.kernel import interfaces, tc
from moh_ebpf.kernel.interfaces import Interface, interface_name
from moh_ebpf.kernel.namespace import in_new_namespace
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.kernel.tc import Batch
from moh_ebpf.settings import Settings

# linux/capability.h. Those that attach and every command that reads need.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}


def usable_interfaces(
    ipr: IPRoute, links: Mapping[str, Any], settings: Settings, attached_to: Collection[int]
) -> tuple[list[Interface], list[Interface], list[MohError]]:
    """Those that can be used, and what is wrong with the others, each by itself."""
    wan: list[Interface] = []
    lan: list[Interface] = []
    unfit: list[MohError] = []
    for option, names, usable in (("--wan", settings.wan, wan), ("--lan", settings.lan, lan)):
        for name in names:
            try:
                usable += interfaces.named(ipr, links, option, [name], attached_to)
            except UsageError as error:
                unfit.append(error)
    if not unfit:
        try:
            make_plan(ipr, settings, attached_to, links)
        except UsageError as error:
            unfit.append(error)
    return wan, lan, unfit


def without_carrier(ipr: IPRoute, names: Collection[str]) -> list[str]:
    return [
        link.get_attr("IFLA_IFNAME")
        for link in whole(ipr.get_links)
        if link.get_attr("IFLA_IFNAME") in names and link.get_attr("IFLA_CARRIER") == 0
    ]


def local_addresses(ipr: IPRoute) -> dict[IPv4Address, str]:
    return {
        IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")): (
            interface_name(message["index"])
        )
        for message in whole(lambda: ipr.get_addr(family=socket.AF_INET))
    }


def lacking_rights() -> list[str]:
    """What we are not, or have not: root, and the capabilities that are effective."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return lacks
    return lacks + capabilities_lacking(status)


def capabilities_lacking(status: str) -> list[str]:
    """The capabilities that are not effective, by /proc/self/status."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(effective[1], 16) if effective else -1
    return [name for name, bit in _CAPABILITIES.items() if not mask >> bit & 1]


def which_bcc() -> str:
    """Is BCC's module there? Found without importing it, which takes long."""
    spec = importlib.util.find_spec("bcc")
    if spec is None:
        return "missing"
    folders = spec.submodule_search_locations or []
    return "there" if any(Path(each, "libbcc.py").exists() for each in folders) else "other"


def has_headers() -> bool:
    try:
        compiler.uapi_headers()
    except MohError:
        return False
    return True


def why_no_hooks(
    ipr: IPRoute, interfaces: Sequence[Interface], wan: Sequence[Interface]
) -> MohError | None:
    """Why an interface cannot have both hooks; None if it can, or has them."""
    kinds = tc.ingress_qdiscs(ipr)
    for obstacle in obstacles.without_egress(wan, kinds):
        return obstacle
    if any(each.index in kinds for each in interfaces):
        return None
    # As `attach --dry-run`, on a loopback interface.
    batch = Batch()
    batch.add_clsact(1)
    errors = in_new_namespace(batch.send)
    return MohError(str(errors[0]), "modprobe sch_ingress cls_bpf") if errors else None


def sysctls_of(names: Sequence[str]) -> dict[str, int]:
    wanted = ["net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter"]
    wanted += [f"net.ipv4.conf.{name}.{what}" for name in names
               for what in ("forwarding", "rp_filter")]  # fmt: skip
    wanted += [f"net.netfilter.nf_conntrack_{name}" for name in
               ("helper", "udp_timeout", "udp_timeout_stream")]  # fmt: skip
    found = {}
    for name in wanted:
        # An interface's name may have a dot: eth1.7.
        parts = re.fullmatch(r"(net\.ipv4\.conf)\.(.+)\.(\w+)", name)
        path = "/".join([parts[1].replace(".", "/"), parts[2], parts[3]]) if parts else (
            name.replace(".", "/"))  # fmt: skip
        with suppress(OSError, ValueError):
            found[name] = int(Path("/proc/sys", path).read_text(encoding="ascii"))
    return found


def udp_sockets() -> list[str]:
    lines: list[str] = []
    for name in ("udp", "udp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            lines += Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
    return lines


def loaded_modules() -> list[str]:
    """The modules loaded; none on a kernel that has none."""
    try:
        text = Path("/proc/modules").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [line.split()[0] for line in text.splitlines()]


# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _FEATURES = 0x1B, 0x37, 0x3A, 4


def has_feature(interface: str, feature: str = "hw-tc-offload") -> bool:
    """Is this feature on, by the kernel's name for it (`ethtool -k`)? Raises OSError."""

    def ask(request: bytes, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(request, size)
        name = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(buffer))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, name)
        return buffer.raw

    (count,) = struct.unpack_from(
        "=I", ask(struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _FEATURES), 20), 16
    )
    strings = ask(struct.pack("=III", _GSTRINGS, _FEATURES, count), 12 + 32 * count)
    names = [strings[12 + 32 * n :][:32].rstrip(b"\0") for n in range(count)]
    if feature.encode() not in names:
        return False
    words = (count + 31) // 32
    features_now = ask(struct.pack("=II", _GFEATURES, words), 8 + 16 * words)
    index = names.index(feature.encode())
    (active,) = struct.unpack_from("=I", features_now, 8 + 16 * (index // 32) + 8)
    return bool(active >> index % 32 & 1)
