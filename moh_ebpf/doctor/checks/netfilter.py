"""Checks of netfilter's rules and connections."""

import re
from dataclasses import replace
from ipaddress import IPv4Address

from moh_ebpf.doctor import rules
from moh_ebpf.doctor.check import Findings, check
from moh_ebpf.doctor.facts import Connection, Facts
from moh_ebpf.doctor.findings import Level
from moh_ebpf.doctor.packets import (
    host_range,
    inbound,
    outbound,
    phantom_ports,
    port_range,
    to_phantom_ports,
)
from moh_ebpf.doctor.rules import Chain, Outcome, Packets, Range, Rule, Truth

# Ports of a rule that has more of them are not about the phantom ports, but about all ports.
_NARROW = 100
_LONGEST_EVIDENCE = 5  # lines


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


def _takes_phantom_port(facts: Facts, rule: Rule) -> bool:
    """Does a rule name the phantom ports? What DNAT leads to is a port inside."""
    ports = phantom_ports(facts)
    if rule.action not in _SNAT:
        return _names_ports(rule, ports, "dport")
    named = _is_narrow(rule.ports, ports) or _names_ports(rule, ports, "sport", "dport")
    return named and _is_of_udp(rule) and _may_leave(facts, rule)


def _may_leave(facts: Facts, rule: Rule) -> bool:
    """May what a rule is for leave by a WAN?"""
    ways = Rule("", tuple(each for each in rule.matches if each.field == "oif"))
    return any(
        rules.matches(ways, replace(inbound(facts, ""), oif=wan)) for wan in facts.settings.wan
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


@check("phantom-port", "no rule takes the phantom ports", "rules")
def phantom_port(facts: Facts) -> Findings:
    """A rule about the phantom ports is of an earlier cure, or takes them from us."""
    ports = phantom_ports(facts)
    of_the_wans = {
        rule
        for wan in facts.settings.wan
        for _, rule in rules.reached(facts.ruleset, "prerouting", to_phantom_ports(facts, wan))
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
                f"({rule.removal})",
            )


_THEIR_CHAINS = {"MOH-LIST", "MOH-BLOCK"}
_THEIR_SETS = re.compile(r"--(?:match|add|del)-set (?:MOH|TWO)\b|@(?:MOH|TWO)\b")


@check("earlier-cure", "no rule of the iptables article is there", "rules")
def earlier_cure(facts: Facts) -> Findings:
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


@check("untracked", "RTP is tracked", "usable", "rules")
def untracked(facts: Facts) -> Findings:
    if not facts.lan:
        return
    ways = [(packets, f"UCM's RTP is not tracked, so it leaves {packets.oif} with its own address "
             "while a call is two-way") for packets in outbound(facts)]  # fmt: skip
    ways += [(inbound(facts, wan), f"RTP that comes in by {wan} is not tracked, so what belongs "
              "to a two-way call does not reach UCM") for wan in facts.wan_names]  # fmt: skip
    seen = set()
    for packets, found in ways:
        for truth, rule in rules.reached(facts.ruleset, "prerouting", packets):
            if rule.action != "notrack" or truth < Truth.SOME:
                continue
            if rule.text not in seen and not _takes_phantom_port(facts, rule):
                seen.add(rule.text)
                yield Level.WARNING, found, rule.text, f"remove it: {rule.removal}"


def _source_nat(facts: Facts) -> Rule | None:
    """The rule that gives UCM's RTP another source, if there is one."""
    for packets in outbound(facts):
        for _, rule in rules.nat(facts.ruleset, "postrouting", packets):
            return rule
    return None


def _leads_to_ucm(facts: Facts, packets: Packets) -> bool:
    """Is there DNAT to UCM for such packets? Then their conntrack entry is UCM's."""
    ucm = tuple(map(host_range, facts.settings.ucm))
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


@check("input-chain", "INPUT makes no entries for inbound RTP", "usable", "rules")
def input_chain(facts: Facts) -> Findings:
    """Where INPUT accepts RTP and no DNAT leads to UCM, RTP that comes in before UCM's makes a
    conntrack entry for the firewall itself, whose port UCM's packets can then not have."""
    nat = _source_nat(facts)
    for wan in facts.wan_names if nat and facts.lan else ():
        packets = inbound(facts, wan)
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


@check("sip-helper", "the SIP helper is not there", "usable", "rules", "modules")
def sip_helper(facts: Facts) -> Findings:
    using = [
        rule.text
        for _, rule in facts.ruleset.rules()
        if rule.action == "helper" and facts.ruleset.helpers.get(rule.target, rule.target) == "sip"
    ]
    loaded = sorted({"nf_conntrack_sip", "nf_nat_sip"} & set(facts.modules))
    if facts.sysctls.get("net.netfilter.nf_conntrack_helper") == 1 and loaded:
        using.append("net.netfilter.nf_conntrack_helper = 1")
    for wan in facts.wan_names if using and facts.lan else ():
        accepted = _accepted(facts, inbound(facts, wan, "related"))
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


@check("snat-ports", "SNAT keeps UCM's ports", "usable", "rules")
def snat_ports(facts: Facts) -> Findings:
    """SNAT keeps a port that is free and in its range, if it has one; never if it is random."""
    ports = facts.settings.rtp_ports
    wanted = port_range(ports.low, ports.high)
    moving = {
        rule
        for packets in outbound(facts)
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


@check("moved-ports", "UCM's ports are its own outside", "conntrack")
def moved_ports(facts: Facts) -> Findings:
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


@check("anothers", "no other host is on the phantom ports", "conntrack")
def anothers(facts: Facts) -> Findings:
    """Other hosts on a phantom port, outside. Learn consumes what may teach, unless bypass has seen
    the host send from that same port inside, or enforce has seen it come by no LAN."""
    ends: list[Connection] = []
    others: list[Connection] = []
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


def _ends_in_learn(facts: Facts, one: Connection) -> bool:
    """May its peer teach, and has NAT moved its port behind bypass, where a LAN has one?"""
    peer, providers = IPv4Address(one.destination[0]), facts.settings.provider
    if one.source[1] == one.answer_to[1] or (
        providers and not any(peer in each for each in providers)
    ):
        return False
    route = facts.routes.get(IPv4Address(one.source[0]))
    return bool(facts.lan) and (route is None or route.interface in facts.lan_names)


@check("flowtables", "no flowtable is on these interfaces", "rules")
def flowtables(facts: Facts) -> Findings:
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


@check("hardware-flows", "nothing is offloaded", "rules", "offload")
def hardware_flows(facts: Facts) -> Findings:
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
