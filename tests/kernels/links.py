"""What came of tests/netns/test_links.py under each kernel: docs/links.json, and the page of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.support.links import KINDS, REFUSED

MODULE = "test_links.py"
_CASE = re.compile(
    r"test_(?:(?P<role>wan|lan)_\w+|refused)\[(?:(?P<other>wan|lan)-)?(?P<kind>.+)\]"
)
# The worst of a kind's tests is what is said of it.
_WORKS, _REFUSED, _MISSING, _FAILED = "works", "refused", "not there", "fails"
_ORDER = [_WORKS, _REFUSED, _MISSING, _FAILED]

Outcomes = dict[str, dict[str, str]]


def read(junit: Path) -> Outcomes:
    """By kind and role ("wan", "lan"); empty if no such test has run."""
    try:
        root = ElementTree.parse(junit).getroot()
    except (OSError, ElementTree.ParseError):
        return {}
    found: Outcomes = {}
    for case in root.iter("testcase"):
        name = _CASE.fullmatch(case.get("name", ""))
        if name and case.get("classname", "").endswith("test_links"):
            roles = found.setdefault(name["kind"], {})
            role = name["role"] or name["other"]
            roles[role] = max(roles.get(role, _WORKS), _outcome(case), key=_ORDER.index)
    return found


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return _FAILED
    if case.find("skipped") is not None:
        return _MISSING
    return _REFUSED if case.get("name", "").startswith("test_refused") else _WORKS


def write(release: str, outcomes: Outcomes, commit: str, directory: Path = Path("docs")) -> None:
    """Keep them in links.json, in the place of what this series of kernels had there before, and
    make links.md anew of all that is kept."""
    file = directory / "links.json"
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        kept = {}
    kept[series(release)] = {"release": release, "commit": commit, "outcomes": outcomes}
    kept = dict(sorted(kept.items(), key=lambda each: [*map(int, each[0].split("."))]))
    file.write_text(json.dumps(kept, indent=2) + "\n")
    (directory / "links.md").write_text("\n".join(page(kept)) + "\n")


def series(release: str) -> str:
    """6.12.117+deb12-amd64 is one of 6.12."""
    return ".".join(release.split(".")[:2])


_HEAD = """# Kinds of links

Which kinds of interfaces can be `--wan` and `--lan`. Each was tried with real packets over a real
link of its kind, to a host in another namespace, with real ESP for xfrm and vti, in QEMU's
software emulation; `scripts/test-kernels` writes this page when it runs
`tests/netns/test_links.py`.

- As **WAN**: RTP to port 4000 is learned and consumed; hold music leaves from `public:4000`, by
  bypass and, where nothing is NATed, by enforce; a two-way call passes both ways.
- As **LAN**: UCM's hold music leaves by a veth, a VLAN with `reorder_hdr off`, xfrm, multipoint
  GRE and tun, also as one packet that is several (GSO); a two-way call passes both ways.

In all of them the far end has looked at address, port, TTL and both checksums. SIP that comes in
by any of them is heard.
"""

_REFUSALS = """
## Refused

attach and doctor refuse these by name, because the packets that matter never pass tc there.

| kind | name instead |
| --- | --- |
| VRF | its ports: the interfaces that `ip link show master NAME` lists |
| IFB | the interface whose packets are redirected to it |
| ipvlan, mode l3s | as WAN, the same in another mode: `ip link set NAME type ipvlan mode l3` |
| any ipvlan, with `--lan` | the interface below: an ipvlan is given only what is sent to itself |
| port of a bridge, bond or team, with `--lan` | the bridge, bond or team |
| loopback | the interface that the provider or UCM is behind |
| tunnels over IPv6 (ip6tnl, ip6gre, vti6), SIT, and link types without IP | |

## Where the IP header is

Most kinds have it at one place, which attach knows: after the 14 bytes of Ethernet, or at once.
On xfrm, vti, GRE, IPIP and others without a link header of their own, and on VLANs with
`reorder_hdr off`, it depends on the hook, the packet and the kernel: there the programs look for
it in each packet ([packet-flow.md](packet-flow.md#reading)). A VLAN whose `reorder_hdr` is
changed must be attached again."""


def page(kept: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield _HEAD
    yield "| kernel | commit |\n| --- | --- |"
    for each in kept.values():
        yield f"| {each['release']} | `{each['commit']}` |"
    yield "\n| kind | as WAN | as LAN |\n| --- | --- | --- |"
    for kind in [*KINDS, *REFUSED]:
        cells = [_cell(kept, kind.name, role) for role in ("wan", "lan")]
        yield f"| {kind.name} | {' | '.join(cells)} |"
    yield _REFUSALS


def _cell(kept: dict[str, dict[str, Any]], kind: str, role: str) -> str:
    """One word if it is the same everywhere."""
    where: dict[str, list[str]] = {}
    for name, each in kept.items():
        outcome = each["outcomes"].get(kind, {}).get(role, _MISSING)
        where.setdefault(outcome, []).append(name)
    if len(where) == 1:
        return next(iter(where))
    return "; ".join(f"{outcome} on {', '.join(names)}" for outcome, names in where.items())
