"""The checks: from the facts to findings. One that finds nothing is well.

Pure: what they look at has been asked before (facts.py). docs/doctor.md has a row for each.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from moh_ebpf.calls.peers import Wait
from moh_ebpf.counters import COUNTERS
from moh_ebpf.doctor import facts as asked
from moh_ebpf.doctor import rules
from moh_ebpf.doctor.facts import Entry, Facts, Route, Target
from moh_ebpf.doctor.findings import Finding, Level
from moh_ebpf.doctor.rules import Chain, Outcome, Packets, Range, Rule, Truth
from moh_ebpf.errors import NOT_PERMITTED
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.kernel.routes import ANYWHERE
from moh_ebpf.layout import State
from moh_ebpf.parsers import TIMEOUT_SECONDS
from moh_ebpf.registry.record import Place, Role
from moh_ebpf.settings import Settings

# A pause this near to the timeout will be longer than it some day.
_NEAR = 0.8
# Comfort noise comes about once a second; below half of that, voice activity detection hurts.
_SHORT_TIMEOUT_SECONDS = 0.5
_SHORT_CONNTRACK_SECONDS = 10
# Ports of a rule that has more of them are not about the phantom ports, but about all ports.
_NARROW = 100
# A call's first packets come before its endpoint's: so many a second are a stream's, not those,
# where we looked for long enough to tell.
_STREAM_PACKETS_PER_SECOND = 25
_LONG_ENOUGH = 0.1  # seconds
_LONGEST_EVIDENCE = 5  # lines

Findings = Iterator[tuple[Level, str, str, str]]  # level, found, evidence, remedy


@dataclass(frozen=True)
class Check:
    """A check, what is so where it finds nothing, and what must have been asked for it."""

    look: Callable[[Facts], Findings]
    well: str
    needs: tuple[str, ...] = ()


def run(facts: Facts) -> list[Finding]:
    """All checks' findings, in their order; of what could not be asked, one says what to try."""
    found: list[Finding] = []
    told: set[str] = set()
    for name, check in CHECKS.items():
        unasked = [topic for topic in check.needs if topic in facts.unasked]
        if unasked:
            error = facts.unasked[unasked[0]]
            remedy = "" if error.what in told else error.remedy or _HELP[unasked[0]]
            told.add(error.what)
            found.append(
                Finding(name, Level.NOTE, "this could not be looked at", error.what, remedy)
            )
        else:
            found += [Finding(name, *each) for each in check.look(facts)] or [
                Finding(name, Level.OK, check.well)
            ]
    return found


_AS_ROOT = NOT_PERMITTED
# What to try where something could not be asked.
_HELP = {
    "kernel": _AS_ROOT,
    "hooks": _AS_ROOT,
    "programs": _AS_ROOT,
    "calls": _AS_ROOT,
    "rules": "as root: nft list ruleset, iptables-save",
    "conntrack": "as root: conntrack -L -p udp",
    "offload": "ethtool -k INTERFACE",
    "sockets": "ss -lun",
    "routes": "ip route get ADDRESS",
    "neighbours": "ip neigh",
    "modules": "lsmod",
    "interfaces": "ip link",
    "usable": "see interfaces",
    "addresses": "ip addr",
}


# The machine


def _privileges(facts: Facts) -> Findings:
    if facts.lacking_rights:
        yield (
            Level.ERROR,
            f"this lacks {', '.join(facts.lacking_rights)}; attach would fail",
            "/proc/self/status: CapEff, and the effective user",
            NOT_PERMITTED,
        )


def _kernel(facts: Facts) -> Findings:
    if facts.lacking_rights:
        yield (
            Level.NOTE,
            "the kernel can be asked with all rights only",
            f"this lacks {', '.join(facts.lacking_rights)}",
            _AS_ROOT,
        )
    elif facts.kernel_lacks:
        yield (
            Level.ERROR,
            "the kernel lacks what the programs need",
            facts.kernel_lacks,
            "boot a kernel that has it: Linux 5.10 or later does",
        )


def _compiler(facts: Facts) -> Findings:
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


def _clsact(facts: Facts) -> Findings:
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


def _interfaces(facts: Facts) -> Findings:
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


def _public_address(facts: Facts) -> Findings:
    for address in facts.settings.public:
        if address not in facts.addresses:
            yield (
                Level.NOTE,
                f"the public address {address} is on no interface here: right if the provider's "
                "RTP is routed to it, wrong if a WAN's address has changed",
                f"ip addr show to {address}: none",
                "leave --public out to use the WANs' own, or attach again if one has changed",
            )


def _listeners(facts: Facts) -> Findings:
    for line in facts.sockets:
        address, port = asked.listening(line) or (None, 0)
        # learn takes what is sent to the public addresses, no more.
        if port in facts.settings.phantom_ports and address in (asked.ANY, *facts.settings.public):
            yield (
                Level.WARNING,
                f"a socket listens on UDP {port}, and hears no RTP from the WAN: that ends in "
                "learn",
                f"/proc/net/udp: {' '.join(line.split()[1:4])}",
                f"see whose it is: ss -lunp 'sport = :{port}'; give it another port",
            )


# Routes and neighbours


