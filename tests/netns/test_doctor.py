"""`doctor` on a firewall that is well, and on firewalls with one real fault each."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2 import IPRoute

from moh_ebpf.doctor import CHECKS
from moh_ebpf.doctor.ask import routes
from moh_ebpf.doctor.ask.machine import has_feature
from moh_ebpf.doctor.ask.routes import Gateways
from moh_ebpf.kernel.tc import Hook
from tests.support.article import (
    NOTRACK,
    SOLUTION,
    VARIANTS,
    ArticleFirewall,
    article_firewall,
    why_not,
)
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.foreign import counter
from tests.support.waiting import until
from tests.support.wire import Wire, flow, udp

CALL, HOLD = f"{PUBLIC}:24576", f"{PUBLIC}:4000"
SETTINGS = ("--wan", "wan", "--lan", "lan", "--ucm", UCM)
NETWORK = ("--provider", "203.0.113.0/24")


def examine(fw: Firewall, *arguments: str) -> tuple[int, dict[str, Any]]:
    return _shown(fw.moh("doctor", "--json", "--for", "100ms", *arguments, check=False))


def _shown(done: subprocess.CompletedProcess[str]) -> tuple[int, dict[str, Any]]:
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def troubles(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """But for what is the machine's: a module that no rule of this firewall's has loaded."""
    return {
        each["check"]: each
        for each in shown["findings"]
        if each["level"] != "ok" and "the SIP helper is loaded, and no rule" not in each["found"]
    }


def assert_only(
    fw: Firewall, check: str, level: str, evidence: str, *arguments: str
) -> dict[str, Any]:
    """doctor finds this and nothing else; the finding."""
    status, shown = examine(fw, *arguments)
    found = troubles(shown)
    found.pop("attached", None) if check != "attached" else None
    assert list(found) == [check], found
    assert found[check]["level"] == level
    assert evidence in found[check]["evidence"]
    assert found[check]["remedy"]
    assert status == {"note": 0, "warning": 4, "error": 1}[level]
    return found[check]


# All is well


def test_a_firewall_that_is_well(fw: Firewall) -> None:
    before = fw.namespace.tc_state("lan", "wan")
    rules = fw.namespace.run("nft", "list", "ruleset").stdout
    fw.attach("--timeout", "60s", *NETWORK)
    held_and_spoken(fw)
    status, shown = examine(fw)
    assert (status, shown["worst"], troubles(shown)) == (0, "ok", {})
    assert [each["check"] for each in shown["findings"]] == list(CHECKS)
    fw.moh("detach")
    assert fw.namespace.tc_state("lan", "wan") == before
    assert fw.namespace.run("nft", "list", "ruleset").stdout == rules


def held_and_spoken(fw: Firewall) -> None:
    """One endpoint on hold, another in a two-way call that began with the provider's RTP."""
    other = PROVIDER.replace("21000", "21002")
    fw.wan.send(udp(PROVIDER, HOLD), udp(other, CALL))
    fw.lan.send(udp(f"{UCM}:29376", PROVIDER), udp(f"{UCM}:24576", other))
    assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER), (CALL, other)]


@pytest.mark.parametrize("iptables", VARIANTS)
def test_a_firewall_of_iptables_that_is_well(iptables: str) -> None:
    if why := why_not(iptables):
        pytest.skip(why)
    with article_firewall(iptables) as article:
        article.fw.attach("--timeout", "60s")
        held_and_spoken(article.fw)
        status, shown = examine(article.fw)
        assert (status, troubles(shown)) == (0, {})


