"""What is gone, blind or silent interrupts no call: end to end, with an attached set."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from scapy.layers.inet import UDP

from moh_ebpf.kernel.tc import Hook
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall
from tests.support.foreign import add_filter, load
from tests.support.namespace import namespace
from tests.support.service import CONFIG, service
from tests.support.waiting import until
from tests.support.wire import Wire, flow, rtp, udp

MEDIA = f"{UCM}:24576"
CALL = f"{PUBLIC}:24576"
HOLD = f"{PUBLIC}:4000"
FAR = "192.0.2.77:30000"  # behind an interface that is no --wan
PATIENT = ("--timeout", "60s")
SCHED_CLS = 3  # enum bpf_prog_type (linux/bpf.h)


def status(fw: Firewall) -> dict[str, Any]:
    return json.loads(fw.moh("status", "--json", check=False).stdout)


def passed(fw: Firewall) -> int:
    counters = status(fw)["counters"]
    return counters["passed_blind"] + counters["passed_unheard"]


class Call:
    """UCM's RTP, and what comes in beside it; a packet every 20 ms each, the inbound one first."""

    def __init__(self, fw: Firewall, source: str, destination: str) -> None:
        self._fw, self.sent = fw, 0
        self._inbound = source, destination
        self._ended = Event()
        self._thread = Thread(target=self._play)

    def _play(self) -> None:
        while not self._ended.is_set():
            self._fw.wan.send(udp(*self._inbound, rtp(self.sent)))
            self._fw.lan.send(udp(MEDIA, PROVIDER, rtp(self.sent)))
            self.sent += 1
            time.sleep(0.02)

    def start(self) -> None:
        self._thread.start()

    def go_on(self, packets: int) -> None:
        end = self.sent + packets
        until("the call goes on", lambda: self.sent >= end)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextmanager
def call(fw: Firewall, source: str = PROVIDER, destination: str = CALL) -> Iterator[Call]:
    made = Call(fw, source, destination)
    made.start()
    try:
        made.go_on(10)
        yield made
    finally:
        made.end()


def accept_all(fw: Firewall) -> None:
    """Another tool's filter before learn, which takes all packets: learn is there, sees nothing."""
    module = load(b"int take(struct __sk_buff *skb) { return 0; }")
    try:
        take = module.load_func(b"take", SCHED_CLS)
        add_filter(fw.namespace, "wan", Hook.INGRESS, 100, take.fd)
    finally:
        module.cleanup()


def delivered(fw: Firewall) -> list[tuple[str, str]]:
    return [flow(packet) for packet in fw.wan.sent() if UDP in packet]


GONE = [
    ("learn's filter", "filter del dev wan ingress pref 4000"),
    ("enforce's filter", "filter del dev wan egress pref 4000"),
    ("the WAN's clsact", "qdisc del dev wan clsact"),
    ("bypass's filter", "filter del dev lan ingress pref 4000"),
    ("the LAN's clsact", "qdisc del dev lan clsact"),
]


@pytest.mark.parametrize(("what", "command"), GONE, ids=lambda value: value[:20])
def test_a_call_loses_no_packet_when_a_program_goes(fw: Firewall, what: str, command: str) -> None:
    """The kernel stops an interface's queue while a clsact qdisc comes or goes, whoever's it is:
    qdisc_graft (net/sched/sch_api.c). What leaves just then is dropped."""
    fw.attach()
    with call(fw) as playing:
        fw.namespace.run("tc", *command.split())
        playing.go_on(120)  # more than twice the timeout of a second
    left = delivered(fw)
    assert set(left) == {(CALL, PROVIDER)}
    assert playing.sent - len(left) in range(3 if "clsact" in command else 1), what


def test_an_earlier_filter_that_takes_all_interrupts_no_call(fw: Firewall) -> None:
    """Such as another tool's that accepts: learn is there, and sees nothing."""
    fw.attach()
    with call(fw) as playing:
        accept_all(fw)
        until("the WAN is blind", lambda: status(fw)["wans"][0]["blind"])
        found = json.loads(fw.moh("doctor", "--for", "300ms", "--json", check=False).stdout)
    assert delivered(fw) == [(CALL, PROVIDER)] * playing.sent
    (learning,) = [each for each in found["findings"] if each["check"] == "learning"]
    assert learning["level"] == "error"
    assert "another program runs before it" in learning["found"]


def test_calls_that_begin_when_learn_is_gone(fw: Firewall) -> None:
    """Nothing can become known: after a second they pass, and at once where that is known."""
    fw.attach("--patience", "never")
    fw.namespace.run("tc", "qdisc", "del", "dev", "wan", "clsact")
    fw.lan.send(udp(MEDIA, PROVIDER))
    assert delivered(fw) == []
    begun = time.monotonic()

    def passes() -> bool:
        fw.lan.send(udp(MEDIA, PROVIDER))
        return bool(delivered(fw))

    until("the call passes", passes)
    assert time.monotonic() - begun > 0.8
    with call(fw, source="192.0.2.9:20000", destination="198.51.100.77:20000"):
        until("the WAN is known to be blind", lambda: status(fw)["wans"][0]["blind"])
    delivered(fw)
    fw.lan.send(udp(MEDIA, "203.0.113.99:31000"))
    assert delivered(fw) == [(CALL, "203.0.113.99:31000")]


