"""doctor's parsing and judging, and that its page has what the code has."""

import ast
import json
import re
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf import layout
from moh_ebpf.attach.cautions import Caution
from moh_ebpf.calls.peers import Peer, Snapshot, Wait, Wan
from moh_ebpf.counters import COUNTERS
from moh_ebpf.doctor import CHECKS, Finding, Level, gather, rules, worst
from moh_ebpf.doctor.ask import machine, netfilter
from moh_ebpf.doctor.check import WHAT_TO_TRY
from moh_ebpf.doctor.checks import run
from moh_ebpf.doctor.checks.machine import listening
from moh_ebpf.doctor.facts import Facts, Route, Target
from moh_ebpf.doctor.iptables import from_iptables
from moh_ebpf.doctor.nft import from_nft
from moh_ebpf.doctor.rules import Flowtable, Packets, Ruleset, Truth
from moh_ebpf.errors import MohError
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.registry.record import Place, Role
from moh_ebpf.settings import Settings

ROOT = Path(__file__).parents[2]
UCM, PUBLIC = IPv4Address("10.10.10.10"), IPv4Address("198.51.100.2")
WAN = Interface(2, "wan", 14, (PUBLIC,), None)
LAN = Interface(3, "lan", 14, (IPv4Address("10.10.10.1"),), None)
SETTINGS = Settings(
    wan=("wan",),
    lan=("lan",),
    ucm=(UCM,),
    public=(PUBLIC,),
    provider=(IPv4Network("203.0.113.0/24"),),
)
PROVIDER = IPv4Address("203.0.113.1")
# A firewall that is well, nothing attached.
WELL = Facts(
    settings=SETTINGS,
    wan=[WAN],
    lan=[LAN],
    addresses={PUBLIC: "wan"},
    targets=[Target(PROVIDER, "203.0.113.0/24")],
    routes={
        UCM: Route("lan", None, f"ip route get {UCM}: dev lan"),
        PROVIDER: Route("wan", "198.51.100.1", f"ip route get {PROVIDER}: dev wan"),
    },
)
PACKETS = Packets(
    iif="wan",
    saddr=((int(IPv4Address("203.0.113.0")), int(IPv4Address("203.0.113.255"))),),
    daddr=((int(PUBLIC), int(PUBLIC)),),
    sport=((1024, 65535),),
    dport=((16384, 32767),),
)


def found(facts: Facts) -> dict[str, Finding]:
    return {each.check: each for each in run(facts) if each.level is not Level.OK}


def chain(*policy_and_rules: str) -> Ruleset:
    policy, *lines = policy_and_rules
    saved = f"*filter\n:INPUT {policy} [0:0]\n:sub - [0:0]\n" + "\n".join(lines) + "\nCOMMIT\n"
    return from_iptables(saved, "iptables")


# What rules do with packets