def _forwarding(facts: Facts) -> Findings:
    """The kernel asks the interface that a packet comes in by."""
    if set(facts.settings.ucm) <= facts.addresses.keys():
        return  # UCM on the firewall itself
    names = [*facts.lan_names, *(each.name for each in facts.wan if not each.master)]
    for name in names:
        setting = f"net.ipv4.conf.{name}.forwarding"
        if facts.sysctls.get(setting) == 0:
            everywhere = facts.sysctls.get("net.ipv4.ip_forward") == 0
            yield (
                # Without a LAN, it may be a bridge that does it.
                Level.ERROR if facts.lan else Level.NOTE,
                f"packets that come in by {name} are not forwarded",
                ("net.ipv4.ip_forward = 0, " if everywhere else "") + f"{setting} = 0",
                "sysctl -w net.ipv4.ip_forward=1" if everywhere else f"sysctl -w {setting}=1",
            )


def _is_strict(facts: Facts, name: str) -> str:
    """The setting that makes reverse path filtering strict there; empty if it is not."""
    names = [f"net.ipv4.conf.{name}.rp_filter", "net.ipv4.conf.all.rp_filter"]
    values = [facts.sysctls.get(each, 0) for each in names]
    return names[values.index(1)] if max(values) == 1 else ""


def _rp_filter(facts: Facts) -> Findings:
    """tc sees a packet before that, so hold music is learned all the same; two-way calls are
    one-way. No packet says so: the kernel drops it as a martian."""
    for name in facts.wan_names:
        strict = _is_strict(facts, name)
        for target in facts.targets if strict else ():
            if (target.address, name) not in facts.back:
                continue
            route = facts.back[target.address, name]
            # Where nothing is known of the provider, another uplink may have it all to itself.
            if (route and route.interface == name) or (not target.heard_on and len(facts.wan) < 2):
                continue
            yield (
                Level.WARNING,
                f"reverse path filtering is strict on {name}: two-way RTP of {_named(target)} that "
                "comes in there is dropped, for the way back is another",
                f"{strict} = 1; {route.said if route else f'no route to {target.address}'}",
                f"sysctl -w net.ipv4.conf.{name}.rp_filter=2",
            )
            break
    for name in facts.lan_names:
        strict = _is_strict(facts, name)
        ways = {address: facts.routes.get(address) for address in facts.settings.ucm}
        for address, route in ways.items() if strict else ():
            if route and route.interface not in facts.lan_names:
                yield (
                    Level.WARNING,
                    f"reverse path filtering is strict on {name}: packets of UCM's {address} that "
                    "come in there are dropped, for the way back is another",
                    f"{strict} = 1; {route.said}",
                    f"ip route add {address} dev {name}, or sysctl -w "
                    f"net.ipv4.conf.{name}.rp_filter=2",
                )


def _ucm_route(facts: Facts) -> Findings:
    for address in facts.settings.ucm:
        if address in facts.addresses:
            continue  # UCM on the firewall itself
        route = facts.routes.get(address)
        if route is None:
            yield (
                Level.WARNING,
                f"there is no route to UCM's {address}",
                f"ip route get {address}: unreachable",
                f"ip route add {address} dev {[*facts.lan_names, *facts.wan_names][0]}",
            )
        elif not facts.lan:
            if route.gateway and route.gateway in _gateways(facts):
                yield (
                    Level.NOTE,
                    f"UCM's {address} is where the provider is, by the same gateway: right if that "
                    "is the way to both",
                    route.said,
                    "name the interface that UCM's packets come in by: --lan IF; or route it there",
                )
        elif route.interface in facts.wan_names and _is_exchanged(facts):
            yield (
                Level.WARNING,
                f"UCM's {address} is behind {route.interface}, and the provider is not: --wan and "
                "--lan seem to be exchanged",
                route.said,
                f"--wan {' '.join(facts.lan_names)} --lan {' '.join(facts.wan_names)}",
            )
        elif route.interface not in facts.lan_names:
            yield (
                Level.WARNING,
                f"UCM's {address} is not behind --lan {' '.join(facts.lan_names)}: its packets "
                "probably come in elsewhere, where bypass does not see them",
                route.said,
                f"name that interface: --lan {' '.join([*facts.lan_names, route.interface])}"
                if route.interface not in facts.wan_names
                else f"route it to the LAN: ip route add {address} dev {facts.lan_names[0]}",
            )


def _is_exchanged(facts: Facts) -> bool:
    """Are the provider's addresses where UCM should be?"""
    return any(route.interface in facts.lan_names for route in _to_the_provider(facts))


def _gateways(facts: Facts) -> set[str | None]:
    """The provider's addresses are behind them."""
    return {route.gateway for route in _to_the_provider(facts)}


def _to_the_provider(facts: Facts) -> list[Route]:
    routes = [facts.routes.get(target.address) for target in facts.targets]
    return [route for route in routes if route]


def _named(target: Target) -> str:
    if target.address == ANYWHERE and not target.network and not target.heard_on:
        return "any global address"
    return f"the provider's {target.network or target.address}"


def _wan_route(facts: Facts) -> Findings:
    for target in facts.targets:
        route = facts.routes.get(target.address)
        known = bool(target.heard_on or target.network)
        if route is None:
            yield (
                Level.ERROR if known else Level.WARNING,
                f"there is no route to {_named(target)}",
                f"ip route get {target.address}: unreachable",
                f"ip route add default via GATEWAY dev {facts.wan_names[0]}",
            )
        elif route.interface not in facts.wan_names:
            yield (
                Level.WARNING,
                f"the route to {_named(target)} is by {route.interface}, no --wan",
                route.said,
                f"name it as well: --wan {' '.join([*facts.wan_names, route.interface])}",
            )


