"""Netfilter's rules as nft and iptables-save show them, and what they do with a kind of packets.

Pure. Both forms become the same `Rule`s. What a rule asks for is compared with a `Packets`, which
is not one packet but all that are alike (from the provider's networks, to UCM's RTP ports): some
of them may match and others not. What cannot be told is UNKNOWN, and nobody is to be warned of it.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any

Range = tuple[int, int]  # both ends included
Value = Range | str

_NUMBERS = ("saddr", "daddr", "sport", "dport")
_PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp"}
_LAST_PORT = 65535


class Truth(IntEnum):
    """Does a rule match packets? SOME: some of them, for certain."""

    NO = 0
    UNKNOWN = 1
    SOME = 2
    YES = 3


@dataclass(frozen=True)
class Packets:
    """Packets that are alike: UDP that comes in by `iif` (and leaves by `oif`), its addresses and
    ports as ranges. `anybody`: where these addresses ("saddr", "daddr") are no more than all that
    is possible."""

    iif: str
    saddr: tuple[Range, ...]
    daddr: tuple[Range, ...]
    sport: tuple[Range, ...]
    dport: tuple[Range, ...]
    oif: str = ""
    state: str = "new"
    anybody: str = ""


@dataclass(frozen=True)
class Match:
    """What a rule asks for: one of `values` in a field; None where it is not known what."""

    field: str
    values: tuple[Value, ...] | None
    negated: bool = False


@dataclass(frozen=True)
class Rule:
    """One thing that a rule does (`action`, and its `target`: a chain, a helper), with `text` the
    rule as its tool prints it. For NAT, the `addresses` and `ports` given out, where it names any,
    and whether a port is given out at `random`.
    """

    text: str
    matches: tuple[Match, ...] = ()
    action: str = ""
    target: str = ""
    addresses: tuple[Range, ...] = ()
    ports: Range | None = None
    random: bool = False


@dataclass(frozen=True)
class Chain:
    """A chain; `hook` is empty where it is none of the kernel's, but called by others."""

    table: str  # as its tool writes it: "ip nat", "iptables-legacy -t nat"
    name: str
    hook: str = ""
    kind: str = ""
    policy: str = "accept"
    priority: int = 0
    rules: list[Rule] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.table} {self.name}"


@dataclass(frozen=True)
class Flowtable:
    """An nft flowtable; `hardware` has its flows forwarded by the interfaces themselves."""

    name: str
    devices: tuple[str, ...]
    hardware: bool


@dataclass(frozen=True)
class Ruleset:
    """All chains by table and name, flowtables, and the types of nft's helpers by name."""

    chains: Mapping[tuple[str, str], Chain] = field(default_factory=dict)
    flowtables: tuple[Flowtable, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict)

    def at(self, *hooks: str, kind: str = "") -> list[Chain]:
        """The chains at these hooks, of this kind (filter, nat) if one is named, as they follow."""
        found = (
            chain
            for chain in self.chains.values()
            if chain.hook in hooks and kind in ("", chain.kind)
        )
        return sorted(found, key=lambda each: each.priority)

    def rules(self) -> Iterator[tuple[Chain, Rule]]:
        """Every rule, and its chain."""
        for chain in self.chains.values():
            for rule in chain.rules:
                yield chain, rule


def merged(rulesets: Iterable[Ruleset]) -> Ruleset:
    """All of them as one."""
    chains: dict[tuple[str, str], Chain] = {}
    flowtables: list[Flowtable] = []
    helpers: dict[str, str] = {}
    for each in rulesets:
        chains |= each.chains
        flowtables += each.flowtables
        helpers |= each.helpers
    return Ruleset(chains, tuple(flowtables), helpers)


# What rules do with packets


def matches(rule: Rule, packets: Packets) -> Truth:
    """Does the rule match these packets?

    Where nothing is known of the provider, a rule for some addresses tells nothing of its own,
    unless it is for UDP: then it is most likely for them.
    """
    truth = Truth.YES
    of_udp = any(each.field in ("protocol", "sport", "dport") for each in rule.matches)
    for each in rule.matches:
        one = _asks_for(each, packets)
        if one is Truth.SOME and each.field == packets.anybody and not of_udp:
            one = Truth.UNKNOWN
        truth = min(truth, one)
    return truth