@pytest.mark.parametrize(
    ("rule", "truth"),
    [
        ("-j ACCEPT", Truth.YES),
        ("-p udp -j ACCEPT", Truth.YES),
        ("-p all -j ACCEPT", Truth.YES),
        ("-p tcp -j ACCEPT", Truth.NO),
        ("! -p tcp -j ACCEPT", Truth.YES),
        ("-i wan -j ACCEPT", Truth.YES),
        ("-i w+ -j ACCEPT", Truth.YES),
        ("! -i wan -j ACCEPT", Truth.NO),
        ("-o lan -j ACCEPT", Truth.NO),
        ("-s 203.0.113.0/24 -j ACCEPT", Truth.YES),
        ("-s 203.0.113.7/32 -j ACCEPT", Truth.SOME),
        ("! -s 203.0.113.7/32 -j ACCEPT", Truth.SOME),
        ("-s 192.0.2.0/24 -j ACCEPT", Truth.NO),
        ("-d 198.51.100.2/32 -j ACCEPT", Truth.YES),
        ("-p udp -m udp --dport 5060 -j ACCEPT", Truth.NO),
        ("-p udp -m udp --dport 1024:65535 -j ACCEPT", Truth.YES),
        ("-p udp -m udp --dport 20000: -j ACCEPT", Truth.SOME),
        ("-p udp -m udp ! --dport 5060 -j ACCEPT", Truth.YES),
        ("-p udp -m multiport --dports 53,16384:20000,20001:32767 -j ACCEPT", Truth.YES),
        ("-p udp -m multiport --dports 53,20000 -j ACCEPT", Truth.SOME),
        ("-p udp -m multiport --ports 53 -j ACCEPT", Truth.UNKNOWN),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", Truth.NO),
        ("-m conntrack --ctstate NEW -j ACCEPT", Truth.YES),
        ("-m state --state NEW,ESTABLISHED -j ACCEPT", Truth.YES),
        ("-m conntrack ! --ctstate INVALID -j ACCEPT", Truth.YES),
        ("-m conntrack --ctstatus DNAT -j ACCEPT", Truth.NO),
        ("-m addrtype --dst-type LOCAL -j ACCEPT", Truth.YES),
        ("-m set --match-set MOH src,src -j ACCEPT", Truth.UNKNOWN),
        ('-p udp -m comment --comment "a ! -j DROP" -j ACCEPT', Truth.YES),
        ("-m limit --limit 5/sec -j ACCEPT", Truth.UNKNOWN),
        ("-m mark --mark 0x1 -j ACCEPT", Truth.UNKNOWN),
        ("-f -j ACCEPT", Truth.NO),
        ("! -f -j ACCEPT", Truth.YES),
        ("-m conntrack --ctorigdstport 443 -j ACCEPT", Truth.NO),
        ("-m conntrack --ctorigdst 198.51.100.2 -j ACCEPT", Truth.YES),
        ("-m conntrack --ctorigdst 10.9.9.9 -j ACCEPT", Truth.NO),
        ("-m conntrack --ctexpire 10 -j ACCEPT", Truth.UNKNOWN),
        ("-m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT", Truth.YES),
        ("-m addrtype --src-type UNICAST -j ACCEPT", Truth.UNKNOWN),
        ("-m comment --comment '-f' -j ACCEPT", Truth.YES),
        ("-m comment --comment '!' -i lan -j ACCEPT", Truth.NO),
    ],
)
def test_what_iptables_rules_match(rule: str, truth: Truth) -> None:
    (parsed,) = next(iter(chain("DROP", f"-A INPUT {rule}").chains.values())).rules
    assert parsed.action == "accept"
    assert rules.matches(parsed, PACKETS) is truth


def test_addresses_of_nobody_knows_whom_say_nothing_but_for_udp() -> None:
    anybody = replace(PACKETS, anybody="saddr")
    for words, truth in (("", Truth.UNKNOWN), ("-p udp ", Truth.SOME)):
        (parsed,) = next(
            iter(chain("DROP", f"-A INPUT -s 203.0.113.7/32 {words}-j ACCEPT").chains.values())
        ).rules
        assert rules.matches(parsed, anybody) is truth


@pytest.mark.parametrize(
    ("lines", "passes", "by"),
    [
        (["ACCEPT"], Truth.YES, "INPUT: policy accept"),
        (["DROP"], Truth.NO, ""),
        (["ACCEPT", "-A INPUT -j DROP"], Truth.NO, ""),
        (["ACCEPT", "-A INPUT -i wan -j REJECT"], Truth.NO, ""),
        (["ACCEPT", "-A INPUT -p udp --dport 16384:32767 -j DROP"], Truth.NO, ""),
        (["ACCEPT", "-A INPUT -m limit --limit 1/s -j DROP"], Truth.YES, "policy accept"),
        (["DROP", "-A INPUT -p udp -j ACCEPT", "-A INPUT -j DROP"], Truth.YES, "-p udp -j ACCEPT"),
        (["DROP", "-A INPUT -j sub", "-A sub -p udp -j ACCEPT"], Truth.YES, "-A sub"),
        (["ACCEPT", "-A INPUT -j sub", "-A sub -j DROP"], Truth.NO, ""),
        (["ACCEPT", "-A INPUT -j sub", "-A sub -p udp -j RETURN", "-A sub -j DROP"], Truth.YES, ""),
        (["ACCEPT", "-A INPUT -g sub", "-A INPUT -j DROP"], Truth.YES, "policy accept"),
        (["DROP", "-A INPUT -m mark --mark 1 -j sub", "-A sub -j ACCEPT"], Truth.UNKNOWN, "sub"),
        (["DROP", "-A INPUT -j sub", "-A sub -j sub"], Truth.NO, ""),
        (["DROP", "-A INPUT -j LOG", "-A INPUT -j SET --add-set x src"], Truth.NO, ""),
    ],
)  # fmt: skip
def test_what_a_chain_does(lines: list[str], passes: Truth, by: str) -> None:
    ruleset = chain(*lines)
    (input_chain,) = ruleset.at("input")
    outcome = rules.outcome(ruleset, input_chain, PACKETS)
    assert outcome.passes is passes
    assert by in outcome.by


