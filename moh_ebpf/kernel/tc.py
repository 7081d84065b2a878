"""Traffic control: which filters stand at an interface's two hooks, and changing them in one step.

All changes go to the kernel as one batch of netlink messages in one system call. The kernel works
through it before the call returns, so no signal, kill -9 included, stops it halfway.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from pyroute2 import IPRoute
from pyroute2.iproute import IPBatch

from moh_ebpf.errors import MohError
from moh_ebpf.kernel.netlink import whole

# Where our filters stand, on every interface. docs/packet-flow.md says what runs before and after.
PRIORITY = 4000
HANDLE = 1

_ETH_P_ALL = 0x0003
_TCA_BPF_ID = 11


class Hook(Enum):
    """A clsact hook, and the parent that means it (linux/pkt_sched.h)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Filter:
    """A filter at a hook. `program_id` and `name` are None where it is no BPF filter."""

    ifindex: int
    hook: Hook
    priority: int
    handle: int
    kind: str
    name: str | None
    program_id: int | None


def ingress_qdiscs(ipr: IPRoute) -> dict[int, str]:
    """The interfaces that have hooks: ifindex → "clsact", or the older "ingress", with one only."""
    kinds = {}
    for qdisc in whole(ipr.get_qdiscs):
        kind = qdisc.get_attr("TCA_KIND")
        if kind in ("clsact", "ingress"):
            kinds[qdisc["index"]] = kind
    return kinds


def filters(ipr: IPRoute, ifindex: int) -> list[Filter]:
    """All filters at both hooks of an interface. An interface that vanished has none."""
    found = []
    try:
        for hook in Hook:
            dump = partial(ipr.get_filters, index=ifindex, parent=hook.value)
            found += [
                _filter(ifindex, hook, message)
                for message in whole(dump)
                # A dump names each classifier once with handle 0, then its filters.
                if message["handle"] and message["index"] == ifindex
            ]
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
    return found


def _filter(ifindex: int, hook: Hook, message: Any) -> Filter:
    options = message.get_attr("TCA_OPTIONS")
    kind = message.get_attr("TCA_KIND")
    is_bpf = kind == "bpf" and options is not None
    return Filter(
        ifindex=ifindex,
        hook=hook,
        priority=message["info"] >> 16,
        handle=message["handle"],
        kind=kind,
        name=options.get_attr("TCA_BPF_NAME") if is_bpf else None,
        program_id=_program_id(options) if is_bpf else None,
    )


def _program_id(options: Any) -> int | None:
    """TCA_BPF_ID, which pyroute2 keeps undecoded: 4 bytes of header, then a u32 of the machine."""
    for name, nla in options["attrs"]:
        if name == "UNKNOWN" and nla["header"]["type"] == _TCA_BPF_ID:
            (program_id,) = struct.unpack_from("=I", nla.data, nla.offset + 4)
            return int(program_id)
    return None


def _ours(ifindex: int, hook: Hook) -> dict[str, int]:
    """What names our filter at a hook to the kernel."""
    return {
        "index": ifindex,
        "parent": hook.value,
        "prio": PRIORITY,
        "handle": HANDLE,
        "protocol": _ETH_P_ALL,
    }


# What the kernel lacks if it does not find (ENOENT) what it is to add.
_LACKS_QDISC = "this kernel lacks the clsact qdisc (module sch_ingress, CONFIG_NET_SCH_INGRESS)"
_LACKS_CLASSIFIER = "this kernel lacks BPF filters (module cls_bpf, CONFIG_NET_CLS_BPF)"


@dataclass(frozen=True)
class _Step:
    """A change: `what` it makes, its netlink `message`, and what ENOENT for an answer means."""

    what: str
    message: bytes
    not_found: str

    def error(self, code: int, why: str) -> MohError:
        said = f"{os.strerror(code)}{f' ({why})' if why else ''}"
        if code == errno.ENOENT and self.not_found:
            said = f"{self.not_found}: {said}"
        return MohError(f"{self.what}: {said}")


class Batch:
    """Changes to make in one step, in the order they are added."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []

    def add_clsact(self, ifindex: int) -> None:
        """Give an interface its hooks; an error if it has them."""
        self._add(f"clsact on {_name(ifindex)}", _LACKS_QDISC, "add", "clsact", index=ifindex)

    def delete_clsact(self, ifindex: int) -> None:
        """Take an interface's hooks, and every filter at them, away."""
        self._add(
            f"no clsact on {_name(ifindex)}", "", "del", "clsact", index=ifindex, handle=0xFFFF0000
        )

    def replace_filter(self, ifindex: int, hook: Hook, name: str, fd: int) -> None:
        """Put our filter there, with the program of this fd; one of ours there is replaced."""
        self._add(
            f"{name} on {_name(ifindex)} {hook}",
            _LACKS_CLASSIFIER,
            "replace-filter",
            "bpf",
            **_ours(ifindex, hook),
            fd=fd,
            name=name,
            direct_action=True,
        )

    def delete_filter(self, ifindex: int, hook: Hook) -> None:
        """Take our filter away from there."""
        self._add(
            f"no filter on {_name(ifindex)} {hook}",
            "",
            "del-filter",
            "bpf",
            **_ours(ifindex, hook),
        )

    def _add(self, what: str, not_found: str, *arguments: Any, **options: Any) -> None:
        encoder = IPBatch()
        try:
            encoder.tc(*arguments, **options)
            self.steps.append(_Step(what, bytes(encoder.batch), not_found))
        finally:
            encoder.close()

    def send(self) -> list[MohError]:
        """Do it all. What failed comes back as errors; the steps after it were done still."""
        if not self.steps:
            return []
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.bind((0, 0))
            _ask_for_explanations(netlink)
            # Every answer must fit, for a lost one would be a step we know nothing about.
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 * len(self.steps))
            message = b"".join(
                _numbered(step.message, number) for number, step in enumerate(self.steps)
            )
            netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(message) + 4096)
            netlink.send(message)
            answers = _answers(netlink, len(self.steps))
        return [
            step.error(code, why)
            for step, (code, why) in zip(self.steps, answers, strict=True)
            if code
        ]


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex} (gone)"


# The message header and the answer of netlink(7): struct nlmsghdr, struct nlmsgerr.
_HEADER = struct.Struct("=IHHII")
_NLMSG_ERROR = 2
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11


def _ask_for_explanations(netlink: socket.socket) -> None:
    """The kernel's own words with an error (extended acks), and not our message back."""
    netlink.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    netlink.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)


def _numbered(message: bytes, number: int) -> bytes:
    length, kind, flags, _, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, flags, number, port) + message[_HEADER.size :]


def _answers(netlink: socket.socket, expected: int) -> list[tuple[int, str]]:
    """For each numbered message the errno (0: done) and the kernel's explanation, if any."""
    answers: dict[int, tuple[int, str]] = {}
    while len(answers) < expected:
        data = netlink.recv(1 << 16)
        while data:
            length, kind, _, number, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, _HEADER.size)
                answers[number] = (-code, _explanation(data[_HEADER.size + 4 + 16 : length]))
            data = data[(length + 3) & ~3 :]
    return [answers[number] for number in range(expected)]


def _explanation(attributes: bytes) -> str:
    while len(attributes) >= 4:
        length, kind = struct.unpack_from("=HH", attributes)
        if kind & 0x3FFF == _NLMSGERR_ATTR_MSG:
            return attributes[4:length].rstrip(b"\0").decode(errors="replace")
        attributes = attributes[max(4, (length + 3) & ~3) :]
    return ""
