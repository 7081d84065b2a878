"""Checks of the machine."""

import sys
from ipaddress import IPv4Address, IPv6Address

from moh_ebpf.doctor.check import Findings, check
from moh_ebpf.doctor.facts import Facts
from moh_ebpf.doctor.findings import Level
from moh_ebpf.errors import NOT_PERMITTED


@check("privileges", "all rights are there")
def privileges(facts: Facts) -> Findings:
    if facts.lacking_rights:
        yield (
            Level.ERROR,
            f"this lacks {', '.join(facts.lacking_rights)}; attach would fail",
            "/proc/self/status: CapEff, and the effective user",
            NOT_PERMITTED,
        )


@check("kernel", "the kernel has what the programs need", "kernel")
def kernel(facts: Facts) -> Findings:
    if facts.lacking_rights:
        yield (
            Level.NOTE,
            "the kernel can be asked with all rights only",
            f"this lacks {', '.join(facts.lacking_rights)}",
            NOT_PERMITTED,
        )
    elif facts.kernel_lacks:
        yield (
            Level.ERROR,
            "the kernel lacks what the programs need",
            facts.kernel_lacks,
            "boot a kernel that has it: Linux 5.10 or later does",
        )


@check("compiler", "BCC and the headers it needs are there")
def compiler(facts: Facts) -> Findings:
    if facts.bcc == "missing":
        yield Level.ERROR, "BCC's Python module is missing", "import bcc", "apt install " + _BCC
    if facts.bcc == "other":
        yield (
            Level.ERROR,
            "the Python module named bcc is not BCC: PyPI's is another program",
            "import bcc",
            f"pip uninstall bcc; apt install {_BCC}",
        )
    if not facts.headers:
        yield (
            Level.ERROR,
            "the C library's kernel headers are missing",
            "/usr/include/linux/pkt_cls.h",
            "apt install linux-libc-dev",
        )


_BCC = "python3-bpfcc"


@check("interfaces", "the interfaces are up", "interfaces")
def interfaces(facts: Facts) -> Findings:
    for error in facts.unfit:
        yield (
            Level.ERROR,
            "an interface cannot be used",
            error.what,
            error.remedy or "ip -br addr",
        )
    for name in facts.without_carrier:
        yield (
            Level.ERROR,
            f"{name} has no carrier",
            f"ip link show dev {name}: NO-CARRIER",
            "look at the cable, or the far end",
        )


@check("clsact", "the programs can be attached there", "hooks")
def clsact(facts: Facts) -> Findings:
    if facts.no_hooks:
        error = facts.no_hooks
        yield Level.ERROR, "the programs cannot be attached", error.what, error.remedy
    for each in facts.in_our_place:
        yield (
            Level.ERROR,
            f"somebody else's filter stands at our priority on {each.where}",
            each.evidence,
            f"move it to another priority; see: tc filter show dev {each.where}",
        )


@check("public-address", "the public addresses are here", "addresses")
def public_address(facts: Facts) -> Findings:
    for address in facts.settings.public:
        if address not in facts.addresses:
            yield (
                Level.NOTE,
                f"the public address {address} is on no interface here: right if the provider's "
                "RTP is routed to it, wrong if a WAN's address has changed",
                f"ip addr show to {address}: none",
                "leave --public out to use the WANs' own, or attach again if one has changed",
            )


@check("listeners", "no socket listens on the phantom ports", "sockets")
def listeners(facts: Facts) -> Findings:
    for line in facts.sockets:
        address, port = listening(line) or (None, 0)
        # learn takes what is sent to the public addresses, no more.
        if port in facts.settings.phantom_ports and address in (ANY, *facts.settings.public):
            yield (
                Level.WARNING,
                f"a socket listens on UDP {port}, and hears no RTP from the WAN: that ends in "
                "learn",
                f"/proc/net/udp: {' '.join(line.split()[1:4])}",
                f"see whose it is: ss -lunp 'sport = :{port}'; give it another port",
            )


ANY = IPv4Address("0.0.0.0")  # what a socket listens on that listens on all


def listening(line: str) -> tuple[IPv4Address, int] | None:
    """Where a line of /proc/net/udp or udp6 listens to IPv4, 0.0.0.0 for all addresses; None if it
    does not."""
    local, state = line.split()[1], line.split()[3]
    if state != "07":  # it has a far end
        return None
    digits, port = local.split(":")
    # Words of 32 bits, each as a number of this machine's.
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    address = IPv6Address(packed)
    by_ipv4 = ANY if address.is_unspecified else address.ipv4_mapped
    return (by_ipv4, int(port, 16)) if by_ipv4 else None