def nft(expression: list[Any], *more: dict[str, Any]) -> Ruleset:
    return from_nft([
        {"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "inet", "table": "t", "name": "c", "handle": 1, "type": "filter",
                   "hook": "input", "prio": 0, "policy": "drop"}},
        *more,
        {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 2, "expr": expression}},
    ])  # fmt: skip


def match(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


STATE = {"ct": {"key": "state"}}
DPORT, SADDR = payload("udp", "dport"), payload("ip", "saddr")
PREFIX = {"prefix": {"addr": "203.0.113.0", "len": 24}}
NAMED = {"set": {"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", "handle": 9}}


def named(**values: object) -> dict[str, Any]:
    return {"set": NAMED["set"] | values}


@pytest.mark.parametrize(
    ("matched", "truth", "more"),
    [
        (match(STATE, ["established", "related"], "in"), Truth.NO, []),
        (match(STATE, {"set": ["established", "new"]}), Truth.YES, []),
        (match(STATE, {"|": ["established", "new"]}, "in"), Truth.YES, []),
        (match(STATE, "new", "!="), Truth.NO, []),
        (match({"meta": {"key": "iifname"}}, "wan*"), Truth.YES, []),
        (match({"meta": {"key": "iifname"}}, {"set": ["lo", "lan"]}), Truth.NO, []),
        (match({"meta": {"key": "oifname"}}, "lan"), Truth.NO, []),
        (match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), Truth.YES, []),
        (match({"meta": {"key": "l4proto"}}, 6), Truth.NO, []),
        (match({"meta": {"key": "mark"}}, 1), Truth.UNKNOWN, []),
        (match({"meta": {"key": "nfproto"}}, "ipv6"), Truth.NO, []),
        (match({"meta": {"key": "protocol"}}, "ip"), Truth.YES, []),
        (match({"meta": {"key": "protocol"}}, "ip", "!="), Truth.NO, []),
        (match({"meta": {"key": "protocol"}}, {"set": ["ip6", "arp"]}), Truth.NO, []),
        (match(payload("ether", "type"), "ip"), Truth.YES, []),
        (match(payload("tcp", "dport"), 20000), Truth.NO, []),
        (match(payload("ip6", "saddr"), "::1"), Truth.NO, []),
        (match(payload("icmp", "type"), "echo-request"), Truth.NO, []),
        (match(payload("th", "dport"), {"range": [16384, 32767]}), Truth.YES, []),
        (match(DPORT, {"set": [53, {"range": [20000, 20001]}]}), Truth.SOME, []),
        (match(DPORT, 10000, ">="), Truth.YES, []),
        (match(DPORT, 10000, "<"), Truth.NO, []),
        (match(SADDR, PREFIX), Truth.YES, []),
        (match(SADDR, PREFIX, "!="), Truth.NO, []),
        (match(SADDR, {"range": ["203.0.113.1", "203.0.113.9"]}), Truth.SOME, []),
        (match(SADDR, "@s"), Truth.YES, [named(elem=["192.0.2.1", PREFIX])]),
        (match(SADDR, "@s"), Truth.NO, [named(elem=["192.0.2.1"])]),
        (match(SADDR, "@s"), Truth.NO, [named()]),
        (match(SADDR, "@s"), Truth.UNKNOWN, [named(flags=["dynamic"], elem=[PREFIX])]),
        (match(SADDR, "@s"), Truth.UNKNOWN, []),
        (match(SADDR, "@s"), Truth.SOME, [named(elem=[{"elem": {"val": "203.0.113.9"}}])]),
        (match({"&": [SADDR, 255]}, 1), Truth.UNKNOWN, []),
        (match({"concat": [SADDR, DPORT]}, {"set": []}), Truth.UNKNOWN, []),
        (match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), Truth.YES, []),
        (match({"payload": {"base": "th", "offset": 64, "len": 2}}, 2), Truth.UNKNOWN, []),
        ({"limit": {"rate": 5, "per": "second"}}, Truth.UNKNOWN, []),
        ({"xt": {"type": "match", "name": "conntrack"}}, Truth.UNKNOWN, []),
        ({"counter": {"packets": 0, "bytes": 0}}, Truth.YES, []),
    ],
)
def test_what_nft_rules_match(
    matched: dict[str, Any], truth: Truth, more: list[dict[str, Any]]
) -> None:
    ruleset = nft([matched, {"accept": None}], *more)
    (_, rule), *_ = ruleset.rules()
    assert rules.matches(rule, PACKETS) is truth


