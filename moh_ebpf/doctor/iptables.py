"""Rules from what iptables-save says."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from moh_ebpf.doctor import rules
from moh_ebpf.doctor.rules import LAST_PORT, PROTOCOLS, Chain, Match, Range, Rule, Ruleset, Value

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
# Where iptables' tables are among the chains at a hook.
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_KNOWN_MODULES = {"udp", "multiport", "conntrack", "state", "comment", "addrtype", "tcp"}
_VERDICTS = {
    "ACCEPT": "accept",
    "DROP": "drop",
    "REJECT": "drop",
    "RETURN": "return",
    "SNAT": "snat",
    "NETMAP": "snat",
    "DNAT": "dnat",
    "MASQUERADE": "masquerade",
    "REDIRECT": "redirect",
    "TPROXY": "tproxy",
    "NOTRACK": "notrack",
    "NFQUEUE": "queue",
}
# Targets that leave the packet to the rules after them.
_QUIET_TARGETS = {"SET", "LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "DSCP", "TTL", "CT", "TRACE"}


def from_iptables(saved: str, tool: str) -> Ruleset:
    """From what `iptables-save` prints; `tool` is the command that such rules are made with."""
    chains: dict[tuple[str, str], Chain] = {}
    table = kind = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            kind = line[1:].strip()
            table = f"{tool} -t {kind}"
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            hook = _HOOKS.get(name, "") if policy != "-" else ""
            priority = _PRIORITIES.get(kind, -100 if name == "PREROUTING" else 100)
            chains[table, name] = Chain(
                table, name, hook, "nat" if kind == "nat" else "filter", policy.lower(), priority
            )
        elif line.startswith("-A "):
            words = shlex.split(line)
            chain = chains.get((table, words[1]))
            if chain:
                rule = _iptables_rule(f"{table} {line}", words[2:])
                removal = f"{table} -D {line.removeprefix('-A ')}"
                chain.rules.append(replace(rule, removal=removal))
    return Ruleset(chains)


def _iptables_rule(text: str, words: list[str]) -> Rule:
    asked: list[Match] = []
    options: dict[str, str] = {}
    action = target = ""
    negated = False
    for option, value in _options(words):
        if option == "!":
            negated = True
            continue
        if option in ("-j", "-g"):
            action, target = _VERDICTS.get(value, ""), value
            if not action and value not in _QUIET_TARGETS:
                action = "goto" if option == "-g" else "jump"
        elif option == "-m":
            if value not in _KNOWN_MODULES:
                asked.append(Match(f"-m {value}", None))
        elif option in _IPTABLES_FIELDS:
            asked.append(_iptables_match(option, value, negated))
        elif target:
            options[option] = value
        elif option not in _QUIET_OPTIONS:
            asked.append(Match(option, None))
        negated = False
    if target == "CT":
        action = "notrack" if "--notrack" in options else "helper" if "--helper" in options else ""
        target = options.get("--helper", "")
    given = options.get("--to-source") or options.get("--to-destination") or ""
    address, _, port = given.partition(":")
    port = options.get("--to-ports", port)
    return Rule(
        text,
        tuple(asked),
        action,
        target,
        _iptables_addresses(address),
        _ports(port),
        random=bool({"--random", "--random-fully"} & options.keys()),
    )


# Of our packets, each begins a connection: its original direction is the packet's own.
_IPTABLES_FIELDS = {
    "-s": "saddr", "-d": "daddr", "-i": "iif", "-o": "oif", "-p": "protocol",
    "--sport": "sport", "--sports": "sport", "--dport": "dport", "--dports": "dport",
    "--ctstate": "state", "--state": "state", "--dst-type": "type", "--ctstatus": "status",
    "--ctproto": "protocol", "-f": "fragment", "--ctorigsrc": "saddr", "--ctorigdst": "daddr",
    "--ctorigsrcport": "sport", "--ctorigdstport": "dport",
}  # fmt: skip
# Options of matches that choose no packets, or none where the address is the interface's own.
_QUIET_OPTIONS = {"--comment", "--limit-iface-in"}


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their values; "!" comes by itself before the one that it is about."""
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        values = []
        if word == "--comment":  # which may be of any words
            place += 1
        while word != "!" and place < len(words) and not re.match(r"-{1,2}[a-z]|!", words[place]):
            values.append(words[place])
            place += 1
        yield word, " ".join(values)


def _iptables_match(option: str, value: str, negated: bool) -> Match:
    name = _IPTABLES_FIELDS[option]
    parts = value.split(",")
    values: list[Value | None]
    if name in ("saddr", "daddr"):
        values = [*_iptables_addresses(value)]
    elif name in ("sport", "dport"):
        values = [_ports(each) for each in parts]
    elif name == "fragment":
        values = ["yes"]
    elif name in ("iif", "oif"):
        values = [value[:-1] + "*" if value.endswith("+") else value]
    else:
        values = [PROTOCOLS.get(each, each.lower()) for each in parts]
        if name == "protocol" and value in ("all", "0"):
            return Match(name, ("udp",))
    if not values or None in values:
        return Match(name, None)
    return Match(name, tuple(each for each in values if each is not None), negated)


def _iptables_addresses(text: str) -> tuple[Range, ...]:
    if low_high := re.fullmatch(r"([\d.]+)-([\d.]+)", text):
        return ((int(IPv4Address(low_high[1])), int(IPv4Address(low_high[2]))),)
    try:
        return tuple(rules.of_network(each) for each in text.split(",")) if text else ()
    except ValueError:
        return ()


def _ports(text: str) -> Range | None:
    found = re.fullmatch(r"(\d*)(?:[:-](\d*))?", text)
    if not found or not text:
        return None
    low = int(found[1] or 0)
    high = low if found[2] is None else int(found[2] or LAST_PORT)
    return low, high