def test_a_wrong_public_address_interrupts_no_call(fw: Firewall) -> None:
    """Learn runs, and reads no packet that is to a public address."""
    fw.attach("--public", "198.51.100.99")
    with call(fw) as playing:
        until("UCM's RTP passes", lambda: status(fw)["wans"][0]["blind"])
        before = len(delivered(fw))
        sent = playing.sent
        playing.go_on(50)
        found = json.loads(fw.moh("doctor", "--for", "300ms", "--json", check=False).stdout)
    # Those under way when the wire was read are counted before or after.
    assert len(delivered(fw)) >= playing.sent - sent - 1
    assert before
    (learning,) = [each for each in found["findings"] if each["check"] == "learning"]
    assert "none of them is IPv4 to 198.51.100.99" in learning["found"]


def test_a_provider_that_is_not_listed_is_waited_for_only_so_long(fw: Firewall) -> None:
    """Learn sees it, and may not learn it."""
    fw.attach("--provider", "198.18.0.0/15", "--patience", "1s")
    with call(fw) as playing:
        until("UCM's RTP passes", lambda: passed(fw))
        delivered(fw)
        sent = playing.sent
        playing.go_on(50)
    assert len(delivered(fw)) >= playing.sent - sent - 1
    counters = status(fw)["counters"]
    assert counters["passed_unheard"]
    assert not counters["learned_two"]
    assert 0 < counters["dropped_unidentified"] < playing.sent
    shown = fw.moh("events", "--history", "--for", "100ms").stdout
    assert f"unheard {PROVIDER}  NOT HEARD in" in shown


def test_a_hold_whose_provider_is_silent_is_told(fw: Firewall) -> None:
    """As it is without a proxy or --flip-hold: the provider stops sending."""
    fw.attach("--patience", "500ms")
    # Others keep learn awake.
    with call(fw, source="8.8.8.8:20000"):
        until("the music passes as a call", lambda: passed(fw))
        shown = json.loads(fw.moh("doctor", "--for", "0s", "--json", check=False).stdout)
    (finding,) = [each for each in shown["findings"] if each["check"] == "unheard"]
    assert finding["level"] == "warning"
    assert "--flip-hold" in finding["remedy"]
    assert PROVIDER in finding["evidence"]
    assert "OPEN" in fw.moh("status").stdout


def test_run_tells_of_a_blind_wan_and_of_its_end(fw: Firewall, tmp_path: Path) -> None:
    """Blind, although every program is where it belongs: `run` has nothing to put back."""
    with service(fw.namespace, tmp_path, CONFIG.replace("60s", "1s")) as running:
        running.wait_for_word("READY")
        with call(fw):
            accept_all(fw)
            assert "LEARN SEES NOTHING" in running.wait_for_line("blind wan")
            fw.namespace.run("tc", "filter", "del", "dev", "wan", "ingress", "pref", "100")
            running.wait_for_line("seeing wan")
        assert status(fw)["wans"][0]["blind"] is False


# Interfaces that go


def second_uplink(fw: Firewall) -> Wire:
    """An uplink that is no --wan, as a new ppp0 is to what was attached to the old one."""
    return fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")


def take_away(fw: Firewall, how: str, elsewhere: str) -> None:
    if how == "deleted":
        fw.namespace.run("ip", "link", "del", "wan")
    else:
        fw.namespace.run("ip", "link", "set", "wan", "netns", elsewhere)
    fw.namespace.run("ip", "route", "replace", "default", "via", "192.0.2.1")


@pytest.mark.parametrize("how", ["deleted", "moved to another namespace"])
@pytest.mark.parametrize("heard_on", [CALL, HOLD])
def test_a_wan_that_another_replaces(fw: Firewall, how: str, heard_on: str) -> None:
    """The stack decides for an uplink that is no --wan, whether on hold or not."""
    wan2 = second_uplink(fw)
    with namespace("elsewhere") as elsewhere:
        fw.attach(*PATIENT)
        fw.wan.send(udp(PROVIDER, heard_on))
        fw.lan.send(udp(MEDIA, PROVIDER))
        assert delivered(fw) == [(heard_on, PROVIDER)]
        take_away(fw, how, elsewhere.name)
        # The kept next hop of a hold is trusted for half a second at most.
        until("music goes on", lambda: sent_by(fw, wan2))
        fw.lan.send(*[udp(MEDIA, PROVIDER)] * 5)
        assert [flow(packet) for packet in wan2.sent()] == [("192.0.2.2:24576", PROVIDER)] * 5


def sent_by(fw: Firewall, wire: Wire) -> bool:
    fw.lan.send(udp(MEDIA, PROVIDER))
    return bool(wire.sent())