def test_verdict_maps_and_nat_of_nft() -> None:
    states = {"set": [["established", {"accept": None}], ["new", {"jump": {"target": "sub"}}]]}
    parsed = [rule for _, rule in nft([{"vmap": {"key": STATE, "data": states}}]).rules()]
    assert [(rule.action, rules.matches(rule, PACKETS)) for rule in parsed] == [
        ("accept", Truth.NO),
        ("jump", Truth.YES),
    ]
    (_, snat), *_ = nft([{"snat": {"addr": "198.51.100.2", "port": 4000}}]).rules()
    assert (snat.action, snat.ports, snat.addresses) == ("snat", (4000, 4000), PACKETS.daddr)
    (_, masq), *_ = nft([{"masquerade": {"port": {"range": [4000, 4001]}}}]).rules()
    assert (masq.ports, masq.random) == ((4000, 4001), False)


@pytest.mark.parametrize(
    ("flags", "random"),
    [("random", True), (["fully-random", "persistent"], True), ("persistent", False)],
)
def test_nat_at_random(flags: object, random: bool) -> None:
    """As nft 1.0.6 prints one flag, and several."""
    (_, masquerade), *_ = nft([{"masquerade": {"flags": flags}}]).rules()
    assert masquerade.random is random


@pytest.mark.parametrize(
    ("data", "truth"),
    [
        ({"set": [[20000, {"concat": ["10.10.10.10", 9]}], [5060, "10.10.10.9"]]}, Truth.SOME),
        ({"set": [[5060, {"concat": ["10.10.10.10", 20000]}]]}, Truth.NO),
        ("@s", Truth.SOME),
        ("@of-another-table", Truth.UNKNOWN),
    ],
)
def test_nat_by_a_map_is_for_its_keys(data: object, truth: Truth) -> None:
    known = {"map": NAMED["set"] | {"map": "ipv4_addr", "elem": [[20000, "10.10.10.10"]]}}
    by_map = {"addr": {"map": {"key": DPORT, "data": data}}}
    (_, dnat), *_ = nft([{"dnat": by_map}], known).rules()
    assert (dnat.action, rules.matches(dnat, PACKETS)) == ("dnat", truth)


def chain_of_nat(name: str, priority: int, statement: dict[str, Any]) -> list[dict[str, Any]]:
    of = {"family": "inet", "table": "t", "handle": 1}
    return [
        {"chain": of | {"name": name, "type": "nat", "hook": "postrouting", "prio": priority}},
        {"rule": of | {"chain": name, "expr": [statement]}},
    ]


@pytest.mark.parametrize(
    ("statement", "reached"),
    [
        ({"masquerade": None}, ["masquerade"]),
        ({"accept": None}, ["snat"]),
    ],
)
def test_the_first_nat_by_priority_is_the_last(
    statement: dict[str, Any], reached: list[str]
) -> None:
    """As the kernel does it: an accept is for its chain alone."""
    later = chain_of_nat("a", 100, {"snat": {"addr": "198.51.100.2"}})
    ruleset = from_nft([*later, *chain_of_nat("b", -10, statement)])
    assert [rule.action for _, rule in rules.nat(ruleset, "postrouting", PACKETS)] == reached


