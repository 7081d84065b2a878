"""Rules from what `nft -j` says."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from moh_ebpf.doctor import rules
from moh_ebpf.doctor.rules import (
    LAST_PORT,
    NAT,
    PROTOCOLS,
    Chain,
    Flowtable,
    Match,
    Range,
    Rule,
    Ruleset,
    Value,
)


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
            removal = f"nft delete rule {where}"
            parts = _nft_rules(found, each, sets)
            chain.rules.extend(replace(part, removal=removal) for part in parts)
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
_TAKING = NAT | {"notrack", "tproxy"}
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
            ">": (bound[0] + 1, LAST_PORT), ">=": (bound[0], LAST_PORT),
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
    return PROTOCOLS.get(str(item), str(item)) if name == "protocol" else str(item)


def _addresses(item: Any) -> tuple[Range, ...]:
    """The addresses of an expression of nft's; none where they are not told plainly."""
    try:
        if isinstance(item, dict) and "prefix" in item:
            return (rules.of_network(f"{item['prefix']['addr']}/{item['prefix']['len']}"),)
        if isinstance(item, dict) and "range" in item:
            low, high = item["range"]
            return ((int(IPv4Address(low)), int(IPv4Address(high))),)
        if isinstance(item, str):
            return (rules.of_network(item),)
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