def test_before_attaching(fw: Firewall, tmp_path: Path) -> None:
    config = tmp_path / "moh-ebpf.toml"
    config.write_text(f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\n')
    for arguments in (("--config", str(config)), SETTINGS):
        before = fw.namespace.tc_state("lan", "wan")
        status, shown = examine(fw, *arguments)
        assert (status, shown["worst"]) == (0, "note")
        assert list(troubles(shown)) == ["attached"]
        assert fw.namespace.tc_state("lan", "wan") == before


def test_without_any_settings(fw: Firewall) -> None:
    """Hidden below an empty directory, for a machine may have an /etc/moh-ebpf.toml."""
    hidden = f"mount -t tmpfs none /etc && exec {sys.executable} -m moh_ebpf doctor"
    done = fw.namespace.run("unshare", "--mount", "sh", "-c", hidden, check=False)
    assert done.returncode == 2
    assert "--config" in done.stderr
    config = f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\ntimeout = "100ms"\n'
    hidden = hidden.replace("exec", "cat > /etc/moh-ebpf.toml && exec") + " --for 0s --json"
    done = fw.namespace.run("unshare", "--mount", "sh", "-c", hidden, check=False, input=config)
    assert "timeouts" in troubles(_shown(done)[1])


# Faults, one each


def forwarding_off(fw: Firewall) -> None:
    fw.namespace.sysctl("net.ipv4.conf.lan.forwarding", 0)


def gateway_is_silent(fw: Firewall) -> None:
    fw.namespace.run(*f"ip neigh replace {GATEWAY} dev wan nud failed".split())


def one_of_two_gateways_is_silent(fw: Firewall) -> None:
    hops = f"nexthop via {GATEWAY} dev wan nexthop via 198.51.100.9 dev wan"
    fw.namespace.run("ip", "route", "replace", "default", *hops.split())
    failed = f"ip neigh replace 198.51.100.9 dev {fw.wan.interface} nud failed"
    fw.namespace.run(*failed.split())


def no_route(fw: Firewall) -> None:
    fw.namespace.run("ip", "route", "del", "default")


def rule(text: str) -> Callable[[Firewall], None]:
    def add(fw: Firewall) -> None:
        fw.namespace.nft(text)

    add.__name__ = re.sub(r"\W+", "_", text)
    return add


def snat_to_the_port(fw: Firewall) -> None:
    fw.namespace.nft(f"add rule ip nat postrouting udp sport 24576 snat to {HOLD}")


def iptables(variant: str, *words: str) -> Callable[[Firewall], None]:
    def add(fw: Firewall) -> None:
        if why := why_not(variant):
            pytest.skip(why)
        fw.namespace.run(variant, "-w", *words)

    add.__name__ = "_".join([variant, *words])
    return add


def masquerade_of_iptables(variant: str) -> Callable[[Firewall], None]:
    words = "-t nat -A POSTROUTING -p udp -o wan -j MASQUERADE --to-ports 4000"
    return iptables(variant, *words.split())


def raw(text: str) -> Callable[[Firewall], None]:
    return rule(
        "table ip raw { chain p { type filter hook prerouting priority raw; " + text + "; }; }"
    )


def input_gone(fw: Firewall) -> None:
    fw.namespace.nft("delete table ip filter")


def program_missing(fw: Firewall) -> None:
    fw.namespace.run("tc", "filter", "del", "dev", "lan", "ingress", "pref", "4000")


def far_end_down(fw: Firewall) -> None:
    fw.outside.run("ip", "link", "set", "wan-end", "down")


def helper_in_use(fw: Firewall) -> None:
    fw.namespace.nft(
        'table ip sip { ct helper trunk { type "sip" protocol udp; }; chain p { '
        "type filter hook prerouting priority 0; "
        'udp dport 5060 ct helper set "trunk"; }; }'
    )
    # What is related is not accepted any more: the helper itself is what is left.
    fw.namespace.nft(
        "flush chain ip filter input; add rule ip filter input ct state established accept"
    )


def helper_and_related(fw: Firewall) -> None:
    helper_in_use(fw)
    fw.namespace.nft("add rule ip filter input ct state related accept")


def conntrack_forgets(fw: Firewall) -> None:
    fw.namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 3)


def held_back_for_ever(fw: Firewall, *options: str) -> None:
    """Attached without an end to the patience, and with packets that learn sees."""
    fw.attach("--patience", "never", *options, *NETWORK)
    played(fw, "192.168.7.7:20000", CALL, every=0.05, wire=fw.wan)


def music_dropped(fw: Firewall) -> None:
    held_back_for_ever(fw)
    played(fw, f"{UCM}:24576", "203.0.113.99:21000")


def call_without_nat(fw: Firewall) -> None:
    """NAT is gone, and so is the reason for the warning about INPUT."""
    fw.namespace.nft("delete table ip nat")
    fw.attach("--timeout", "60s", *NETWORK)
    fw.wan.send(udp(PROVIDER, CALL))
    played(fw, f"{UCM}:24576", PROVIDER)