def test_a_rules_own_text_is_told_without_its_counts() -> None:
    rule = "udp dport 1 counter packets 3 bytes 4 accept # handle 2"
    text = f"table inet t {{\n\tchain c {{ # handle 1\n\t\t{rule}\n"
    objects = [
        {"chain": {"family": "inet", "table": "t", "name": "c", "handle": 1}},
        {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 2, "expr": []}},
    ]
    (_, parsed), *_ = from_nft(objects, text).rules()
    assert parsed.text == "inet t c handle 2: udp dport 1 accept"


# What else is parsed


def test_conntracks_entries() -> None:
    moved = (
        "ipv4     2 udp      17 29 src=10.10.10.10 dst=203.0.113.10 sport=24576 dport=21000 "
        "packets=1 bytes=200 [UNREPLIED] src=203.0.113.10 dst=198.51.100.2 sport=21000 dport=1024 "
        "mark=0 zone=0 use=2"
    )
    right = moved.replace("dport=1024", "dport=24576")
    of_tcp = moved.replace("udp      17", "tcp      6")
    of_others = moved.replace("src=10.10.10.10", "src=10.10.10.11")
    of_sip = moved.replace("sport=24576", "sport=5060")
    elsewhere = moved.replace("dst=198.51.100.2", "dst=10.10.10.1")
    lines = [moved, right, of_tcp, of_others, of_sip, elsewhere, "", "udp"]
    (entry,) = netfilter.telling_connections(SETTINGS, lines)
    assert (entry.source, entry.answer_to) == (("10.10.10.10", 24576), ("198.51.100.2", 1024))
    by_conntrack = moved.removeprefix("ipv4     2 ")
    assert [
        each.answer_to[1] for each in netfilter.telling_connections(SETTINGS, [by_conntrack])
    ] == [1024]


def of_another(inside: int, outside: int) -> str:
    """A softphone's entry of conntrack's."""
    return (
        f"udp 17 29 src=10.10.10.77 dst=203.0.113.10 sport={inside} dport=21000 "
        f"src=203.0.113.10 dst=198.51.100.2 sport=21000 dport={outside} use=2"
    )


@pytest.mark.parametrize(
    ("inside", "outside", "level"),
    [(4000, 4000, Level.NOTE), (40000, 4005, Level.WARNING), (4006, 4006, None)],
)
def test_another_host_on_a_phantom_port(inside: int, outside: int, level: Level | None) -> None:
    entries = netfilter.telling_connections(SETTINGS, [of_another(inside, outside)])
    finding = found(replace(WELL, anothers=entries)).get("anothers")
    assert (finding and finding.level) == level
    assert finding is None or f"10.10.10.77:{inside} goes out as" in finding.found


@pytest.mark.parametrize(
    "reached",
    [
        replace(WELL, lan=[]),
        replace(WELL, settings=replace(SETTINGS, provider=(IPv4Network("198.18.0.0/15"),))),
        replace(WELL, routes={IPv4Address("10.10.10.77"): Route("dmz", None, "dev dmz")}),
    ],
    ids=["without a LAN", "a peer that may not teach", "behind no LAN"],
)
def test_another_hosts_moved_port_is_no_fault_where_its_answers_come(reached: Facts) -> None:
    entries = netfilter.telling_connections(SETTINGS, [of_another(40000, 4000)])
    assert found(replace(reached, anothers=entries))["anothers"].level is Level.NOTE


def test_capabilities() -> None:
    assert machine.capabilities_lacking("CapEff:\t000001ffffffffff\n") == []
    assert machine.capabilities_lacking("CapEff:\t000001ffffdfffff\n") == ["CAP_SYS_ADMIN"]
    assert len(machine.capabilities_lacking("CapEff:\t0000000000000000\n")) == 3
    assert machine.capabilities_lacking("") == []


@pytest.mark.parametrize(
    ("local", "state", "where"),
    [
        ("00000000:0FA0", "07", ("0.0.0.0", 4000)),
        ("026433C6:0FA1", "07", ("198.51.100.2", 4001)),
        ("0100007F:0FA0", "07", ("127.0.0.1", 4000)),
        ("00000000:0FA0", "01", None),
        ("00000000000000000000000000000000:0FA0", "07", ("0.0.0.0", 4000)),
        ("0000000000000000FFFF0000026433C6:0FA0", "07", ("198.51.100.2", 4000)),
        ("00000000000000000000000001000000:0FA0", "07", None),
        ("B80D0120000000000000000001000000:0FA0", "07", None),
    ],
)
def test_sockets(local: str, state: str, where: tuple[str, int] | None) -> None:
    """On a machine of little endian."""
    line = f"  12: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000"
    found = listening(line)
    assert found == (where and (IPv4Address(where[0]), where[1]))


