"""What doctor says of netfilter's rules, as nft and iptables print those that they have taken.

Only the rules are real: the rest of the firewall is one that is well.
"""

import shlex
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from moh_ebpf.doctor import Finding, Level
from moh_ebpf.doctor.ask import netfilter
from moh_ebpf.doctor.checks import run
from moh_ebpf.doctor.facts import Facts
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.parsers import PortRange
from moh_ebpf.settings import Settings
from tests.support.article import VARIANTS, why_not
from tests.support.namespace import Namespace, namespace

UCMS = (IPv4Address("172.20.5.77"), IPv4Address("172.20.5.78"))
PUBLIC = IPv4Address("192.0.2.34")
WELL = Facts(
    settings=Settings(
        wan=("uplink",),
        lan=("inside",),
        ucm=UCMS,
        public=(PUBLIC,),
        port=6000,
        rtp_ports=PortRange(20000, 29999),
    ),
    wan=[Interface(2, "uplink", 14, (PUBLIC,), None)],
    lan=[Interface(3, "inside", 14, (IPv4Address("172.20.5.1"),), None)],
    addresses={PUBLIC: "uplink", **dict.fromkeys(UCMS, "inside")},
)
MASQUERADE = """
table ip nat {
chain post {
    type nat hook postrouting priority srcnat
    oifname "uplink" masquerade
}
}
"""
CLOSED = """
table ip filter {
chain input {
    type filter hook input priority filter; policy drop
    ct state established accept
    iifname "inside" accept
}
}
"""


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    with namespace("rules") as made:
        yield made


def found(space: Namespace) -> dict[str, Finding]:
    """What the checks find in the rules that are there."""
    with space.entered():
        ruleset = netfilter.ruleset()
    facts = Facts(**{**vars(WELL), "ruleset": ruleset})
    not_well = {each.check: each for each in run(facts) if each.level is not Level.OK}
    # Nothing is attached, and no route was asked for.
    return {name: each for name, each in not_well.items() if name not in ("attached", "ucm-route")}


def judged(space: Namespace, rules: str) -> dict[str, Finding]:
    space.nft("flush ruleset\n" + rules)
    return found(space)


def at(
    hook: str, body: str, kind: str = "filter", *, policy: str = "accept", more: str = ""
) -> str:
    """A table of one chain at a hook, and `more` chains."""
    return (
        f"table inet x {{\n{more}\nchain c {{\n"
        f"type {kind} hook {hook} priority 0; policy {policy}\n{body}\n}}\n}}\n"
    )


def prerouting(body: str, kind: str = "filter", more: str = "") -> str:
    return CLOSED + MASQUERADE + at("prerouting", body, kind, more=more)


def postrouting(body: str, priority: int = 90) -> str:
    rules = at("postrouting", body, "nat").replace("priority 0", f"priority {priority}")
    return CLOSED + MASQUERADE + rules


DNS_ALONE = "chain nt {\nnotrack\n}"
OF_A_ZONE = "chain dmz {\nudp dport 6000 dnat ip to 172.20.5.90:7000\n}"


