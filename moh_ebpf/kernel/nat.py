"""Does this firewall rewrite source addresses? Asked of nft and iptables."""

import re
import shutil
import subprocess
from pathlib import Path

# Of a warning's hint, attach does not wait longer than that.
_NFT_SECONDS = 5.0


def source_nat() -> str | None:
    """Where this namespace's rules rewrite sources, by the first rule found; None if nowhere.

    A hint for a warning, so what cannot be asked (no nft, no rights, no answer in time) counts as
    nothing.
    """
    match = re.search(
        r"^.*\b(?:masquerade|snat|xt target \"\w*(?:NAT|MASQ)).*$", _ruleset(), re.M | re.I
    )
    if match:
        return f"nftables: {match[0].strip()}"
    try:
        legacy = Path("/proc/net/ip_tables_names").read_text(encoding="ascii").split()
    except OSError:
        legacy = []
    return "iptables-legacy has a nat table" if "nat" in legacy else None


def _ruleset() -> str:
    """What nft says; empty if it says nothing."""
    if not shutil.which("nft"):
        return ""
    try:
        return subprocess.run(
            ["nft", "--stateless", "list", "ruleset"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_NFT_SECONDS,
        ).stdout
    except subprocess.TimeoutExpired:
        return ""