@pytest.mark.parametrize(
    ("local", "warned"),
    [
        ("00000000:0FA0", True),
        ("026433C6:0FA1", True),
        ("00000000:0FA5", True),
        ("00000000:0FA6", False),
        ("010A0A0A:0FA0", False),  # the LAN's
        ("0100007F:0FA0", False),
    ],
)
def test_listeners_where_learn_takes_packets(local: str, warned: bool) -> None:
    line = f"  12: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000"
    assert ("listeners" in found(replace(WELL, sockets=[line]))) is warned


# Judging


def test_well() -> None:
    assert list(found(WELL)) == ["attached"]
    assert found(WELL)["attached"].level is Level.NOTE
    assert worst(run(WELL)) is Level.NOTE
    assert worst([]) is Level.OK


FLOWTABLE = Flowtable("ip t f", ("lan", "wan"), hardware=False)


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        ({"lacking_rights": ["CAP_BPF"]}, "privileges", Level.ERROR),
        ({"kernel_lacks": "this kernel lacks LRU hash maps (Linux 4.10)"}, "kernel", Level.ERROR),
        ({"bcc": "missing"}, "compiler", Level.ERROR),
        ({"bcc": "other"}, "compiler", Level.ERROR),
        ({"headers": False}, "compiler", Level.ERROR),
        (
            {"no_hooks": MohError("clsact on lo: this kernel lacks it", "modprobe sch_ingress")},
            "clsact",
            Level.ERROR,
        ),
        ({"without_carrier": ["wan"]}, "interfaces", Level.ERROR),
        ({"addresses": {}}, "public-address", Level.NOTE),
        ({"modules": ["nf_conntrack_sip"]}, "sip-helper", Level.NOTE),
        ({"offloading": ["lan"]}, "hardware-flows", Level.NOTE),
        ({"ruleset": Ruleset({}, (FLOWTABLE,))}, "flowtables", Level.NOTE),
        (
            {"ruleset": Ruleset({}, (replace(FLOWTABLE, hardware=True),))},
            "hardware-flows",
            Level.WARNING,
        ),
        ({"other_version": True}, "attached", Level.WARNING),
        ({"routes": {**WELL.routes, PROVIDER: None}}, "wan-route", Level.ERROR),
        ({"routes": {**WELL.routes, UCM: None}}, "ucm-route", Level.WARNING),
        ({"routes": {**WELL.routes, UCM: None}, "lan": []}, "ucm-route", Level.WARNING),
        (
            {"routes": {**WELL.routes, UCM: WELL.routes[PROVIDER]}, "lan": []},
            "ucm-route",
            Level.NOTE,
        ),
        ({"failed": [("198.51.100.1", "wan", "FAILED")]}, "wan-neighbour", Level.ERROR),
        ({"sysctls": {"net.ipv4.conf.wan.forwarding": 0}}, "forwarding", Level.ERROR),
        ({"others": [Caution("wan egress: a u32 filter")]}, "other-programs", Level.WARNING),
    ],
)
def test_levels(facts: dict[str, Any], check: str, level: Level) -> None:
    one = found(replace(WELL, **facts))[check]
    assert one.level is level
    assert one.evidence
    assert one.remedy


def test_a_flowtable_elsewhere_is_none_of_ours() -> None:
    elsewhere = replace(FLOWTABLE, devices=("dmz",), hardware=True)
    assert list(found(replace(WELL, ruleset=Ruleset({}, (elsewhere,))))) == ["attached"]


def test_flowtables_of_nft() -> None:
    """As nft 1.0.6 and 1.1 print them."""
    table = {"family": "inet", "table": "t", "name": "f", "handle": 3, "hook": "ingress"}
    devices = {"dev": ["lan", "wan"]}
    for more, hardware in (
        (devices, False),
        (devices | {"flags": "offload"}, True),
        (devices | {"flags": ["offload", "counter"]}, True),
    ):
        (flowtable,) = from_nft([{"flowtable": table | more}]).flowtables
        assert flowtable == Flowtable("inet t f", ("lan", "wan"), hardware)
    (single,) = from_nft([{"flowtable": table | {"dev": "lan"}}]).flowtables
    assert single.devices == ("lan",)