def test_a_lan_that_goes_and_another_that_comes(fw: Firewall) -> None:
    """UCM is reached by an interface that nobody named: netfilter has its calls."""
    with call(fw) as playing:
        fw.attach()
        playing.go_on(5)
    delivered(fw)
    lan2 = fw.add_wire("lan2", "10.10.11.1/24", "10.10.11.10")
    fw.namespace.run("ip", "link", "del", "lan")
    fw.namespace.run("ip", "route", "add", f"{UCM}/32", "dev", "lan2")
    fw.add_neighbour(UCM, lan2)
    lan2.send(*[udp(MEDIA, PROVIDER)] * 5)
    assert delivered(fw) == [(CALL, PROVIDER)] * 5


# Media go where the routes send them


def test_a_spoofed_packet_moves_no_media_out_of_a_tunnel(fw: Firewall) -> None:
    """FAR is behind an interface that is no --wan; a packet of its comes in by the WAN."""
    dmz = fw.add_wire("dmz", "192.0.2.1/24", "192.0.2.77")
    fw.attach(*PATIENT)
    for public in (HOLD, CALL):
        fw.wan.send(udp(FAR, public))
        fw.lan.send(*[udp(MEDIA, FAR)] * 7)
        assert [flow(packet) for packet in dmz.sent()] == [(MEDIA, FAR)] * 7
        assert delivered(fw) == []
    assert status(fw)["counters"]["routed_elsewhere"] == 7


def test_media_follow_a_route_that_moves_into_a_tunnel(fw: Firewall) -> None:
    """As when a tunnel comes up: the next hop that was kept for the WAN is given up."""
    dmz = fw.add_wire("dmz", "10.99.0.1/24", "10.99.0.2")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MEDIA, PROVIDER))
    assert delivered(fw) == [(HOLD, PROVIDER)]
    fw.namespace.run("ip", "route", "add", "203.0.113.0/24", "via", "10.99.0.2")
    until("music goes into the tunnel", lambda: sent_by(fw, dmz))
    delivered(fw)
    fw.lan.send(*[udp(MEDIA, PROVIDER)] * 7)
    assert [flow(packet) for packet in dmz.sent()] == [(MEDIA, PROVIDER)] * 7
    assert delivered(fw) == []


def test_a_route_by_mark_alone_is_pointed_out(fw: Firewall) -> None:
    """Netfilter sets the mark after bypass: the stack has the music, and attach says so."""
    run = fw.namespace.run
    run("ip", "route", "del", "default")
    run("ip", "route", "add", "default", "via", GATEWAY, "table", "100")
    run("ip", "rule", "add", "fwmark", "1", "lookup", "100")
    fw.namespace.nft(
        "table ip marks { chain prerouting { type filter hook prerouting priority mangle;"
        f" ip saddr {UCM} meta mark set 1; }}; }}"
    )
    done = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, *PATIENT)
    assert "a rule by mark" in done.stderr
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MEDIA, PROVIDER))
    assert delivered(fw) == [(CALL, PROVIDER)]
    found = json.loads(fw.moh("doctor", "--for", "0s", "--json", check=False).stdout)
    assert any("a rule by mark" in each["found"] for each in found["findings"])
    # Once the route needs no mark, there is nothing to point out, and music is as it should be.
    run("ip", "rule", "add", "from", UCM, "lookup", "100")
    done = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, *PATIENT)
    assert "mark" not in done.stderr
    fw.lan.send(udp(MEDIA, PROVIDER))
    assert delivered(fw) == [(HOLD, PROVIDER)]


# Replacements


def test_a_long_hold_outlives_a_replacement_that_moves_its_wan(fw: Firewall) -> None:
    """Learn has not spoken to the new programs yet, and the maps are others."""
    fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    attach = ("attach", "--lan", "lan", "--ucm", UCM, "--timeout", "30m", "--wan")
    fw.moh(*attach, "wan2", "wan")
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.moh(*attach, "wan")
    before = status(fw)["wans"]
    fw.lan.send(*[udp(MEDIA, PROVIDER)] * 5)
    assert delivered(fw) == [(HOLD, PROVIDER)] * 5
    assert before[0]["learn_age"] is not None


def test_a_replacement_with_another_patience_waits_anew(fw: Firewall) -> None:
    fw.attach("--patience", "500ms")
    with call(fw, source="8.8.8.8:20000"):
        until("UCM's RTP passes", lambda: passed(fw))
        fw.attach("--patience", "1s")
        until("it is told again", lambda: unheard(fw) == 2)


def unheard(fw: Firewall) -> int:
    shown = fw.moh("events", "--history", "--for", "0s").stdout
    return sum(line.split()[2] == "unheard" for line in shown.splitlines())


def test_what_bypass_lets_pass_is_counted_there_alone(fw: Firewall) -> None:
    """Where the firewall does not NAT, enforce sees it again."""
    fw.namespace.nft("flush ruleset")
    fw.attach("--patience", "0s")
    fw.lan.send(*[udp(MEDIA, PROVIDER)] * 5)
    assert delivered(fw) == [(MEDIA, PROVIDER)] * 5
    counters = status(fw)["counters"]
    assert (counters["passed_unheard"], counters["passed_unnatted"]) == (5, 5)
