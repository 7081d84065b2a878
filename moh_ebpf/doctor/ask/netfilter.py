"""Questions to netfilter: rules and connections."""

import json
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from moh_ebpf.doctor import rules
from moh_ebpf.doctor.facts import Connection
from moh_ebpf.doctor.iptables import from_iptables
from moh_ebpf.doctor.nft import from_nft, xt_tables
from moh_ebpf.doctor.rules import Ruleset
from moh_ebpf.errors import MohError
from moh_ebpf.settings import Settings

_MOST_ENTRIES = 1_000_000  # conntrack's, read at most
_PATIENCE_SECONDS = 30


def _run(*command: str) -> str:
    """What a command prints. Raises OSError if it is not there, MohError if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_PATIENCE_SECONDS,
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise MohError(f"{' '.join(command)}: {why[0] if why else f'exit {done.returncode}'}")
    return done.stdout


def ruleset(modules: Collection[str] = ()) -> Ruleset:
    """The rules of nftables, iptables-nft and iptables-legacy together.

    Raises OSError or MohError where there may be rules that cannot be read.
    """
    found = []
    if shutil.which("nft"):
        objects = _nft_objects(_run("nft", "-j", "list", "ruleset"))
        theirs = xt_tables(objects)
        if theirs and shutil.which("iptables-nft-save"):
            found.append(from_iptables(_run("iptables-nft-save"), "iptables-nft"))
        else:
            theirs = set()
        text = _run("nft", "-a", "list", "ruleset")
        found.append(from_nft(objects, text, theirs))
    elif "nf_tables" in modules or not modules:  # it may be built in
        raise MohError("nftables' rules cannot be read: nft is not in PATH (package nftables)")
    # Only where its tables are there already: asking for them would make them.
    tables = Path("/proc/net/ip_tables_names")
    with suppress(FileNotFoundError):
        if tables.read_text(encoding="ascii").strip():
            saved = _run("iptables-legacy-save")
            found.append(from_iptables(saved, "iptables-legacy"))
    return rules.merged(found)


def _nft_objects(text: str) -> list[dict[str, Any]]:
    try:
        return list(json.loads(text)["nftables"])
    except (ValueError, KeyError, TypeError) as error:
        raise MohError(f"nft -j list ruleset: not understood: {error}") from error


def connections(settings: Settings) -> list[Connection]:
    """conntrack's entries that bear on UCM's ports, or the phantom's. Raises OSError, MohError."""
    try:
        with Path("/proc/net/nf_conntrack").open(encoding="ascii", errors="replace") as lines:
            return telling_connections(settings, lines)
    except FileNotFoundError:
        # Without the file, conntrack may not be in the kernel, or the file not configured.
        if shutil.which("conntrack"):
            said = _run("conntrack", "-L", "-p", "udp", "-f", "ipv4")
            return telling_connections(settings, said.splitlines())
        if Path("/proc/sys/net/netfilter/nf_conntrack_count").exists():
            raise MohError(
                "conntrack's entries cannot be read: conntrack is not in PATH (package conntrack)"
            ) from None
        return []


_ENTRY = re.compile(
    r"\budp\b.*?\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
    r".*?\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
)


def connection(line: str) -> Connection | None:
    """An entry of conntrack's as /proc/net/nf_conntrack and `conntrack -L` have it, if of UDP."""
    found = _ENTRY.search(line)
    if not found:
        return None
    src, dst, sport, dport, back_src, back_dst, back_sport, back_dport = found.groups()
    return Connection(
        (src, int(sport)),
        (dst, int(dport)),
        (back_src, int(back_sport)),
        (back_dst, int(back_dport)),
        " ".join(line.split()),
    )


def telling_connections(settings: Settings, lines: Iterable[str]) -> list[Connection]:
    """Entries of UCM's RTP with another port than UCM's outside, and of other hosts with a phantom
    port there."""
    ucm, public = set(map(str, settings.ucm)), set(map(str, settings.public))
    phantom = settings.phantom_ports
    found = []
    for number, line in enumerate(lines):
        if number >= _MOST_ENTRIES:
            break
        one = connection(line) if "udp" in line else None
        if one is None or one.answer_to[0] not in public:
            continue
        port, outside = one.source[1], one.answer_to[1]
        is_moved = port in settings.rtp_ports and outside != port
        if is_moved if one.source[0] in ucm else outside in phantom:
            found.append(one)
    return found