def _asks_for(match: Match, packets: Packets) -> Truth:
    if match.values is None:
        return Truth.UNKNOWN
    if match.field in _NUMBERS:
        wanted = [each for each in match.values if not isinstance(each, str)]
        truth = overlap(getattr(packets, match.field), wanted)
    else:
        had = {
            "iif": packets.iif,
            "oif": packets.oif,
            "protocol": "udp",
            "nfproto": "ipv4",
            "ethertype": "ip",
            "state": packets.state,
            "type": "unicast" if packets.oif else "local",
            "pkttype": "host",
            "status": "",
            "fragment": "no",  # conntrack has put them together before any chain
        }.get(match.field)
        if had is None:
            return Truth.UNKNOWN
        truth = Truth.YES if any(_is_name(each, had) for each in match.values) else Truth.NO
    if match.negated and truth in (Truth.YES, Truth.NO):
        return Truth.NO if truth is Truth.YES else Truth.YES
    return truth


def _is_name(wanted: Value, had: str) -> bool:
    if not isinstance(wanted, str):
        return False
    return had.startswith(wanted[:-1]) if wanted.endswith("*") else wanted == had


def overlap(had: Iterable[Range], wanted: Iterable[Range]) -> Truth:
    """Are all of these among the wanted ones, or some?"""
    wanted = _union(wanted)
    had = _union(had)
    both = sum(
        max(0, min(a_high, b_high) - max(a_low, b_low) + 1)
        for a_low, a_high in had
        for b_low, b_high in wanted
    )
    if not both:
        return Truth.NO
    return Truth.YES if both == sum(high - low + 1 for low, high in had) else Truth.SOME


def _union(ranges: Iterable[Range]) -> list[Range]:
    united: list[Range] = []
    for low, high in sorted(ranges):
        if united and low <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(high, united[-1][1]))
        else:
            united.append((low, high))
    return united


Reached = list[tuple[Truth, Rule]]
_NAT = {"snat", "masquerade", "dnat", "redirect"}
# What a packet does not go on from. One that is not tracked makes no conntrack entry, whatever
# becomes of it.
_FINAL = _NAT | {"accept", "drop", "notrack"}


@dataclass(frozen=True)
class Outcome:
    """Whether a chain lets such packets go on, and the rule or policy that does."""

    passes: Truth
    by: str
    is_policy: bool = False


def outcome(ruleset: Ruleset, chain: Chain, packets: Packets) -> Outcome:
    """What a chain at a hook does with these packets: its most certain accept."""
    found, ended = _walk(ruleset, chain, packets, Truth.YES, frozenset())
    accepts = [Outcome(truth, rule.text) for truth, rule in found if rule.action == "accept"]
    if not ended and chain.policy == "accept":
        accepts.append(Outcome(Truth.YES, f"{chain}: policy accept", is_policy=True))
    return max(accepts, key=lambda each: each.passes, default=Outcome(Truth.NO, ""))


def reached(ruleset: Ruleset, hook: str, packets: Packets) -> Reached:
    """The rules at a hook that some of these packets come to and may match."""
    return [
        each
        for chain in ruleset.at(hook)
        for each in _walk(ruleset, chain, packets, Truth.YES, frozenset())[0]
    ]


def nat(ruleset: Ruleset, hook: str, packets: Packets) -> Reached:
    """The rules at a hook that may give these packets another address or port.

    The first to do so is the last; an accept ends its own chain, and those after it are asked.
    """
    found: Reached = []
    for chain in ruleset.at(hook, kind="nat"):
        here, _ = _walk(ruleset, chain, packets, Truth.YES, frozenset())
        found += [(truth, rule) for truth, rule in here if rule.action in _NAT]
        if any(truth is Truth.YES for truth, _ in found):
            break
    return found