def no_way_out(fw: Firewall) -> None:
    """The WAN where the endpoint is heard has no route to it, nor has another WAN."""
    fw.attach("--timeout", "60s", *NETWORK)
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)
    fw.namespace.run("ip", "route", "add", "203.0.113.0/24", "via", "10.10.10.77")
    fw.namespace.run(*f"ip neigh replace 10.10.10.77 lladdr {fw.lan.mac} dev lan".split())
    played(fw, f"{UCM}:24576", PROVIDER)


def played(
    fw: Firewall, source: str, destination: str, every: float = 0.002, wire: Wire | None = None
) -> None:
    """UCM, or who is behind the wire, plays until the test ends: some of it comes while doctor
    looks."""
    done, to = threading.Event(), wire or fw.lan
    packet = udp(source, destination)

    def play() -> None:
        while not done.wait(every):
            to.send(packet)

    thread = threading.Thread(target=play)
    thread.start()
    fw.stack.callback(thread.join)
    fw.stack.callback(done.set)


def pause_longer_than_the_timeout(fw: Firewall) -> None:
    fw.attach("--timeout", "500ms", *NETWORK)
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)
    threading.Event().wait(0.6)  # it is the time that is wanted
    fw.wan.send(udp(PROVIDER, HOLD))


def music_of_another_ucm(fw: Firewall) -> None:
    fw.attach("--timeout", "60s", *NETWORK)
    played(fw, PROVIDER, HOLD, wire=fw.wan)
    silent = 'moh_ebpf_peers_silent{state="moh"} 1'
    until("it hears nothing", lambda: silent in fw.moh("metrics").stdout)


@pytest.mark.parametrize(
    ("fault", "check", "level", "evidence"),
    [
        (forwarding_off, "forwarding", "error", "net.ipv4.conf.lan.forwarding = 0"),
        (gateway_is_silent, "wan-neighbour", "error", f"{GATEWAY} dev wan: FAILED"),
        (
            one_of_two_gateways_is_silent,
            "wan-neighbour",
            "error",
            "198.51.100.9 dev wan: FAILED",
        ),
        (no_route, "wan-route", "error", "ip route get 203.0.113.1: unreachable"),
        (far_end_down, "interfaces", "error", "ip link show dev wan: NO-CARRIER"),
        (
            snat_to_the_port,
            "phantom-port",
            "warning",
            f"ip nat postrouting handle 3: udp sport 24576 snat to {HOLD}",
        ),
        (
            rule("add rule ip nat postrouting meta l4proto udp masquerade to :4000-4001"),
            "phantom-port",
            "warning",
            "masquerade to :4000-4001",
        ),
        (
            rule("table ip d { chain p { type nat hook prerouting priority -100; "
                 "udp dport 4000 redirect to :9; }; }"),
            "phantom-port",
            "warning",
            "udp dport 4000 redirect to :9",
        ),
        (raw("udp dport 4001 notrack"), "phantom-port", "warning", "udp dport 4001 notrack"),
        *(
            (
                masquerade_of_iptables(variant),
                "phantom-port",
                "warning",
                f"{variant} -t nat -A POSTROUTING -o wan -p udp -j MASQUERADE --to-ports 4000",
            )
            for variant in VARIANTS
        ),
        (raw(f"ip saddr {UCM} notrack"), "untracked", "warning", f"ip saddr {UCM} notrack"),
        (
            raw('iifname "wan" udp dport 16384-32767 notrack'),
            "untracked",
            "warning",
            "udp dport 16384-32767 notrack",
        ),
        (input_gone, "input-chain", "warning", "there is no chain at the hook input; ip nat"),
        (
            rule("add chain ip filter input { policy accept; }"),
            "input-chain",
            "warning",
            "ip filter input: policy accept",
        ),
        (
            rule("add rule ip filter input ip saddr 203.0.113.0/24 accept"),
            "input-chain",
            "warning",
            "ip saddr 203.0.113.0/24 accept",
        ),
        (
            rule("add rule ip filter input udp dport 20000-30000 accept"),
            "input-chain",
            "warning",
            "udp dport 20000-30000 accept",
        ),
        (helper_in_use, "sip-helper", "note", 'udp dport 5060 ct helper set "trunk"'),
        (helper_and_related, "sip-helper", "warning", "ct state related accept"),
        (conntrack_forgets, "timeouts", "warning", "nf_conntrack_udp_timeout_stream = 3"),
        (program_missing, "attached", "error", "tc filter show dev lan ingress: no moh_bypass"),
        (pause_longer_than_the_timeout, "pauses", "warning", "timeout 0.5 s"),
    ],
    # An id with evidence in it would have the word FAILED.
    ids=lambda each: each.__name__ if callable(each) else re.sub(r".*\W.*", "", each) or "seen",
)  # fmt: skip
def test_a_fault_is_found_and_nothing_else(
    fw: Firewall, fault: Callable[[Firewall], None], check: str, level: str, evidence: str
) -> None:
    """Before anything is attached, which is when most are looked for; those of what is attached,
    and of its calls, then."""
    if fault in (program_missing, pause_longer_than_the_timeout, far_end_down):
        fw.attach(*NETWORK)
        settings: tuple[str, ...] = ()
    else:
        settings = (*SETTINGS, *NETWORK)
    fault(fw)
    assert_only(fw, check, level, evidence, *settings)