@pytest.mark.parametrize(
    ("rules", "checks"),
    [
        (CLOSED + MASQUERADE, ""),
        # INPUT
        (MASQUERADE + at("input", 'meta protocol ip iifname "uplink" drop'), ""),
        (MASQUERADE + at("input", 'meta protocol ip6 iifname "uplink" drop'), "input-chain"),
        (MASQUERADE + at("input", 'meta protocol { ip, ip6 } iifname "uplink" drop'), ""),
        (MASQUERADE + at("input", "ip frag-off & 0x1fff != 0 drop"), "input-chain"),
        (MASQUERADE + at("input", "fib daddr type local drop"), ""),
        # notrack
        (prerouting(f"ip saddr {UCMS[0]} notrack"), "untracked"),
        (prerouting(f"ip saddr {UCMS[1]} accept\nip daddr {PUBLIC} accept\nnotrack"), "untracked"),
        (
            prerouting(
                "\n".join(f"ip saddr {each} accept" for each in UCMS)
                + f"\nip daddr {PUBLIC} accept\nnotrack"
            ),
            "",
        ),
        (prerouting("udp dport 53 jump nt", more=DNS_ALONE), ""),
        (prerouting("meta l4proto udp jump nt", more=DNS_ALONE), "untracked"),
        (CLOSED + MASQUERADE + at("output", "jump nt", more=DNS_ALONE), ""),
        (prerouting("fib daddr type local notrack"), "untracked"),
        (prerouting(f"ip saddr {UCMS[0]} fib daddr type local notrack"), ""),
        (prerouting("ip daddr 192.0.2.99 notrack"), ""),
        # The phantom ports
        (prerouting("udp dport 6000 dnat ip to 172.20.5.90:7000", "nat"), "phantom-port"),
        (
            prerouting("dnat ip to udp dport map { 6000 : 172.20.5.90 . 7000 }", "nat"),
            "phantom-port",
        ),
        (prerouting("dnat ip to udp dport map { 6006 : 172.20.5.90 . 6000 }", "nat"), ""),
        (prerouting("dnat ip to tcp dport map { 6000 : 172.20.5.90 . 7000 }", "nat"), ""),
        (
            prerouting(
                "dnat ip to udp dport map @m",
                "nat",
                "map m {\ntype inet_service : ipv4_addr . inet_service\n"
                "elements = { 6001 : 172.20.5.90 . 7000 }\n}",
            ),
            "phantom-port",
        ),
        (
            prerouting("udp dport 6000 redirect to :udp dport map { 6000 : 7 }", "nat"),
            "phantom-port",
        ),
        (prerouting("udp dport 9000 dnat ip to 172.20.5.90:6000", "nat"), ""),
        (prerouting("udp dport 53 redirect to :6000", "nat"), ""),
        (prerouting('iifname "dmz0" udp dport 6000 dnat ip to 172.20.5.90:7', "nat"), ""),
        (prerouting("ip daddr 10.99.0.1 udp dport 6000 dnat ip to 172.20.5.90:7", "nat"), ""),
        (prerouting('iifname "dmz0" goto dmz', "nat", OF_A_ZONE), ""),
        (prerouting('iifname { "dmz0", "uplink" } goto dmz', "nat", OF_A_ZONE), "phantom-port"),
        (prerouting("meta mark 7 goto dmz", "nat", OF_A_ZONE), "phantom-port"),
        (postrouting("udp sport 5060 snat ip to 192.0.2.34:6000"), "phantom-port"),
        (postrouting('oifname "dmz0" udp sport 5060 snat ip to 10.99.0.1:6000'), ""),
        # SNAT's ports
        (postrouting('oifname "uplink" masquerade random'), "snat-ports"),
        (postrouting('oifname "uplink" masquerade fully-random,persistent'), "snat-ports"),
        (postrouting('oifname "uplink" masquerade persistent'), ""),
        (postrouting('oifname "uplink" masquerade random', 110), ""),  # the first decides
        (postrouting("meta l4proto udp masquerade to :40000-50000"), "snat-ports"),
        (postrouting("meta l4proto udp masquerade to :20000-29998"), "snat-ports"),
        (postrouting("meta l4proto udp masquerade to :20000-29999"), ""),
        (postrouting("meta l4proto udp masquerade to :1024-65535"), ""),
        (postrouting("meta l4proto udp masquerade to :1024-65535 random"), "snat-ports"),
        (postrouting("udp sport 5060 masquerade random"), ""),
        (postrouting("meta l4proto tcp masquerade to :40000-50000"), ""),
        (postrouting("ip saddr 10.1.0.0/16 masquerade random"), ""),
        (postrouting("meta mark 7 masquerade random"), ""),
        (postrouting("ip daddr 198.51.100.0/24 masquerade random"), ""),  # of whom is not known
        (postrouting(f"ip saddr {UCMS[1]} snat ip to 192.0.2.34 random"), "snat-ports"),
        (postrouting(f"snat ip to ip saddr map {{ {UCMS[1]} : 192.0.2.34 }} random"), "snat-ports"),
        (postrouting("snat ip to ip saddr map { 10.1.0.9 : 192.0.2.34 } random"), ""),
        # An open INPUT does no harm to who is not NATed.
        (at("postrouting", 'oifname "uplink" masquerade', "nat"), "input-chain"),
        (
            at(
                "postrouting",
                "\n".join(f"ip saddr {each} accept" for each in UCMS)
                + '\noifname "uplink" masquerade',
                "nat",
            ),
            "",
        ),
        (
            at(
                "postrouting",
                f'ip saddr {UCMS[0]} accept\noifname "uplink" masquerade',
                "nat",
            ),
            "input-chain",
        ),
    ],
)
def test_rules_of_nft(space: Namespace, rules: str, checks: str) -> None:
    assert " ".join(judged(space, rules)) == checks


@pytest.fixture
def tables() -> Iterator[Namespace]:
    """A namespace of its own, for tables of iptables-legacy stay once they are there."""
    with namespace("tables") as made:
        yield made