def attached(seconds: float = 2, /, **counters: tuple[int, int]) -> Facts:
    """Attached, with counters before and after, looked at for so long."""
    before, after = (
        Snapshot(time, [], {name: counters.get(name, (0, 0))[n] for name in COUNTERS})
        for n, time in enumerate((1000, 1000 + seconds))
    )
    return replace(WELL, attached=SETTINGS, before=before, after=after)


@pytest.mark.parametrize(
    ("counters", "level", "words"),
    [
        ({"dropped_unidentified": (9, 9)}, None, ""),
        ({"dropped_unidentified": (0, 5)}, Level.NOTE, "first packets"),
        ({"dropped_unidentified": (0, 49)}, Level.NOTE, "first packets"),
        ({"dropped_unidentified": (0, 50)}, Level.WARNING, "sendonly"),
        ({"dropped_unidentified": (0, 50), "two_to_moh": (1, 1)}, Level.WARNING, "a stream"),
        ({"dropped_unidentified": (0, 9), "learned_moh": (1, 1)}, Level.NOTE, "first packets"),
        ({"dropped_unidentified": (0, 100), "learned_moh": (1, 1)}, Level.WARNING, "a stream"),
    ],
)
def test_unidentified(counters: dict[str, Any], level: Level | None, words: str) -> None:
    one = found(attached(**counters)).get("unidentified")
    assert (one and one.level) == level
    assert words in (one.found if one else "")


def test_a_packet_in_no_time_is_no_stream() -> None:
    facts = attached(0.004, dropped_unidentified=(0, 2))
    assert found(facts)["unidentified"].level is Level.NOTE


@pytest.mark.parametrize(
    ("counters", "level"),
    [
        ({"learn_failed": (0, 3)}, Level.WARNING),
        ({"learn_failed": (3, 3)}, Level.NOTE),
        ({"routed_elsewhere": (1, 2)}, Level.WARNING),
        ({"left_to_stack": (1, 2)}, None),
    ],
)
def test_failures(counters: dict[str, Any], level: Level | None) -> None:
    one = found(attached(**counters)).get("failures")
    assert (one and one.level) == level


BLIND = Wan("wan", learn_age=9.0, open_age=0.02, blind_for=9.0)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, "no packet comes in"),
        ({"received": {"wan": 50}}, "none of them is IPv4 to"),
        ({"without_carrier": ["wan"]}, "no carrier"),
        ({"offloading": ["wan"]}, "forward by itself"),
        ({"others": [Caution("a filter", where="wan ingress")]}, "another program"),
        ({"others": [Caution("a filter", where="wan egress")]}, "no packet comes in"),
        ({"others": [Caution("a filter", where="wan10 ingress")]}, "no packet comes in"),
        ({"missing": [Place(0x7FFFFFFF, Role.LEARN)]}, "no packet comes in"),
    ],
)
def test_a_blind_wan_has_a_cause(changes: dict[str, Any], cause: str) -> None:
    facts = attached()
    assert facts.after
    facts = replace(facts, after=replace(facts.after, wans=[BLIND]), **changes)
    one = found(facts)["learning"]
    assert one.level is Level.ERROR
    assert cause in one.found


def test_a_quiet_wan_is_no_fault() -> None:
    facts = attached()
    assert facts.after
    quiet = Wan("wan", learn_age=900.0, open_age=None, blind_for=None)
    assert "learning" not in found(replace(facts, after=replace(facts.after, wans=[quiet])))


def test_who_is_not_heard_has_a_cause() -> None:
    waits = [
        Wait("203.0.113.1", 21000, 60.0, 150, passes=True),
        Wait("198.18.0.1", 21000, 4.0, 150, passes=True),
        Wait("198.18.0.2", 21000, 1.0, 50, passes=False),
    ]
    networks = replace(SETTINGS, provider=(IPv4Network("203.0.113.0/24"),))
    facts = replace(attached(), attached=networks, waits=waits)
    told = [each for each in run(facts) if each.check == "unheard"]
    assert [each.level for each in told] == [Level.WARNING] * 2
    for one, cause, endpoint in zip(
        told, ("--provider", "no RTP comes in"), ("198.18.0.1", "203.0.113.1"), strict=True
    ):
        assert cause in one.found
        assert endpoint in one.evidence
    assert "unheard" not in found(replace(facts, waits=waits[2:]))


