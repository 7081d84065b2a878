"""`doctor`: what may keep hold music from being heard, each finding with its evidence and a remedy.

It only looks. A check is a function from the facts to findings; one that finds nothing is well.
What cannot be asked (no nft, no such file) is no finding. docs/operations.md lists the checks.
"""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from moh_ebpf import attachment, features, misfits, network, registry
from moh_ebpf.compiler import Plan, uapi_headers
from moh_ebpf.errors import MohError
from moh_ebpf.peers import Snapshot
from moh_ebpf.registry import Found
from moh_ebpf.settings import Settings

_NUD_FAILED = 0x20  # linux/neighbour.h
# A pause this near to the timeout will be longer than it some day.
_NEAR = 0.8


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """What a check has found: `evidence` is the rule, value or route itself."""

    check: str
    level: Level
    found: str
    evidence: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """One object of `doctor --json`."""
        return {
            "check": self.check,
            "level": str(self.level),
            "found": self.found,
            "evidence": self.evidence,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Facts:
    """What the checks look at. `before` and `after` are two snapshots, `seconds` apart; None where
    nothing is attached. `ruleset` is nft's list of objects, `legacy` what iptables-legacy-save has.
    """

    ipr: IPRoute = field(repr=False)
    plan: Plan
    found: Found
    before: Snapshot | None
    after: Snapshot | None
    seconds: float
    ruleset: list[dict[str, Any]]
    legacy: str

    @property
    def settings(self) -> Settings:
        return self.plan.settings


Findings = Iterator[tuple[Level, str, str, str]]  # level, found, evidence, remedy


def examine(settings: Settings | None, seconds: float) -> list[Finding]:
    """All findings, for these settings, or, where there are none, for those of what is attached.

    Where calls may be seen, they are looked at for so many seconds. Raises MohError: not root, no
    settings, or settings that do not fit this machine's interfaces.
    """
    registry.require_root()
    with IPRoute() as ipr, registry.found(ipr) as found:
        chosen = settings or (found.attached.record.settings if found.attached else None)
        if chosen is None:
            raise MohError("nothing is attached here; say what is to be, with --config FILE")
        plan = attachment.make_plan(ipr, chosen, {place.ifindex for place in found.filters})
        before = found.attached.snapshot() if found.attached else None
        if before:
            time.sleep(seconds)
        after = found.attached.snapshot() if found.attached else None
        facts = Facts(ipr, plan, found, before, after, seconds, _nft_ruleset(), _legacy_rules())
        return [finding for name, check in CHECKS.items() for finding in _run(name, check, facts)]


def worst(findings: list[Finding]) -> Level:
    """The worst level of all."""
    return max((each.level for each in findings), default=Level.OK)


def _run(name: str, check: "Check", facts: Facts) -> list[Finding]:
    found = [Finding(name, *each) for each in check.look(facts)]
    return found or [Finding(name, Level.OK, check.well)]


# The machine


def _kernel(facts: Facts) -> Findings:
    lacks = features.lacking()
    if lacks:
        yield Level.ERROR, lacks, "", "boot a kernel that has it; Linux 5.10 or later does"


def _compiler(facts: Facts) -> Findings:
    if importlib.util.find_spec("bcc") is None:
        yield (
            Level.ERROR,
            "BCC's Python module is missing",
            "import bcc",
            "apt install python3-bpfcc",
        )
    try:
        uapi_headers()
    except MohError as error:
        found, _, remedy = str(error).partition("; try: ")
        yield Level.ERROR, found, "/usr/include/linux", remedy


def _sysctl(name: str) -> int:
    try:
        return int(Path("/proc/sys", *name.split("/")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1


def _forwarding(facts: Facts) -> Findings:
    for each in facts.plan.lan:
        name = f"net/ipv4/conf/{each.name}/forwarding"
        if _sysctl(name) == 0:
            yield (
                Level.ERROR,
                f"packets that come in by {each.name} are not forwarded",
                f"{name.replace('/', '.')} = 0",
                "sysctl -w net.ipv4.ip_forward=1",
            )


def _rp_filter(facts: Facts) -> Findings:
    """Strict, it drops what comes in by another uplink than the route back. tc sees it first, so
    hold music is learned all the same, and two-way calls are one-way."""
    if len(facts.plan.wan) < 2:
        return
    for each in facts.plan.wan:
        name = f"net/ipv4/conf/{each.name}/rp_filter"
        if max(_sysctl(name), _sysctl("net/ipv4/conf/all/rp_filter")) == 1:
            yield (
                Level.WARNING,
                f"strict reverse path filtering on {each.name}, with more than one WAN: two-way "
                "RTP that comes in by another uplink than the route back is dropped",
                f"{name.replace('/', '.')} = 1",
                f"sysctl -w {name.replace('/', '.')}=2",
            )


# Routes and neighbours


def _route(ipr: IPRoute, address: IPv4Address) -> tuple[int, str | None] | None:
    """The ifindex and the gateway of the route there; None if there is none."""
    try:
        (route,) = ipr.route("get", dst=str(address))
    except NetlinkError:
        return None
    return route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY")


def _ucm_route(facts: Facts) -> Findings:
    lan = {each.index for each in facts.plan.lan}
    for address in facts.settings.ucm if lan else ():
        route = _route(facts.ipr, address)
        by = registry.interface_name(route[0]) if route else "none"
        if not route or route[0] not in lan:
            yield (
                Level.WARNING,
                f"UCM's {address} is not behind --lan {' '.join(facts.settings.lan)}: its packets "
                "probably come in elsewhere, where bypass does not see them",
                f"ip route get {address}: dev {by}",
                f"name that interface: --lan {by}" if route else f"add a route to {address}",
            )


def _provider_addresses(facts: Facts) -> list[IPv4Address]:
    """Where the provider's media may be: each network's first address, and who is live now."""
    live = [IPv4Address(each.address) for each in (facts.after.peers if facts.after else [])
            if not each.expired]  # fmt: skip
    networks = [each.network_address + (each.prefixlen < 31) for each in facts.settings.provider]
    return list(dict.fromkeys([*networks[:64], *live[:64]]))


def _wan_route(facts: Facts) -> Findings:
    wan = {each.index for each in facts.plan.wan}
    for address in _provider_addresses(facts):
        route = _route(facts.ipr, address)
        if route is None:
            yield (
                Level.ERROR,
                f"there is no route to the provider's {address}",
                f"ip route get {address}: unreachable",
                "ip route add default via GATEWAY",
            )
        elif route[0] not in wan:
            by = registry.interface_name(route[0])
            yield (
                Level.WARNING,
                f"the route to the provider's {address} is not by a WAN that is named",
                f"ip route get {address}: dev {by}",
                f"name it as well: --wan {' '.join(facts.settings.wan)} {by}",
            )


def _wan_neighbour(facts: Facts) -> Findings:
    gateways = {
        message.get_attr("RTA_GATEWAY"): message.get_attr("RTA_OIF")
        for message in facts.ipr.get_routes(family=2)
        if message.get_attr("RTA_OIF") in {each.index for each in facts.plan.wan}
    }
    for message in facts.ipr.get_neighbours(family=2):
        address = message.get_attr("NDA_DST")
        if gateways.get(address) == message["ifindex"] and message["state"] & _NUD_FAILED:
            name = registry.interface_name(message["ifindex"])
            yield (
                Level.ERROR,
                f"the gateway {address} does not answer on {name}",
                f"ip neigh show {address} dev {name}: FAILED",
                f"look at the link and the address: ip addr show dev {name}",
            )


# Netfilter


def _nft_ruleset() -> list[dict[str, Any]]:
    if not shutil.which("nft"):
        return []
    done = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=False)
    try:
        return list(json.loads(done.stdout)["nftables"])
    except (ValueError, KeyError):
        return []


def _legacy_rules() -> str:
    """Only where the tables are there already, for asking would load the modules."""
    tables = Path("/proc/net/ip_tables_names")
    if not tables.exists() or not shutil.which("iptables-legacy-save"):
        return ""
    done = subprocess.run(["iptables-legacy-save"], capture_output=True, text=True, check=False)
    return done.stdout


def _nft_rules(facts: Facts) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each rule with where it stands, as `table chain handle`."""
    for each in facts.ruleset:
        rule = each.get("rule")
        if rule:
            where = f"{rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}"
            yield where, rule


def _phantom_port_rules(facts: Facts) -> Findings:
    """A NAT or notrack rule about the phantom ports is of an earlier cure, and takes the port."""
    ports = {facts.settings.port, facts.settings.port + 1}
    remedy = "remove it: hold music needs no rule, and its port is moh_ebpf's"
    for where, rule in _nft_rules(facts):
        text = json.dumps(rule["expr"])
        nats = [kind for kind in ("snat", "dnat", "redirect", "notrack") if f'"{kind}"' in text]
        if nats and ports & {int(number) for number in re.findall(r"\b\d{1,5}\b", text)}:
            yield Level.WARNING, f"a {nats[0]} rule names port {min(ports)}", where, remedy
    for line in facts.legacy.splitlines():
        if re.search(r"-j (SNAT|DNAT|REDIRECT|NOTRACK|CT)\b", line) and any(
            re.search(rf"\b{port}\b", line) for port in ports
        ):
            yield Level.WARNING, f"a rule of NAT names port {min(ports)}", line, remedy


def _input_chain(facts: Facts) -> Findings:
    """Where INPUT accepts RTP and no DNAT leads to UCM, inbound two-way RTP makes conntrack entries
    for the firewall itself, and SNAT then moves UCM's ports."""
    nat = network.source_nat()
    chains = [each["chain"] for each in facts.ruleset if "chain" in each]
    inputs = [chain for chain in chains if chain.get("hook") == "input"]
    text = json.dumps([rule["expr"] for _, rule in _nft_rules(facts)])
    drops = any('"drop"' in json.dumps(rule["expr"]) for _, rule in _nft_rules(facts)
                if any(rule["chain"] == chain["name"] for chain in inputs))  # fmt: skip
    closed = drops or any(chain.get("policy") == "drop" for chain in inputs)
    if not nat or closed or '"dnat"' in text or ":INPUT DROP" in facts.legacy:
        return
    yield (
        Level.WARNING,
        "nothing in INPUT drops packets: RTP that comes in before UCM's may make a conntrack entry "
        "for the firewall itself, and SNAT then gives UCM's packets another port",
        f"{nat}; " + (", ".join(f"chain {each['family']} {each['table']} {each['name']} policy "
                                f"{each.get('policy')}" for each in inputs) or "no input chain"),
        "drop in INPUT what comes in by the WAN and is not established (README, The firewall's own "
        "rules)",
    )  # fmt: skip


def _sip_helper(facts: Facts) -> Findings:
    try:
        modules = Path("/proc/modules").read_text(encoding="ascii")
    except OSError:
        return
    for name in re.findall(r"^(nf_(?:nat|conntrack)_sip) ", modules, re.M):
        yield (
            Level.NOTE,
            "the SIP helper is loaded; it rewrites SDP and expects RTP by itself",
            f"/proc/modules: {name}",
            f"if nobody needs it: modprobe -r {name}",
        )


def _hardware_flows(facts: Facts) -> Findings:
    """A flowtable in software is behind tc and takes nothing from it; one in hardware does."""
    names = {each.name for each in (*facts.plan.lan, *facts.plan.wan)}
    for each in facts.ruleset:
        table = each.get("flowtable", {})
        devices = table.get("dev", [])
        devices = {devices} if isinstance(devices, str) else set(devices)
        if names & devices and "offload" in json.dumps(table.get("flags", [])):
            yield (
                Level.WARNING,
                "flows are offloaded to hardware: their packets never reach tc",
                f"flowtable {table.get('family')} {table.get('table')} {table.get('name')}",
                "take `flags offload` out of it, or these interfaces",
            )


def _listeners(facts: Facts) -> Findings:
    ports = {facts.settings.port, facts.settings.port + 1}
    for line in Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:]:
        port = int(line.split()[1].split(":")[1], 16)
        if port in ports:
            yield (
                Level.WARNING,
                f"a socket listens on UDP {port}, and will hear no RTP from the WAN",
                f"/proc/net/udp: {line.split()[1]}",
                f"see who it is: ss -lunp sport = {port}",
            )


# tc, and what is attached


def _other_programs(facts: Facts) -> Findings:
    record = attachment.make_record(facts.ipr, facts.plan, facts.found)
    for text in misfits.found(facts.ipr, facts.plan, record):
        yield Level.WARNING, text, "", "see: tc filter show, bpftool net"


def _attached(facts: Facts) -> Findings:
    attached = facts.found.attached
    if not attached:
        yield Level.NOTE, "nothing is attached", "", "moh-ebpf attach, or moh-ebpf run"
        return
    for place in attached.missing:
        name = registry.interface_name(place.ifindex)
        yield (
            Level.ERROR,
            f"{place.role} is missing on {name} {place.role.hook}",
            f"tc filter show dev {name} {place.role.hook}",
            "moh-ebpf attach with the same settings puts it back; moh-ebpf run keeps it there",
        )


def _grown(facts: Facts, name: str) -> int:
    if not facts.before or not facts.after:
        return 0
    return facts.after.counters[name] - facts.before.counters[name]


def _unidentified(facts: Facts) -> Findings:
    dropped = _grown(facts, "dropped_unidentified")
    if not dropped:
        return
    music = _grown(facts, "consumed")
    why = "" if music else f"; none came in to port {facts.settings.port} meanwhile"
    yield (
        Level.WARNING,
        f"UCM sends RTP to endpoints that send none{why}",
        f"dropped_unidentified grew by {dropped} in {facts.seconds:g} s, consumed by {music}",
        "if callers on hold hear nothing, sendonly is not turned into sendrecv on the way to the "
        "provider: docs/kamailio.md; see also --provider and --public",
    )


def _unnatted(facts: Facts) -> Findings:
    grown = _grown(facts, "passed_unnatted")
    if grown:
        yield (
            Level.WARNING,
            "two-way RTP leaves a WAN with UCM's own address",
            f"passed_unnatted grew by {grown} in {facts.seconds:g} s",
            "no masquerade or SNAT rule matches it: nft list ruleset, iptables -t nat -S",
        )


def _pauses(facts: Facts) -> Findings:
    timeout = facts.settings.timeout
    gaps = {each.endpoint: each.longest_gap for each in (facts.after.peers if facts.after else [])}
    endpoint = max(gaps, key=lambda each: gaps[each], default="")
    if endpoint and gaps[endpoint] >= _NEAR * timeout:
        longest = gaps[endpoint]
        yield (
            Level.WARNING,
            "the provider pauses about as long as the timeout, or longer: endpoints are forgotten "
            "in the middle of a call",
            f"{endpoint}: {longest:.2f} s, timeout {timeout:g} s",
            f"--timeout {math.ceil(1.5 * longest)}s",
        )


@dataclass(frozen=True)
class Check:
    """A check, and what is so where it finds nothing."""

    look: Callable[[Facts], Findings]
    well: str


CHECKS: Mapping[str, Check] = {
    "kernel": Check(_kernel, "the kernel has what the programs need"),
    "compiler": Check(_compiler, "BCC and the headers it needs are there"),
    "forwarding": Check(_forwarding, "the LAN's packets are forwarded"),
    "rp-filter": Check(_rp_filter, "reverse path filtering drops nothing of ours"),
    "ucm-route": Check(_ucm_route, "UCM is behind the LAN"),
    "wan-route": Check(_wan_route, "the provider is behind a WAN"),
    "wan-neighbour": Check(_wan_neighbour, "no gateway of a WAN is missing"),
    "phantom-port": Check(_phantom_port_rules, "no rule of NAT takes the phantom port"),
    "input-chain": Check(_input_chain, "INPUT makes no entries for inbound RTP"),
    "sip-helper": Check(_sip_helper, "the SIP helper is not loaded"),
    "hardware-flows": Check(_hardware_flows, "no flow is offloaded to hardware"),
    "listeners": Check(_listeners, "no socket listens on the phantom ports"),
    "other-programs": Check(_other_programs, "no program or interface stands before ours"),
    "attached": Check(_attached, "all programs are where they belong"),
    "unidentified": Check(_unidentified, "UCM's RTP is not dropped"),
    "unnatted": Check(_unnatted, "no two-way RTP leaves with UCM's own address"),
    "pauses": Check(_pauses, "the provider's pauses are shorter than the timeout"),
}