@pytest.mark.parametrize(
    ("fault", "check", "evidence"),
    [
        (music_dropped, "unidentified", "consumed in all 0"),
        (music_of_another_ucm, "silent", f"{PROVIDER}: on hold for"),
        (call_without_nat, "unnatted", "passed_unnatted grew by"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_what_a_stream_suffers_is_found_and_nothing_else(
    fw: Firewall, fault: Callable[[Firewall], None], check: str, evidence: str
) -> None:
    """For so long that even a busy machine sends enough to be a stream."""
    fw.attach(*NETWORK)
    fault(fw)
    assert_only(fw, check, "warning", evidence, "--for", "2s")


@pytest.mark.parametrize(
    "rules",
    [
        "add rule ip nat postrouting tcp dport 4000 masquerade to :4000",
        "add rule ip nat postrouting udp sport 1024-65535 masquerade to :1024-65535",
        "add rule ip filter input ip saddr 203.0.113.0/24 udp dport 5060 accept",
        "add rule ip filter input tcp dport 22 accept",
        "add rule ip filter input udp dport 53 accept",
        "add rule ip filter input ip saddr 192.168.0.0/16 accept",
        'add rule ip filter input iifname "lan" accept',
        "add rule ip filter input meta mark 7 accept",
        "table ip raw { chain p { type filter hook prerouting priority raw; "
        "udp dport 53 notrack; }; }",
        "table ip6 filter { chain input { type filter hook input priority 0; }; }",
    ],
)
def test_rules_that_do_no_harm(fw: Firewall, rules: str) -> None:
    fw.namespace.nft(rules)
    assert list(troubles(examine(fw, *SETTINGS)[1])) == ["attached"]


def test_an_open_input_does_no_harm_behind_dnat_to_ucm(fw: Firewall) -> None:
    input_gone(fw)
    fw.namespace.nft(
        "table ip d { chain p { type nat hook prerouting priority -100; "
        f'iifname "wan" udp dport 16384-32767 dnat to {UCM}; }}; }}'
    )
    assert list(troubles(examine(fw, *SETTINGS)[1])) == ["attached"]


def test_a_port_that_has_moved(fw: Firewall) -> None:
    """RTP that comes in first makes the firewall's own entry: the fault that input-chain foretells,
    and what conntrack has of it."""
    input_gone(fw)
    fw.attach("--timeout", "60s")
    fw.wan.send(udp(PROVIDER, CALL))
    fw.wan.sent()
    fw.lan.send(udp(f"{UCM}:24576", PROVIDER))
    (sent,) = fw.wan.sent()
    assert flow(sent)[0] != CALL
    status, shown = examine(fw)
    found = troubles(shown)
    assert list(found) == ["input-chain", "moved-ports"]
    assert flow(sent)[0] in found["moved-ports"]["found"]
    assert "input-chain" in found["moved-ports"]["remedy"]
    assert f"src={UCM} dst=203.0.113.10 sport=24576" in found["moved-ports"]["evidence"]
    assert status == 4


@pytest.mark.parametrize(
    ("masquerade", "keeps"),
    [
        ("masquerade", True),
        ("masquerade persistent", True),
        ("masquerade random", False),
        ("masquerade fully-random", False),
        ("meta l4proto udp masquerade to :40000-50000", False),
        ("meta l4proto udp masquerade to :16384-32767", True),
        ("meta l4proto udp masquerade to :1024-65535 random", False),
    ],
)
def test_snat_that_moves_ports_is_told_before_the_first_call(
    fw: Firewall, masquerade: str, keeps: bool
) -> None:
    """And what the kernel then does with the port is what was told."""
    fw.namespace.nft(f"flush chain ip nat postrouting; add rule ip nat postrouting {masquerade}")
    fw.attach("--timeout", "60s")
    if keeps:
        assert troubles(examine(fw)[1]) == {}
    else:
        assert_only(fw, "snat-ports", "warning", masquerade)
    fw.wan.send(udp(PROVIDER, CALL))
    fw.lan.send(udp(f"{UCM}:24576", PROVIDER))
    (sent,) = fw.wan.sent()
    assert (flow(sent)[0] == CALL) is keeps
    found = troubles(examine(fw)[1])
    assert list(found) == ([] if keeps else ["snat-ports", "moved-ports"])
    assert keeps or "see snat-ports" in found["moved-ports"]["remedy"]


@pytest.mark.parametrize("iptables", VARIANTS)
def test_the_articles_rules(iptables: str) -> None:
    if why := why_not(iptables):
        pytest.skip(why)
    with article_rules(iptables) as article:
        found = troubles(examine(article.fw, *SETTINGS)[1])
    assert list(found) == ["phantom-port", "earlier-cure", "attached"]
    assert f"SNAT --to-source {HOLD}" in found["phantom-port"]["evidence"]
    assert "MOH-LIST" in found["earlier-cure"]["evidence"]
    assert found["earlier-cure"]["level"] == "warning"


@contextmanager
def article_rules(iptables: str) -> Iterator[ArticleFirewall]:
    with article_firewall(iptables) as article:
        article.run(SOLUTION + NOTRACK)
        yield article


def test_ucm_elsewhere(fw: Firewall) -> None:
    fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", "172.16.9.9")
    assert_only(fw, "ucm-route", "warning", f"172.16.9.9: via {GATEWAY} dev wan")


def test_somebody_listens_or_stands_before(fw: Firewall) -> None:
    fw.attach()
    with (
        fw.namespace.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to_itself,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to_the_lan,
        counter(fw, "wan", Hook.EGRESS, 10),
    ):
        listener.bind(("0.0.0.0", 4001))
        to_itself.bind(("127.0.0.1", 4000))
        to_the_lan.bind(("10.10.10.1", 4000))
        found = troubles(examine(fw)[1])
    assert list(found) == ["listeners", "other-programs"]
    assert "00000000:0FA1" in found["listeners"]["evidence"]
    assert "wan egress: pref 10 bpf somebody-else" in found["other-programs"]["evidence"]


def test_strict_filtering_with_two_uplinks(fw: Firewall) -> None:
    fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    fw.moh("attach", "--wan", "wan", "wan2", "--lan", "lan", "--ucm", UCM)
    assert troubles(examine(fw)[1]) == {}
    for name in ("wan", "wan2"):
        fw.namespace.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
    assert_only(fw, "rp-filter", "warning", "net.ipv4.conf.wan2.rp_filter = 1; ip route get")
    # With a way back by the same uplink, strict is right.
    for way in ("rule add from 192.0.2.2 lookup 77", "route add default via 192.0.2.1 table 77"):
        fw.namespace.run("ip", *way.split())
    assert troubles(examine(fw)[1]) == {}


def test_strict_filtering_on_the_lan(fw: Firewall) -> None:
    fw.add_wire("lan2", "10.20.0.1/24", "10.20.0.2")
    fw.namespace.run("ip", "route", "add", UCM, "via", "10.20.0.2")
    fw.namespace.sysctl("net.ipv4.conf.lan.rp_filter", 1)
    found = troubles(examine(fw, *SETTINGS)[1])
    assert list(found) == ["rp-filter", "ucm-route", "attached"]
    assert "net.ipv4.conf.lan.rp_filter = 1; ip route get" in found["rp-filter"]["evidence"]


def test_a_calls_first_packets_where_nobody_was_on_hold_yet(fw: Firewall) -> None:
    """A few of UCM's packets come before the provider's, while doctor looks: less than a stream,
    and some even where they are held up for most of that time."""
    held_back_for_ever(fw, "--timeout", "60s")
    fw.wan.send(udp(PROVIDER, CALL))
    fw.lan.send(udp(f"{UCM}:24576", PROVIDER))
    played(fw, f"{UCM}:24580", "203.0.113.10:21004", every=0.1)
    found = assert_only(fw, "unidentified", "note", "consumed in all 0", "--for", "2s")
    assert "first packets" in found["found"]


def test_an_endpoint_that_is_heard_where_no_route_leads(fw: Firewall) -> None:
    """No music gets to it, and strict filtering drops its calls."""
    fw.namespace.sysctl("net.ipv4.conf.wan.rp_filter", 1)
    no_way_out(fw)
    status, shown = examine(fw)
    found = troubles(shown)
    assert list(found) == ["rp-filter", "wan-route"] or list(found) == [
        "rp-filter", "wan-route", "failures"
    ]  # fmt: skip
    assert "203.0.113.10" in found["rp-filter"]["found"]
    assert "dev lan" in found["wan-route"]["evidence"]
    assert status == 4


def test_what_cannot_be_attached_to(fw: Firewall) -> None:
    done = examine(fw, "--wan", "wan", "nope", "--lan", "lan", "--ucm", UCM)
    found = troubles(done[1])
    assert done[0] == 1
    assert "--wan nope: there is no such interface" in found["interfaces"]["evidence"]
    found = troubles(examine(fw, "--wan", "nope", "--lan", "lan", "--ucm", UCM)[1])
    unseen = ("clsact", "public-address", "ucm-route", "wan-route", "input-chain")
    assert found["interfaces"]["level"] == "error"
    assert [found[name]["level"] for name in unseen] == ["note"] * 5
    found = troubles(examine(fw, "--wan", "wan", "--lan", "lan.20", "--ucm", UCM)[1])
    assert "--lan lan.20: there is no such interface" in found["interfaces"]["evidence"]
    assert "other-programs" not in found
    fw.namespace.run("ip", "link", "set", "lan", "down")
    found = troubles(examine(fw, *SETTINGS)[1])
    assert found["interfaces"]["remedy"] == "ip link set lan up"
    fw.namespace.run("ip", "link", "set", "lan", "up")
    fw.namespace.run("tc", "qdisc", "add", "dev", "wan", "ingress")
    found = troubles(examine(fw, *SETTINGS)[1])
    assert found["clsact"]["level"] == "error"
    assert "wan: it has an ingress qdisc" in found["clsact"]["evidence"]


def test_a_filter_in_our_place(fw: Firewall) -> None:
    with counter(fw, "wan", Hook.EGRESS, 4000, handle=1):
        found = troubles(examine(fw, *SETTINGS)[1])
    assert "wan egress: pref 4000 bpf somebody-else" in found["clsact"]["evidence"]


def test_a_public_address_that_is_not_here(fw: Firewall) -> None:
    evidence = "ip addr show to 198.51.100.77: none"
    assert_only(fw, "public-address", "note", evidence, *SETTINGS, "--public", "198.51.100.77")


def test_other_settings_than_those_attached(fw: Firewall) -> None:
    fw.attach()
    found = assert_only(fw, "attached", "note", "attached timeout: 1.0", "--timeout", "2s")
    assert "timeout" in found["found"]


def test_features_are_read_as_ethtool_reads_them(fw: Firewall) -> None:
    """No interface here has hw-tc-offload; another feature is read by the same way."""
    for word in ("off", "on"):
        fw.namespace.run("ethtool", "-K", "lan", "rx-gro", word)
        with fw.namespace.entered():
            assert has_feature("lan", "rx-gro") is (word == "on")
            assert not has_feature("lan")


def test_the_readmes_rules_are_well(fw: Firewall) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    (table,) = re.findall(r"```\n(table ip firewall .*?)```", page, re.DOTALL)
    fw.namespace.nft("flush ruleset; " + table.replace("eth0", "lan").replace("eth1", "wan"))
    assert list(troubles(examine(fw, *SETTINGS)[1])) == ["attached"]


def test_an_interface_that_was_renamed(fw: Firewall) -> None:
    fw.attach(*NETWORK)
    for words in ("set lan down", "set lan name inner", "set inner up"):
        fw.namespace.run("ip", "link", *words.split())
    assert troubles(examine(fw)[1]) == {}


def test_a_short_timeout(fw: Firewall) -> None:
    assert_only(fw, "timeouts", "note", "timeout = 0.1 s", *SETTINGS, "--timeout", "100ms")


def test_another_module_that_is_named_bcc(fw: Firewall, tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("")
    done = run(fw, "env", f"PYTHONPATH={tmp_path}")
    assert troubles(_shown(done)[1])["compiler"]["level"] == "error"


def run(fw: Firewall, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """doctor, run by another command."""
    command = [sys.executable, "-m", "moh_ebpf", "doctor", *SETTINGS, "--for", "0s", "--json"]
    return fw.namespace.run(*wrapper, *command, check=False)


def test_without_the_rights(fw: Firewall) -> None:
    """What is attached cannot be read, nor the kernel asked; the rest is looked at."""
    without = ("setpriv", "--bounding-set=-sys_admin,-bpf")
    forwarding_off(fw)
    status, shown = _shown(run(fw, *without))
    found = troubles(shown)
    assert list(found) == ["privileges", "kernel", "clsact", "forwarding", "attached"]
    assert "CAP_SYS_ADMIN, CAP_BPF" in found["privileges"]["found"]
    assert found["privileges"]["level"] == found["forwarding"]["level"] == "error"
    assert found["kernel"]["level"] == found["clsact"]["level"] == "note"
    assert status == 1
    fw.attach()
    status, shown = _shown(run(fw, *without))
    found = troubles(shown)
    for name in ("attached", "unidentified", "unnatted", "failures", "pauses", "other-programs"):
        assert found[name]["level"] == "note"
        assert "Operation not permitted" in found[name]["evidence"]
    assert status == 1
    assert [each["check"] for each in shown["findings"]] == list(CHECKS)


def test_without_nft(fw: Firewall) -> None:
    status, shown = _shown(run(fw, "env", "PATH=/nonexistent"))
    found = troubles(shown)
    assert found["phantom-port"]["level"] == "note"
    assert "nft is not in PATH" in found["phantom-port"]["evidence"]
    assert status == 0


def test_text_shows_evidence_and_remedy_only_where_something_is_wrong(fw: Firewall) -> None:
    fw.attach()
    assert "try:" not in fw.moh("doctor", "--for", "0s").stdout
    forwarding_off(fw)
    shown = fw.moh("doctor", "--for", "0s", check=False).stdout
    assert re.search(r"^error +forwarding +packets that come in by lan", shown, re.M)
    assert re.search(r"^ +seen: net.ipv4.conf.lan.forwarding = 0$", shown, re.M)
    assert re.search(r"^ +try: sysctl -w net.ipv4.conf.lan.forwarding=1$", shown, re.M)


# A gateway that does not answer


def test_a_silent_gateway_while_ucm_sends(fw: Firewall) -> None:
    """Each of its packets turns FAILED back to INCOMPLETE, which is what is nearly always seen."""
    silence(fw)
    played(fw, f"{UCM}:24576", PROVIDER)
    threading.Event().wait(4)  # three requests, a second each: it has FAILED once
    assert_only(fw, "wan-neighbour", "error", f"ip neigh show {GATEWAY} dev wan: ", *SETTINGS)


def silence(fw: Firewall) -> None:
    """The gateway has no address: nobody answers for it."""
    fw.namespace.run("ip", "neigh", "del", GATEWAY, "dev", "wan")


def test_a_gateway_that_is_merely_being_asked_for(
    fw: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers a later request, between the two looks. There are more of them than three, in
    which a busy machine might not come to answer."""
    silence(fw)
    fw.namespace.sysctl("net.ipv4.neigh.wan.mcast_solicit", 30)
    looks = []

    def answer(seconds: float) -> None:
        looks.append(fw.namespace.run("ip", "neigh", "show", GATEWAY).stdout)
        fw.outside.run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "wan-end")
        time.sleep(seconds)

    with fw.namespace.entered(), IPRoute() as ipr:
        gateways = Gateways(ipr, {fw.namespace.ifindex("wan"): "wan"})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", ("203.0.113.10", 21000))
        monkeypatch.setattr(routes, "time", SimpleNamespace(sleep=answer))
        assert gateways.failed([]) == []
    assert ["INCOMPLETE" in each for each in looks] == [True]


# Flowtables

FLOWTABLE = """
table ip fast {
    flowtable f { hook ingress priority filter; devices = { lan, wan }; };
    chain forward {
        type filter hook forward priority filter;
        counter;
        ip protocol udp ct state established flow add @f;
    };
};
"""


def forwarded(fw: Firewall) -> int:
    """The packets that the chain of FLOWTABLE has seen."""
    shown = fw.namespace.run("nft", "list", "chain", "ip", "fast", "forward").stdout
    return int(re.findall(r"counter packets (\d+)", shown)[0])


def test_what_goes_past_a_flowtable_and_what_does_not(fw: Firewall) -> None:
    """Two-way RTP goes past the forward hook, and is seen by learn and bypass as before; hold music
    does not get there, though the flow of its endpoint is in the table."""
    made = fw.namespace.run("nft", "-f", "-", input=FLOWTABLE, check=False)
    if made.returncode:
        pytest.skip(f"no flowtables: {made.stderr.strip().splitlines()[0]}")
    fw.attach("--timeout", "60s", *NETWORK)
    music = f"{UCM}:24576"
    # The first packets of a flow are forwarded; as it is established, it goes into the table.
    for _ in range(3):
        fw.lan.send(udp(music, PROVIDER))
        fw.wan.send(udp(PROVIDER, CALL))
        fw.lan.send(udp(music, PROVIDER))
    assert fw.wan.sent()
    before, counts, heard = forwarded(fw), counters(fw), inbound(fw)
    with counter(fw, "wan", Hook.EGRESS) as egress:
        for _ in range(10):
            fw.lan.send(udp(music, PROVIDER))
            fw.wan.send(udp(PROVIDER, CALL))
        assert [flow(each) for each in fw.wan.sent()] == [(CALL, PROVIDER)] * 10
        assert egress.packets == 10
    assert forwarded(fw) == before
    assert counters(fw)["passed_two"] == counts["passed_two"] + 10
    assert inbound(fw) == heard + 10
    # The same endpoint goes on hold, and UCM sends from the very port that is in the table.
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(music, PROVIDER)] * 10)
    assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER)] * 10
    assert counters(fw)["rewritten"] == counts["rewritten"] + 10
    assert forwarded(fw) == before
    assert_only(fw, "flowtables", "note", "flowtable ip fast f: lan, wan")


def inbound(fw: Firewall) -> int:
    """The packets that learn has seen of the one endpoint."""
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    return peer["inbound"]["packets"]


def counters(fw: Firewall) -> dict[str, int]:
    return json.loads(fw.moh("status", "--json").stdout)["counters"]


def test_a_routed_firewall_that_is_well() -> None:
    with firewall(masquerade=False) as fw:
        fw.moh("attach", "--wan", "wan", "--ucm", UCM)
        status, shown = examine(fw)
        assert (status, troubles(shown)) == (0, {})


def test_nothing_attached_and_no_settings(fw: Firewall) -> None:
    """Whether or not this machine has a config."""
    script = (
        "import sys, pathlib; from moh_ebpf import cli, doctor; "
        "doctor.CONFIG = pathlib.Path('/nonexistent/moh-ebpf.toml'); "
        "sys.argv = ['moh-ebpf', 'doctor', *sys.argv[1:]]; cli.main()"
    )
    for option in ([], ["--json"]):
        done = fw.namespace.run(sys.executable, "-c", script, *option, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(
            "moh-ebpf: nothing is attached here, and there is no /nonexistent/moh-ebpf.toml; "
            "say what is to be, with --config FILE or --wan, --lan and --ucm\n",
            done.stderr,
        )