@pytest.mark.parametrize(
    ("counters", "level"),
    [
        ({"sip_split": (2, 3), "sip_flipped": (9, 9)}, Level.WARNING),
        ({"sip_split": (3, 3)}, Level.WARNING),
        ({"sip_split": (3, 3), "sip_flipped": (9, 9)}, Level.NOTE),
        ({"fragments": (3, 9)}, None),
    ],
)
@pytest.mark.parametrize("fragments", [0, 5])
def test_sip_that_is_cut(
    counters: dict[str, tuple[int, int]], level: Level | None, fragments: int
) -> None:
    facts = attached(**{"fragments": (fragments, fragments), **counters})
    assert "sip-split" not in found(facts), "nothing is flipped"
    finding = found(replace(facts, attached=replace(SETTINGS, flip_hold=True))).get("sip-split")
    assert (finding and finding.level) == level
    assert finding is None or ("SIP over TCP" in finding.remedy) == bool(fragments)


def test_unnatted_is_right_without_a_lan() -> None:
    grown = attached(passed_unnatted=(0, 5))
    assert found(grown)["unnatted"].level is Level.WARNING
    assert found(replace(grown, lan=[]))["unnatted"].level is Level.NOTE


@pytest.mark.parametrize(
    ("gap", "remedy"),
    [(0.5, None), (0.85, "--timeout 2s"), (3.0, "--timeout 5s")],
)
def test_pauses_name_the_timeout_to_set(gap: float, remedy: str | None) -> None:
    peer = Peer("203.0.113.1", 21000, layout.State.MOH, False, str(PUBLIC), 4000, "wan", 0.0, 1.0,
                gap, 1, 200, 1, 200)  # fmt: skip
    facts = attached()
    assert facts.after
    one = found(replace(facts, after=replace(facts.after, peers=[peer]))).get("pauses")
    assert (one and one.remedy.partition(",")[0]) == remedy


def test_what_could_not_be_asked_is_a_note_and_the_way_is_told_once() -> None:
    notes = found(replace(WELL, unasked={"rules": MohError("nft: Operation not permitted")}))
    assert {each.level for each in notes.values()} == {Level.NOTE}
    assert {"phantom-port", "input-chain", "untracked", "flowtables"} <= set(notes)
    assert [bool(notes[name].remedy) for name in ("phantom-port", "input-chain")] == [True, False]


def test_findings_as_json() -> None:
    (one,) = (each for each in run(WELL) if each.check == "attached")
    assert list(json.loads(json.dumps(one.to_json()))) == [
        "check", "level", "found", "evidence", "remedy"
    ]  # fmt: skip


# The page


def test_the_page_lists_the_checks_in_their_order() -> None:
    page = (ROOT / "docs/doctor.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE) == list(CHECKS)


def test_the_pages_levels_are_those_that_the_code_gives() -> None:
    """Of each check's own function, by its source: the levels that it names."""
    import inspect

    page = (ROOT / "docs/doctor.md").read_text()
    for name, levels in re.findall(r"^\| `([\w-]+)` \| ([a-z, ]+) \|", page, re.MULTILINE):
        source = inspect.getsource(CHECKS[name].look)
        assert set(levels.split(", ")) == {
            each.lower() for each in re.findall(r"Level\.(\w+)", source)
        }, name


def test_each_question_is_asked_and_has_what_to_try() -> None:
    """Else a check would be well for ever, or fail where its question cannot be asked."""
    assert {need for each in CHECKS.values() for need in each.needs} <= set(WHAT_TO_TRY)
    tree = ast.parse(Path(gather.__file__).read_text())
    calls = [each for each in ast.walk(tree) if isinstance(each, ast.Call)]
    (made,) = (each for each in calls if ast.unparse(each.func) == "Facts")
    asked = {each.arg for each in made.keywords}
    assert {each.name for each in fields(Facts)} - asked == {"unasked"}  # which comes last