NAT = "-t nat -A POSTROUTING -o uplink -j MASQUERADE"
DROP = "-P INPUT DROP"
TO_A_HOST = "-j DNAT --to-destination 172.20.5.90"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("commands", "checks"),
    [
        ([NAT, DROP], ""),
        ([NAT], "input-chain"),
        # INPUT
        ([NAT, "-A INPUT -f -j DROP"], "input-chain"),
        ([NAT, DROP, "-A INPUT -f -j ACCEPT"], ""),
        ([NAT, DROP, "-A INPUT -m conntrack --ctorigdstport 443 -j ACCEPT"], ""),
        ([NAT, DROP, "-A INPUT -m conntrack --ctorigdstport 20000:29999 -j ACCEPT"], "input-chain"),
        ([NAT, "-A INPUT -m conntrack --ctorigdst 10.9.9.9 -j DROP"], "input-chain"),
        ([NAT, f"-A INPUT -m conntrack --ctorigdst {PUBLIC} -j DROP"], ""),
        ([NAT, DROP, "-A INPUT -m conntrack --ctstate NEW --ctexpire 10 -j ACCEPT"], ""),
        ([NAT, DROP, "-A INPUT -m comment --comment '-j DROP' -j ACCEPT"], "input-chain"),
        ([NAT, DROP, "-A INPUT -m comment --comment '!' -i inside -j ACCEPT"], ""),
        (
            [NAT, DROP, "-A INPUT -m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT"],
            "input-chain",
        ),
        # notrack
        ([NAT, DROP, "-t raw -A PREROUTING -i inside -p udp -j CT --notrack"], "untracked"),
        (
            [NAT, DROP, "-t raw -N nt", "-t raw -A nt -j CT --notrack", "-t raw -A OUTPUT -j nt"],
            "",
        ),
        # The phantom ports
        ([NAT, DROP, f"-t nat -A PREROUTING -p udp --dport 6001 {TO_A_HOST}"], "phantom-port"),
        ([NAT, DROP, f"-t nat -A PREROUTING -p udp --dport 9000 {TO_A_HOST}:6000"], ""),
        (
            [
                NAT,
                DROP,
                f"-t nat -A PREROUTING -i dmz0 -d 10.99.0.1 -p udp --dport 6000 {TO_A_HOST}",
            ],
            "",
        ),
        # SNAT's ports
        ([f"{NAT} --random", DROP], "snat-ports"),
        ([f"{NAT} --random-fully", DROP], "snat-ports"),
        ([f"{NAT.replace('-o', '-p udp -o')} --to-ports 40000-50000", DROP], "snat-ports"),
        ([f"{NAT.replace('-o', '-p udp -o')} --to-ports 1024-65535", DROP], ""),
        (
            [f"-t nat -A POSTROUTING -p udp -j SNAT --to-source {PUBLIC}:40000-50000", DROP],
            "snat-ports",
        ),
        ([f"-t nat -A POSTROUTING -p udp -j SNAT --to-source {PUBLIC}:1024-65535", DROP], ""),
        ([f"-t nat -A POSTROUTING -j SNAT --to-source {PUBLIC} --persistent", DROP], ""),
        # NAT
        (["-t nat -A POSTROUTING -s 172.20.5.0/24 -j ACCEPT", NAT], ""),
    ],
)
def test_rules_of_iptables(
    tables: Namespace, variant: str, commands: list[str], checks: str
) -> None:
    if why := why_not(variant):
        pytest.skip(why)
    for command in commands:
        tables.run(variant, "-w", *shlex.split(command))
    assert " ".join(found(tables)) == checks


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_evidence_is_the_filter_tables_and_no_table_for_marks(
    tables: Namespace, variant: str
) -> None:
    if why := why_not(variant):
        pytest.skip(why)
    for command in (NAT, "-t mangle -A INPUT -j MARK --set-mark 1", "-A INPUT -i inside -j ACCEPT"):
        tables.run(variant, "-w", *command.split())
    evidence = found(tables)["input-chain"].evidence
    assert "filter INPUT: policy accept; " in evidence
    assert "mangle" not in evidence
    tables.run(variant, "-w", "-A", "INPUT", "-p", "udp", "-j", "ACCEPT")
    assert "policy accept" not in found(tables)["input-chain"].evidence


def test_the_evidence_is_the_rule_and_no_chain_that_lets_all_pass(space: Namespace) -> None:
    early = at("input", "ct state invalid drop").replace("inet x", "inet a")
    rule = "udp dport 10000-40000 accept"
    shown = judged(space, MASQUERADE + early + at("input", rule, policy="drop"))
    assert f": {rule}; " in shown["input-chain"].evidence


@pytest.mark.parametrize("way", ["nft", *VARIANTS])
def test_the_command_that_is_told_takes_the_rule_away(space: Namespace, way: str) -> None:
    if way != "nft" and (why := why_not(way)):
        pytest.skip(why)
    space.nft("flush ruleset\n" + (MASQUERADE if way == "nft" else ""))
    if way != "nft":
        space.run(*f"{way} -t nat -A POSTROUTING -o uplink -m comment --comment".split(), "a -A b",
                  "-j", "MASQUERADE")  # fmt: skip
    try:
        with space.entered():
            ((_, rule),) = netfilter.ruleset().rules()
        space.run(*shlex.split(rule.removal))
        with space.entered():
            assert list(netfilter.ruleset().rules()) == []
    finally:
        if way != "nft":
            space.run(way, "-t", "nat", "-F")