def _wan_neighbour(facts: Facts) -> Findings:
    for address, name, state in facts.failed:
        yield (
            Level.ERROR,
            f"{address}, the next hop on {name}, does not answer",
            f"ip neigh show {address} dev {name}: {state}",
            f"look at the link and the addresses: ip addr show dev {name}",
        )


# Netfilter


def _port_range(low: int, high: int) -> tuple[Range, ...]:
    return ((low, high),)


def _host(address: IPv4Address) -> Range:
    return int(address), int(address)


def _of(network: IPv4Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)


_ALL = (rules.of_network("0.0.0.0/0"),)


def _global() -> tuple[Range, ...]:
    """All addresses that may be a provider's where none is named."""
    nowhere = sorted(
        rules.of_network(each)
        for each in ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16",
                     "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3")
    )  # fmt: skip
    starts = [0, *(high + 1 for _, high in nowhere)]
    ends = [*(low - 1 for low, _ in nowhere), (1 << 32) - 1]
    return tuple((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


def _far(facts: Facts) -> tuple[tuple[Range, ...], bool]:
    """The provider's addresses, as far as they are known, and whether that is not far."""
    if facts.settings.provider:
        return tuple(map(_of, facts.settings.provider)), False
    live = tuple(_host(each.address) for each in facts.targets if each.heard_on)
    return (live, False) if live else (_global(), True)


def _inbound(facts: Facts, wan: str, state: str = "new") -> Packets:
    """RTP from the provider that comes in by a WAN to UCM's ports at the public addresses."""
    far, anybody = _far(facts)
    ports = facts.settings.rtp_ports
    return Packets(
        iif=wan,
        saddr=far,
        daddr=tuple(map(_host, facts.settings.public)),
        sport=_port_range(1024, 65535),
        dport=_port_range(ports.low, ports.high),
        state=state,
        anybody="saddr" if anybody else "",
    )


def _to_phantom_ports(facts: Facts, wan: str) -> Packets:
    """By a WAN that need not be there, and have an address."""
    packets = _inbound(facts, wan)
    return replace(packets, dport=(_phantom_ports(facts),), daddr=packets.daddr or _ALL)


def _outbound(facts: Facts) -> Iterator[Packets]:
    """RTP to the provider, of each UCM by each way: each may have rules of its own."""
    far, anybody = _far(facts)
    ports = facts.settings.rtp_ports
    ways = itertools.product(facts.wan_names, facts.lan_names or [""], facts.settings.ucm)
    for wan, lan, ucm in ways:
        yield Packets(
            iif=lan,
            oif=wan,
            saddr=(_host(ucm),),
            daddr=far,
            sport=_port_range(ports.low, ports.high),
            dport=_port_range(1024, 65535),
            anybody="daddr" if anybody else "",
        )


def _is_of_udp(rule: Rule) -> bool:
    """May a rule be about UDP?"""
    for each in rule.matches:
        if each.field == "protocol" and each.values and ("udp" in each.values) == each.negated:
            return False
    return True


def _is_narrow(ports: object, wanted: Range) -> bool:
    """Is it a few ports, and one of these among them?"""
    if not isinstance(ports, tuple) or len(ports) != 2:
        return False
    low, high = ports
    return bool(high - low < _NARROW and low <= wanted[1] and wanted[0] <= high)


def _names_ports(rule: Rule, wanted: Range, *fields: str) -> bool:
    return any(
        _is_narrow(each, wanted)
        for match in rule.matches
        if match.field in fields and not match.negated
        for each in match.values or ()
    )


def _phantom_ports(facts: Facts) -> Range:
    ports = facts.settings.phantom_ports
    return ports[0], ports[-1]


def _takes_phantom_port(facts: Facts, rule: Rule) -> bool:
    """Does a rule name the phantom ports? What DNAT leads to is a port inside."""
    ports = _phantom_ports(facts)
    if rule.action not in _SNAT:
        return _names_ports(rule, ports, "dport")
    named = _is_narrow(rule.ports, ports) or _names_ports(rule, ports, "sport", "dport")
    return named and _is_of_udp(rule) and _may_leave(facts, rule)


def _may_leave(facts: Facts, rule: Rule) -> bool:
    """May what a rule is for leave by a WAN?"""
    ways = Rule("", tuple(each for each in rule.matches if each.field == "oif"))
    return any(
        rules.matches(ways, replace(_inbound(facts, ""), oif=wan)) for wan in facts.settings.wan
    )


_SNAT = ("snat", "masquerade")
_TAKING = {
    "snat": "gives out",
    "masquerade": "gives out",
    "dnat": "takes away",
    "redirect": "takes away",
    "tproxy": "takes away",
    "notrack": "does not track",
}


def _phantom_port(facts: Facts) -> Findings:
    """A rule about the phantom ports is of an earlier cure, or takes them from us."""
    ports = _phantom_ports(facts)
    of_the_wans = {
        rule
        for wan in facts.settings.wan
        for _, rule in rules.reached(facts.ruleset, "prerouting", _to_phantom_ports(facts, wan))
    }
    for _, rule in facts.ruleset.rules():
        ours = rule.action in _SNAT or (rule.action in _TAKING and rule in of_the_wans)
        if ours and _takes_phantom_port(facts, rule):
            yield (
                Level.WARNING,
                f"a {rule.action} rule {_TAKING[rule.action]} one of the phantom ports "
                f"{ports[0]} to {ports[1]}",
                rule.text,
                "remove it: hold music needs no rule, and its ports are moh_ebpf's "
                f"({_removal(rule)})",
            )


def _removal(rule: Rule) -> str:
    """The command that takes a rule away."""
    if found := re.match(r"(ip\S*-\w+ -t \w+) -A (.*)", rule.text):
        return f"{found[1]} -D {found[2]}"
    where = rule.text.partition(":")[0]
    return f"nft delete rule {where}"


_THEIR_CHAINS = {"MOH-LIST", "MOH-BLOCK"}
_THEIR_SETS = re.compile(r"--(?:match|add|del)-set (?:MOH|TWO)\b|@(?:MOH|TWO)\b")


def _earlier_cure(facts: Facts) -> Findings:
    """The article's rules, by the names it gives. Their sets starve once learn consumes what they
    learned from, and their drop remains."""
    found = [
        rule.text
        for chain, rule in facts.ruleset.rules()
        if chain.name in _THEIR_CHAINS
        or rule.target in _THEIR_CHAINS
        or _THEIR_SETS.search(rule.text)
    ]
    if found:
        texts = list(dict.fromkeys(found))
        more = f"; and {len(texts) - _LONGEST_EVIDENCE} more"
        yield (
            Level.WARNING,
            "rules of the iptables article are there: they drop two-way RTP, or move its port",
            "; ".join(texts[:_LONGEST_EVIDENCE]) + (more if len(texts) > _LONGEST_EVIDENCE else ""),
            "remove them, attached or before attaching: README, The firewall's own rules",
        )


def _untracked(facts: Facts) -> Findings:
    if not facts.lan:
        return
    ways = [(packets, f"UCM's RTP is not tracked, so it leaves {packets.oif} with its own address "
             "while a call is two-way") for packets in _outbound(facts)]  # fmt: skip
    ways += [(_inbound(facts, wan), f"RTP that comes in by {wan} is not tracked, so what belongs "
              "to a two-way call does not reach UCM") for wan in facts.wan_names]  # fmt: skip
    seen = set()
    for packets, found in ways:
        for truth, rule in rules.reached(facts.ruleset, "prerouting", packets):
            if rule.action != "notrack" or truth < Truth.SOME:
                continue
            if rule.text not in seen and not _takes_phantom_port(facts, rule):
                seen.add(rule.text)
                yield Level.WARNING, found, rule.text, f"remove it: {_removal(rule)}"


def _source_nat(facts: Facts) -> Rule | None:
    """The rule that gives UCM's RTP another source, if there is one."""
    for packets in _outbound(facts):
        for _, rule in rules.nat(facts.ruleset, "postrouting", packets):
            return rule
    return None


def _leads_to_ucm(facts: Facts, packets: Packets) -> bool:
    """Is there DNAT to UCM for such packets? Then their conntrack entry is UCM's."""
    ucm = tuple(map(_host, facts.settings.ucm))
    return any(
        rule.action == "dnat" and (not rule.addresses or rules.overlap(ucm, rule.addresses))
        for _, rule in rules.nat(facts.ruleset, "prerouting", packets)
    )


def _accepted(facts: Facts, packets: Packets) -> Outcome | None:
    """What accepts such packets for the firewall itself; None if they are dropped, or if it cannot
    be told. A packet must pass every chain at both hooks."""
    outcomes = []
    for chain in _in_the_way(facts):
        outcomes.append(rules.outcome(facts.ruleset, chain, packets))
    if any(each.passes < Truth.SOME for each in outcomes):
        return None
    inputs = [chain for chain in _in_the_way(facts) if chain.hook == "input"]
    if not inputs:
        return Outcome(Truth.YES, "there is no chain at the hook input")
    # A rule tells more than a policy; and of policies the last, for those before it let all pass.
    decided = [rules.outcome(facts.ruleset, chain, packets) for chain in reversed(inputs)]
    return min(decided, key=lambda each: (each.passes, each.is_policy))


def _in_the_way(facts: Facts) -> list[Chain]:
    return facts.ruleset.at("prerouting", "input", kind="filter")


def _input_chain(facts: Facts) -> Findings:
    """Where INPUT accepts RTP and no DNAT leads to UCM, RTP that comes in before UCM's makes a
    conntrack entry for the firewall itself, whose port UCM's packets can then not have."""
    nat = _source_nat(facts)
    for wan in facts.wan_names if nat and facts.lan else ():
        packets = _inbound(facts, wan)
        accepted = _accepted(facts, packets)
        if accepted and not _leads_to_ucm(facts, packets):
            yield (
                Level.WARNING,
                f"INPUT accepts RTP from {wan}: what comes in before UCM's may make a conntrack "
                "entry for the firewall itself, and SNAT then gives UCM's packets another port",
                f"{accepted.by}; {nat.text if nat else ''}",
                "drop in INPUT what comes in by the WAN and is not established, or lead it to UCM "
                "by DNAT (README, The firewall's own rules)",
            )
            return


def _sip_helper(facts: Facts) -> Findings:
    using = [
        rule.text
        for _, rule in facts.ruleset.rules()
        if rule.action == "helper" and facts.ruleset.helpers.get(rule.target, rule.target) == "sip"
    ]
    loaded = sorted({"nf_conntrack_sip", "nf_nat_sip"} & set(facts.modules))
    if facts.sysctls.get("net.netfilter.nf_conntrack_helper") == 1 and loaded:
        using.append("net.netfilter.nf_conntrack_helper = 1")
    for wan in facts.wan_names if using and facts.lan else ():
        accepted = _accepted(facts, _inbound(facts, wan, "related"))
        if accepted and _source_nat(facts):
            yield (
                Level.WARNING,
                "the SIP helper is in use, and INPUT accepts related UDP: RTP that it expects may "
                "make conntrack entries for the firewall itself",
                f"{using[0]}; {accepted.by}",
                "accept what is established alone, and related ICMP (README, The firewall's own "
                "rules), or take the helper away",
            )
            return
    if using or loaded:
        yield (
            Level.NOTE,
            "the SIP helper is in use"
            if using
            else "the SIP helper is loaded, and no rule uses it",
            "; ".join([*using, *(f"/proc/modules: {name}" for name in loaded)]),
            "it changes SDP by itself; if nobody needs it, take the rule away"
            + (f", and modprobe -r {' '.join(loaded)}" if loaded else ""),
        )


def _snat_ports(facts: Facts) -> Findings:
    """SNAT keeps a port that is free and in its range, if it has one; never if it is random."""
    ports = facts.settings.rtp_ports
    wanted = _port_range(ports.low, ports.high)
    moving = {
        rule
        for packets in _outbound(facts)
        for truth, rule in rules.nat(facts.ruleset, "postrouting", packets)
        if truth >= Truth.SOME
        and (rule.random or (rule.ports and rules.overlap(wanted, [rule.ports]) < Truth.YES))
        and not _takes_phantom_port(facts, rule)
    }
    for _, rule in facts.ruleset.rules() if facts.lan else ():
        if rule in moving:
            low, high = rule.ports or (0, 0)
            yield (
                Level.WARNING,
                f"a {rule.action} rule gives UCM's RTP ports "
                + ("at random" if rule.random else f"of {low}-{high}, for those of {ports}")
                + ": others than UCM has told the provider",
                rule.text,
                "by itself, SNAT keeps UCM's ports: leave out random, fully-random and ports "
                "(iptables: --random, --random-fully, --to-ports)",
            )


def _moved_ports(facts: Facts) -> Findings:
    shown = facts.moved[:_LONGEST_EVIDENCE]
    for each in shown:
        more = len(facts.moved) - len(shown) if each is shown[-1] else 0
        yield (
            Level.WARNING,
            f"UCM's {each.source[0]}:{each.source[1]} goes out as "
            f"{each.answer_to[0]}:{each.answer_to[1]}, another port than it has told the provider"
            + (f" ({more} more such)" if more else ""),
            each.line,
            "see snat-ports, input-chain and phantom-port; then: conntrack -D -p udp --orig-src "
            f"{each.source[0]} --orig-port-src {each.source[1]}",
        )


def _anothers(facts: Facts) -> Findings:
    """Other hosts on a phantom port, outside. Learn consumes what may teach, unless bypass has seen
    the host send from that same port inside, or enforce has seen it come by no LAN."""
    ends: list[Entry] = []
    others: list[Entry] = []
    for each in facts.anothers:
        (ends if _ends_in_learn(facts, each) else others).append(each)
    for found, level, says in (
        (ends, Level.WARNING, ": RTP that answers it ends in learn"),
        (
            others,
            Level.NOTE,
            "; learn lets its RTP pass, unless UCM sends to the same endpoint",
        ),
    ):
        if not found:
            continue
        one = found[0]
        remedy = "give that program another port, or SNAT for it that leaves the phantom ports out"
        if level is Level.WARNING:
            remedy += (
                f"; then: conntrack -D -p udp --orig-src {one.source[0]} --orig-port-src "
                f"{one.source[1]}"
            )
        yield (
            level,
            f"{one.source[0]}:{one.source[1]} goes out as {one.answer_to[0]}:{one.answer_to[1]}, a "
            f"phantom port{says}" + (f" ({len(found) - 1} more such)" if found[1:] else ""),
            one.line,
            remedy,
        )


def _ends_in_learn(facts: Facts, one: Entry) -> bool:
    """May its peer teach, and has NAT moved its port behind bypass, where a LAN has one?"""
    peer, providers = IPv4Address(one.destination[0]), facts.settings.provider
    if one.source[1] == one.answer_to[1] or (
        providers and not any(peer in each for each in providers)
    ):
        return False
    route = facts.routes.get(IPv4Address(one.source[0]))
    return bool(facts.lan) and (route is None or route.interface in facts.lan_names)


def _flowtables(facts: Facts) -> Findings:
    """Where a flow is in a flowtable, its packets go from netdev ingress to the way out. tc is
    before and after that: tests/netns/test_doctor.py counts packets at each."""
    for each in facts.ruleset.flowtables:
        here = sorted({*facts.lan_names, *facts.wan_names} & set(each.devices))
        if here and not each.hardware:
            yield (
                Level.NOTE,
                f"established two-way RTP may go through a flowtable on {', '.join(here)}: past "
                "netfilter's prerouting, forward and postrouting, not past learn, bypass and "
                "enforce; hold music does not go through it",
                f"flowtable {each.name}: {', '.join(each.devices)}",
                "nothing to do for hold music; to have netfilter see the calls, do not add UDP to "
                "it",
            )


def _hardware_flows(facts: Facts) -> Findings:
    for each in facts.ruleset.flowtables:
        here = sorted({*facts.lan_names, *facts.wan_names} & set(each.devices))
        if here and each.hardware:
            yield (
                Level.WARNING,
                f"flows on {', '.join(here)} are offloaded to hardware: their packets reach "
                "neither tc nor netfilter, and an endpoint is forgotten in the middle of its call",
                f"flowtable {each.name}: flags offload",
                "take `flags offload` out of it, or do not add UDP to it",
            )
    for name in facts.offloading:
        yield (
            Level.NOTE,
            f"{name} may take tc rules and flows over: what it forwards by itself reaches no tc "
            "filter",
            f"ethtool -k {name}: hw-tc-offload: on",
            f"ethtool -K {name} hw-tc-offload off, if flower rules or a flowtable there match RTP",
        )


# tc, and what is attached


def _other_programs(facts: Facts) -> Findings:
    for each in facts.others:
        yield (
            Level.WARNING,
            each.what,
            each.evidence or "ip -d link show",
            each.remedy or each.see or "tc filter show, bpftool net",
        )


def _attached(facts: Facts) -> Findings:
    if facts.other_version:
        yield (
            Level.WARNING,
            "what is attached is of another version of moh-ebpf, which this one cannot read",
            "tc filter show: moh_learn, moh_enforce, moh_bypass at pref 4000",
            "moh-ebpf attach replaces it; moh-ebpf detach removes it",
        )
        return
    if facts.attached is None:
        yield (
            Level.NOTE,
            "nothing is attached",
            "no filter of ours on any interface of this network namespace",
            "moh-ebpf attach, or moh-ebpf run",
        )
        return
    for place in facts.missing:
        name = interface_name(place.ifindex)
        yield (
            Level.ERROR,
            f"{place.role} is missing on {name} {place.role.hook}",
            f"tc filter show dev {name} {place.role.hook}: no {place.role.program}",
            "moh-ebpf attach with the same settings puts it back; moh-ebpf run keeps it there",
        )
    now, wanted = facts.attached.to_json(), facts.settings.to_json()
    differ = [name for name in wanted if wanted[name] != now[name]]
    if differ:
        yield (
            Level.NOTE,
            f"other settings are attached than those looked at: {', '.join(differ)}",
            "; ".join(f"attached {name}: {_plain(now[name])}" for name in differ),
            "moh-ebpf attach with all of these settings takes them over",
        )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _flip_remedy(facts: Facts) -> str:
    flipped = facts.total("sip_flipped")
    if not facts.settings.flip_hold:
        return "moh-ebpf attach … --flip-hold, or a SIP proxy (docs/kamailio.md)"
    if flipped:
        return f"--flip-hold has changed {flipped} holds: does the provider heed them?"
    lacks = "a port that --sip-ports lacks"
    if facts.settings.sip_from:
        lacks += ", or with a network that --sip-from lacks"
    return f"--flip-hold has seen no hold: is SIP encrypted, or on {lacks}?"


def _sip_split(facts: Facts) -> Findings:
    """SDP that is cut where the flip cannot follow: a hold is silent, or its end is not seen. Such
    messages need not be of a hold, so that old ones warn only if no hold was ever flipped."""
    split, grown = facts.total("sip_split"), facts.grown("sip_split")
    if not facts.attached or not facts.attached.flip_hold or not split:
        return
    fragments = facts.total("fragments")
    yield (
        Level.WARNING if grown or not facts.total("sip_flipped") else Level.NOTE,
        f"{split} SIP messages were left as they are, because the direction of their SDP may be "
        "where it cannot be read",
        f"counters: sip_split {split}, by {grown} in {facts.seconds:.1f} s; fragments {fragments}; "
        f"sip_flipped {facts.total('sip_flipped')}",
        "a long message over UDP is cut into IP fragments: use SIP over TCP on the trunk "
        "(docs/flip-hold.md, What is left alone)"
        if fragments
        else "see docs/flip-hold.md, What is left alone",
    )


def _learning(facts: Facts) -> Findings:
    """On a WAN where learn sees nothing, UCM's RTP passes as if nothing were attached."""
    for wan in facts.after.wans if facts.after else ():
        if not wan.is_blind:
            continue
        last = "never" if wan.learn_age is None else f"{wan.learn_age:.0f} s ago"
        cause, remedy = _why_blind(facts, wan.interface)
        yield (
            Level.ERROR,
            f"learn sees nothing on {wan.interface}, so UCM's RTP passes as without moh_ebpf: "
            f"{cause}",
            f"the last packet to a public address was read there {last}; received by "
            f"{wan.interface} in {facts.seconds:.1f} s: {facts.received.get(wan.interface, 0)}",
            remedy,
        )


def _why_blind(facts: Facts, name: str) -> tuple[str, str]:
    """The cause, and what to try."""
    public = ", ".join(map(str, facts.settings.public))
    if any(_is_learn_on(place, name) for place in facts.missing):
        return "its program is gone", "see attached"
    if any(each.where == f"{name} ingress" for each in facts.others):
        return "another program runs before it", "see other-programs"
    if name in facts.without_carrier:
        return "the interface has no carrier", "see interfaces"
    if name in facts.offloading:
        return "the interface may forward by itself", "see hardware-flows"
    if facts.received.get(name):
        return (
            f"packets come in, and none of them is IPv4 to {public}",
            f"name the addresses that the provider sends to with --public; tcpdump -ni {name} udp",
        )
    return (
        "no packet comes in: from a provider that is silent while UCM is on hold, or from nobody",
        f"{_flip_remedy(facts)}; see wan-route and wan-neighbour; tcpdump -ni {name}",
    )


def _is_learn_on(place: Place, name: str) -> bool:
    return place.role is Role.LEARN and interface_name(place.ifindex) == name


def _unheard(facts: Facts) -> Findings:
    """Endpoints that UCM sends to for longer than the patience: it passes, and is no hold music."""
    settings = facts.attached or facts.settings
    passing = [each for each in facts.waits if each.waited >= settings.patience]
    unlisted = [each for each in passing if not _is_listed(each, settings)]
    for waits, cause, remedy in (
        (
            unlisted,
            "--provider does not list them, so they are never learned",
            "list every network that UCM exchanges RTP with: --provider",
        ),
        (
            [each for each in passing if each not in unlisted],
            "no RTP comes in from them: they may wait to hear something first, or be on hold and "
            "told sendonly",
            f"{_flip_remedy(facts)}; see what comes in: tcpdump -ni "
            f"{facts.wan_names[0] if facts.wan else 'WAN'} udp and src host "
            f"{passing[0].address if passing else 'ADDRESS'}",
        ),
    ):
        if waits:
            longest = max(waits, key=lambda each: each.waited)
            yield (
                Level.WARNING,
                f"UCM's RTP passes to {len(waits)} endpoints that are not heard: {cause}",
                f"{longest.endpoint}: for {longest.waited:.0f} s, {longest.dropped} packets "
                f"dropped before; patience {settings.patience:g} s",
                remedy,
            )


def _is_listed(wait: Wait, settings: Settings) -> bool:
    address = IPv4Address(wait.address)
    return not settings.provider or any(address in each for each in settings.provider)


def _unidentified(facts: Facts) -> Findings:
    dropped, music = facts.grown("dropped_unidentified"), facts.grown("consumed")
    if not dropped:
        return
    port = facts.settings.port
    # A call's first packets come before its endpoint's, whether or not anybody was ever on hold.
    is_stream = dropped >= _STREAM_PACKETS_PER_SECOND * max(facts.seconds, _LONG_ENOUGH)
    never = not facts.total("learned_moh") and not facts.total("two_to_moh")
    evidence = (
        f"dropped_unidentified grew by {dropped} in {facts.seconds:.1f} s, consumed by {music}; "
        f"consumed in all {facts.total('consumed')}"
    )
    if is_stream and never:
        yield (
            Level.WARNING,
            f"UCM sends RTP, and no RTP has ever come in to port {port}: sendonly is probably not "
            "turned into sendrecv on the way to the provider",
            evidence,
            f"{_flip_remedy(facts)}; see what comes in: tcpdump -ni "
            f"{facts.wan_names[0] if facts.wan else 'WAN'} udp dst port {port}; --provider and "
            "--public must have what is sent from and to",
        )
    elif is_stream:
        yield (
            Level.WARNING,
            "UCM sends a stream or more to endpoints that send none",
            evidence,
            "moh-ebpf peers shows who sends; --provider must list all of the provider's networks",
        )
    else:
        yield (
            Level.NOTE,
            "some of UCM's RTP went to endpoints that were not known: a call's first packets, "
            "mostly",
            evidence,
            "if it goes on: moh-ebpf peers shows who sends",
        )


def _silent(facts: Facts) -> Findings:
    """Hold music that nobody sends: what attach cannot see is whether its settings are UCM's. Of
    those that go on sending; a call that has ended on hold stays for the timeout."""
    if not facts.before or not facts.after:
        return
    settings = facts.attached or facts.settings
    heard = {each.endpoint: each.in_packets for each in facts.before.peers}
    silent = [
        each
        for each in facts.after.peers
        if each.state is State.MOH
        and each.is_silent(settings.port)
        and each.in_packets > heard.get(each.endpoint, each.in_packets)
    ]
    if silent:
        longest = max(silent, key=lambda each: each.since)
        sent = "none ever" if longest.out_age is None else f"the last {longest.out_age:.0f} s ago"
        yield (
            Level.WARNING,
            f"{len(silent)} on hold get no music: UCM sends from an address that --ucm lacks, from "
            "a port outside --rtp-ports, by an interface that is no --lan, or not at all",
            f"{longest.endpoint}: on hold for {longest.since:.0f} s, packets to it: {sent}",
            f"tcpdump -ni {facts.lan_names[0] if facts.lan else 'any'} udp and dst host "
            f"{longest.address}; --rtp-ports is {settings.rtp_ports}",
        )


def _unnatted(facts: Facts) -> Findings:
    grown = facts.grown("passed_unnatted")
    if not grown:
        return
    # Without NAT, or from global addresses, it is how it ought to be.
    leaks = any(each.is_private for each in facts.settings.ucm) and facts.lan
    yield (
        Level.WARNING if leaks else Level.NOTE,
        "two-way RTP leaves a WAN with UCM's own address",
        f"passed_unnatted grew by {grown} in {facts.seconds:.1f} s",
        "no masquerade or SNAT rule matches it: nft list ruleset, iptables -t nat -S"
        if leaks
        else "right if the provider routes to UCM's addresses",
    )


def _failures(facts: Facts) -> Findings:
    for name, counter in COUNTERS.items():
        grown, total = facts.grown(name), facts.total(name)
        if counter.remedy and total:
            yield (
                Level.WARNING if grown else Level.NOTE,
                f"{name} grows" if grown else f"{name} grew, but not while we looked",
                f"{name}: {total}, by {grown} in {facts.seconds:.1f} s",
                counter.remedy,
            )


def _pauses(facts: Facts) -> Findings:
    timeout = (facts.attached or facts.settings).timeout
    gaps = {each.endpoint: each.longest_gap for each in (facts.after.peers if facts.after else [])}
    endpoint = max(gaps, key=lambda each: gaps[each], default="")
    if endpoint and gaps[endpoint] >= _NEAR * timeout:
        longest = gaps[endpoint]
        wanted = min(math.ceil(1.5 * longest), int(TIMEOUT_SECONDS[1]))
        yield (
            Level.WARNING,
            "an endpoint pauses about as long as the timeout, or longer: it is forgotten in the "
            "middle of a call",
            f"{endpoint}: longest gap {longest:.2f} s, timeout {timeout:g} s",
            f"--timeout {wanted}s, beside all the other settings that attach is given, or in the "
            "config",
        )


def _timeouts(facts: Facts) -> Findings:
    timeout = facts.settings.timeout
    if timeout < _SHORT_TIMEOUT_SECONDS:
        yield (
            Level.NOTE,
            "the timeout is short: with voice activity detection, the far end pauses for a second",
            f"timeout = {timeout:g} s",
            "--timeout 1s",
        )
    for name in ("udp_timeout", "udp_timeout_stream"):
        setting = f"net.netfilter.nf_conntrack_{name}"
        seconds = facts.sysctls.get(setting)
        if seconds is not None and seconds < _SHORT_CONNTRACK_SECONDS:
            yield (
                Level.WARNING,
                "conntrack forgets two-way calls within a pause, and may give them another port",
                f"{setting} = {seconds}",
                f"sysctl -w {setting}={30 if name == 'udp_timeout' else 120}",
            )


CHECKS: Mapping[str, Check] = {
    "privileges": Check(_privileges, "all rights are there"),
    "kernel": Check(_kernel, "the kernel has what the programs need", ("kernel",)),
    "compiler": Check(_compiler, "BCC and the headers it needs are there"),
    "interfaces": Check(_interfaces, "the interfaces are up", ("interfaces",)),
    "clsact": Check(_clsact, "the programs can be attached there", ("hooks",)),
    "public-address": Check(_public_address, "the public addresses are here", ("addresses",)),
    "listeners": Check(_listeners, "no socket listens on the phantom ports", ("sockets",)),
    "forwarding": Check(_forwarding, "packets are forwarded", ("usable", "addresses")),
    "rp-filter": Check(
        _rp_filter, "reverse path filtering drops nothing of ours", ("usable", "routes")
    ),
    "ucm-route": Check(_ucm_route, "UCM is where it should be", ("usable", "routes")),
    "wan-route": Check(_wan_route, "the provider is behind a WAN", ("usable", "routes")),
    "wan-neighbour": Check(
        _wan_neighbour, "no next hop on a WAN has failed", ("usable", "neighbours")
    ),
    "phantom-port": Check(_phantom_port, "no rule takes the phantom ports", ("rules",)),
    "earlier-cure": Check(_earlier_cure, "no rule of the iptables article is there", ("rules",)),
    "untracked": Check(_untracked, "RTP is tracked", ("usable", "rules")),
    "input-chain": Check(
        _input_chain, "INPUT makes no entries for inbound RTP", ("usable", "rules")
    ),
    "sip-helper": Check(_sip_helper, "the SIP helper is not there", ("usable", "rules", "modules")),
    "snat-ports": Check(_snat_ports, "SNAT keeps UCM's ports", ("usable", "rules")),
    "moved-ports": Check(_moved_ports, "UCM's ports are its own outside", ("conntrack",)),
    "anothers": Check(_anothers, "no other host is on the phantom ports", ("conntrack",)),
    "flowtables": Check(_flowtables, "no flowtable is on these interfaces", ("rules",)),
    "hardware-flows": Check(_hardware_flows, "nothing is offloaded", ("rules", "offload")),
    "other-programs": Check(_other_programs, "nothing stands before ours", ("programs",)),
    "attached": Check(_attached, "all programs are where they belong", ("programs",)),
    "learning": Check(_learning, "learn sees what comes in", ("programs", "calls")),
    "unheard": Check(_unheard, "UCM sends to nobody that is not heard", ("programs", "calls")),
    "unidentified": Check(_unidentified, "UCM's RTP is not dropped", ("programs", "calls")),
    "silent": Check(_silent, "whoever is on hold gets music", ("programs", "calls")),
    "unnatted": Check(_unnatted, "no RTP leaves with UCM's address", ("programs", "calls")),
    "sip-split": Check(_sip_split, "every SDP is in one packet", ("programs", "calls")),
    "failures": Check(_failures, "no packet was lost to a failure", ("programs", "calls")),
    "pauses": Check(_pauses, "pauses are shorter than the timeout", ("programs", "calls")),
    "timeouts": Check(_timeouts, "the timeouts are long enough"),
}