def _walk(
    ruleset: Ruleset, chain: Chain, packets: Packets, so_far: Truth, above: frozenset[str]
) -> tuple[Reached, bool]:
    """The rules that packets come to and may match, and whether no packet goes on from here."""
    found: Reached = []
    for rule in chain.rules:
        truth = matches(rule, packets)
        if truth is Truth.NO:
            continue
        ended = truth is Truth.YES
        truth = min(truth, so_far)
        found.append((truth, rule))
        if rule.action in ("jump", "goto"):
            called = ruleset.chains.get((chain.table, rule.target))
            if called is None or str(called) in above:
                continue
            theirs, inside = _walk(ruleset, called, packets, truth, above | {str(chain)})
            found += theirs
            if ended and rule.action == "goto":
                return found, inside
            ended = ended and inside
        elif rule.action == "return":
            if ended:
                return found, False
            continue
        elif rule.action not in _FINAL:
            continue
        if ended:
            return found, True
    return found, False


# nft


def from_nft(objects: Iterable[Mapping[str, Any]], text: str = "", skip: Iterable[str] = ()) -> (
    Ruleset
):  # fmt: skip
    """From the list of `nft -j list ruleset`, and the rules' own text from `nft -a list ruleset`.

    `skip`: tables ("ip nat") that are known better from elsewhere.
    """
    objects, skip = list(objects), set(skip)
    texts = _nft_texts(text)
    sets = {
        (each["family"], each["table"], each["name"]): each
        for one in objects
        for kind, each in one.items()
        if kind in ("set", "map")
    }
    chains: dict[tuple[str, str], Chain] = {}
    for each in _of_kind(objects, "chain"):
        table = f"{each['family']} {each['table']}"
        # An IPv6 table sees none of ours, and a bridge's or device's is before or after all this.
        if table not in skip and each["family"] in ("ip", "inet"):
            chains[table, each["name"]] = Chain(
                table,
                each["name"],
                each.get("hook", ""),
                each.get("type", ""),
                each.get("policy", "accept"),
                each.get("prio", 0),
            )
    for each in _of_kind(objects, "rule"):
        table = f"{each['family']} {each['table']}"
        chain = chains.get((table, each["chain"]))
        if chain:
            where = f"{chain} handle {each['handle']}"
            said = texts.get((table, each["chain"], each["handle"]))
            found = f"{where}: {said}" if said else where
            chain.rules.extend(_nft_rules(found, each, sets))
    flowtables = tuple(
        Flowtable(
            f"{each['family']} {each['table']} {each['name']}",
            tuple(_listed(each.get("dev", []))),
            "offload" in _listed(each.get("flags", [])),
        )
        for each in _of_kind(objects, "flowtable")
    )
    helpers = {each["name"]: each["type"] for each in _of_kind(objects, "ct helper")}
    return Ruleset(chains, flowtables, helpers)


def xt_tables(objects: Iterable[Mapping[str, Any]]) -> set[str]:
    """The tables with extensions of iptables in their rules, which nft's JSON names, no more."""
    return {
        f"{rule['family']} {rule['table']}"
        for rule in _of_kind(objects, "rule")
        if any("xt" in each for each in rule["expr"])
    }


def _of_kind(objects: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    for each in objects:
        if kind in each:
            yield each[kind]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _nft_texts(text: str) -> dict[tuple[str, str, int], str]:
    """The rules' text by table, chain and handle."""
    texts = {}
    table = chain = ""
    for line in text.splitlines():
        if found := re.match(r"table (\S+ \S+) \{", line):
            table = found[1]
        elif found := re.match(r"\tchain (\S+) \{", line):
            chain = found[1]
        elif found := re.match(r"\t\t(.*) # handle (\d+)$", line):
            said = re.sub(r" counter packets \d+ bytes \d+", "", found[1])
            texts[table, chain, int(found[2])] = said
    return texts


_Sets = Mapping[tuple[str, str, str], Mapping[str, Any]]
_ACTIONS = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return"}
_TAKING = _NAT | {"notrack", "tproxy"}
_RANDOM = {"random", "fully-random"}
# Statements that neither choose nor judge packets.
_QUIET = {"counter", "log", "mangle", "comment", "continue", "set", "meter", "dup", "flow"}


def _nft_rules(text: str, rule: Mapping[str, Any], sets: _Sets) -> Iterator[Rule]:
    asked: list[Match] = []
    acts = False
    for statement in rule["expr"]:
        ((kind, value),) = statement.items()
        if kind == "match":
            asked += _nft_match(value, rule, sets)
        elif kind in _ACTIONS:
            acts = True
            yield Rule(text, tuple(asked), _ACTIONS[kind])
        elif kind in ("jump", "goto"):
            acts = True
            yield Rule(text, tuple(asked), kind, value["target"])
        elif kind == "vmap":
            acts = True
            yield from _nft_verdicts(text, asked, value, rule, sets)
        elif kind in _TAKING:
            acts = True
            given = value or {}
            keys = [
                key for each in ("addr", "port") for key in _map_keys(given.get(each), rule, sets)
            ]
            yield Rule(
                text,
                (*asked, *keys),
                kind,
                addresses=_addresses(given.get("addr")),
                ports=_one_range(given.get("port")),
                random=bool(_RANDOM & set(_listed(given.get("flags", [])))),
            )
        elif kind == "ct helper":
            yield Rule(text, tuple(asked), "helper", str(value))
        elif kind == "queue":
            yield Rule(text, tuple(asked), "queue")
        elif kind not in _QUIET:
            asked.append(Match(kind, None))
    if not acts:
        yield Rule(text, tuple(asked))


def _map_keys(given: Any, rule: Mapping[str, Any], sets: _Sets) -> list[Match]:
    """What NAT asks for that takes an address or port from a map: a key of it."""
    if not isinstance(given, dict) or "map" not in given:
        return []
    elements = _elements(given["map"]["data"], rule, sets)
    if elements is None:
        return [Match("?", None)]
    keys = {"set": [key for key, _ in elements]}
    return _nft_match({"left": given["map"]["key"], "right": keys}, rule, sets)


def _nft_verdicts(
    text: str, asked: list[Match], vmap: Mapping[str, Any], rule: Mapping[str, Any], sets: _Sets
) -> Iterator[Rule]:
    data = vmap["data"]
    elements = _elements(data, rule, sets)
    for element in elements or []:
        if not isinstance(element, list) or len(element) != 2 or not isinstance(element[1], dict):
            continue
        match = {"op": "==", "left": vmap["key"], "right": element[0]}
        both = (*asked, *_nft_match(match, rule, sets))
        ((kind, value),) = element[1].items()
        if kind in _ACTIONS:
            yield Rule(text, both, _ACTIONS[kind])
        elif kind in ("jump", "goto"):
            yield Rule(text, both, kind, value["target"])


def _elements(value: Any, rule: Mapping[str, Any], sets: _Sets) -> list[Any] | None:
    """What an anonymous or named set has; None where that changes, or is not told."""
    if isinstance(value, dict) and "set" in value:
        return _listed(value["set"])
    if isinstance(value, str) and value.startswith("@"):
        named = sets.get((rule["family"], rule["table"], value[1:]), {})
        if {"dynamic", "timeout"} & set(_listed(named.get("flags", []))) or not named:
            return None
        return _listed(named.get("elem", []))
    return None


_FIELDS = {
    ("meta", "iifname"): "iif",
    ("meta", "iif"): "iif",
    ("meta", "oifname"): "oif",
    ("meta", "oif"): "oif",
    ("meta", "l4proto"): "protocol",
    ("meta", "nfproto"): "nfproto",
    ("meta", "protocol"): "ethertype",
    ("ether", "type"): "ethertype",
    ("meta", "pkttype"): "pkttype",
    ("ip", "saddr"): "saddr",
    ("ip", "daddr"): "daddr",
    ("ip", "protocol"): "protocol",
    ("udp", "sport"): "sport",
    ("udp", "dport"): "dport",
    ("th", "sport"): "sport",
    ("th", "dport"): "dport",
    ("ct", "state"): "state",
    ("ct", "status"): "status",
}
# Which of these it is, a field of them tells without more.
_OTHER_PROTOCOLS = {"tcp", "icmp", "icmpv6", "igmp", "sctp", "dccp", "esp", "ah", "gre", "udplite"}


def _nft_match(match: Mapping[str, Any], rule: Mapping[str, Any], sets: _Sets) -> list[Match]:
    left = match["left"]
    if not isinstance(left, dict):
        return [Match("?", None)]
    if "&" in left:  # a mask; of an address or a mark
        return [Match("?", None)]
    ((kind, value),) = left.items()
    if kind == "fib" and value.get("result") == "type" and "daddr" in _listed(value["flags"]):
        name = "type"
    elif kind == "payload" and "protocol" in value:
        protocol = value["protocol"]
        if protocol in _OTHER_PROTOCOLS:
            return [Match("protocol", (protocol,))]
        if protocol == "ip6":
            return [Match("nfproto", ("ipv6",))]
        name = _FIELDS.get((protocol, value["field"]), "?")
    elif kind in ("meta", "ct") and isinstance(value, dict):
        name = _FIELDS.get((kind, value["key"]), "?")
    else:
        name = "?"
    asked = [Match(name, *_nft_values(name, match, rule, sets))]
    if kind == "payload" and value.get("protocol") == "udp":
        asked.insert(0, Match("protocol", ("udp",)))
    return asked


def _nft_values(
    name: str, match: Mapping[str, Any], rule: Mapping[str, Any], sets: _Sets
) -> tuple[tuple[Value, ...] | None, bool]:
    """The values that are right, and whether they are those that are wrong."""
    op, right = match.get("op", "=="), match["right"]
    if name == "?":
        return None, False
    if op in ("<", ">", "<=", ">="):
        bound = _one_range(right)
        if bound is None or name not in ("sport", "dport"):
            return None, False
        return ({
            "<": (0, bound[0] - 1), "<=": (0, bound[0]),
            ">": (bound[0] + 1, _LAST_PORT), ">=": (bound[0], _LAST_PORT),
        }[op],), False  # fmt: skip
    items = _elements(right, rule, sets)
    if items is None:
        if isinstance(right, str) and right.startswith("@"):
            return None, False
        items = _listed(right["|"] if isinstance(right, dict) and "|" in right else right)
    values = [_nft_value(name, each) for each in items]
    if None in values:
        return None, False
    return tuple(each for each in values if each is not None), op == "!="


def _nft_value(name: str, item: Any) -> Value | None:
    if isinstance(item, dict) and "elem" in item:
        item = item["elem"]["val"]
    if name in ("saddr", "daddr"):
        found = _addresses(item)
        return found[0] if found else None
    if name in ("sport", "dport"):
        return _one_range(item)
    if isinstance(item, dict | list):
        return None
    return _PROTOCOLS.get(str(item), str(item)) if name == "protocol" else str(item)


def _addresses(item: Any) -> tuple[Range, ...]:
    """The addresses of an expression of nft's; none where they are not told plainly."""
    try:
        if isinstance(item, dict) and "prefix" in item:
            return (of_network(f"{item['prefix']['addr']}/{item['prefix']['len']}"),)
        if isinstance(item, dict) and "range" in item:
            low, high = item["range"]
            return ((int(IPv4Address(low)), int(IPv4Address(high))),)
        if isinstance(item, str):
            return (of_network(item),)
    except ValueError:
        pass
    return ()


def _one_range(item: Any) -> Range | None:
    if isinstance(item, dict) and "range" in item:
        item = item["range"]
    if isinstance(item, int):
        return item, item
    if isinstance(item, list) and len(item) == 2 and all(isinstance(each, int) for each in item):
        return item[0], item[1]
    return None


def of_network(text: str) -> Range:
    """A network's or a host's addresses as numbers. Raises ValueError."""
    network = IPv4Network(text, strict=False)
    return int(network.network_address), int(network.broadcast_address)


# iptables-save

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
                chain.rules.append(_iptables_rule(f"{table} {line}", words[2:]))
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
        values = [_PROTOCOLS.get(each, each.lower()) for each in parts]
        if name == "protocol" and value in ("all", "0"):
            return Match(name, ("udp",))
    if not values or None in values:
        return Match(name, None)
    return Match(name, tuple(each for each in values if each is not None), negated)


def _iptables_addresses(text: str) -> tuple[Range, ...]:
    if low_high := re.fullmatch(r"([\d.]+)-([\d.]+)", text):
        return ((int(IPv4Address(low_high[1])), int(IPv4Address(low_high[2]))),)
    try:
        return tuple(of_network(each) for each in text.split(",")) if text else ()
    except ValueError:
        return ()


def _ports(text: str) -> Range | None:
    found = re.fullmatch(r"(\d*)(?:[:-](\d*))?", text)
    if not found or not text:
        return None
    low = int(found[1] or 0)
    high = low if found[2] is None else int(found[2] or _LAST_PORT)
    return low, high
