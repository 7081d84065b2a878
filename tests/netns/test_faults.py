"""Faults: killed or failing between any two steps; interfaces, filters and namespaces that go away.

Three commands are put to each: attach, an attach that replaces another with other interfaces, and
detach. After a fault all of it is done or nothing, and detach leaves what was there before.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from moh_ebpf import settings
from moh_ebpf.attach import attachment
from moh_ebpf.errors import MohError
from moh_ebpf.kernel.tc import HANDLE, PRIORITY, Batch, Hook
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import describe
from tests.support import steps
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.foreign import counter
from tests.support.kernels import is_loaded
from tests.support.namespace import namespace
from tests.support.wire import flow, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"
PATIENT = ("--timeout", "60s")

FIRST = ("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, *PATIENT)
# Another WAN, the former one becomes a LAN, another size of the map: every kind of change.
SECOND = ("attach", "--wan", "wan2", "--lan", "wan", "--ucm", UCM, "--max-peers", "1000", *PATIENT)

PLACES = {
    FIRST: {("wan", "learn"), ("wan", "enforce"), ("lan", "bypass")},
    SECOND: {("wan2", "learn"), ("wan2", "enforce"), ("wan", "bypass")},
}


@dataclass(frozen=True)
class Set:
    """What of ours is there: places and program ids, what is missing, and all that tc shows."""

    places: set[tuple[str, str]]
    ids: set[int]
    missing: list[dict[str, str]]
    tc: str


def present(fw: Firewall) -> Set:
    with fw.namespace.entered(), IPRoute() as ipr, walk.found(ipr) as found:
        shown = describe(found.attached)
    return Set(
        {(each["interface"], each["role"]) for each in shown["programs"]},
        {each["id"] for each in shown["programs"]},
        shown["missing"],
        fw.namespace.tc_state("lan", "wan", "wan2"),
    )


def detach(fw: Firewall) -> None:
    with fw.namespace.entered():
        attachment.detach(print)


@pytest.fixture
def wan2(fw: Firewall) -> Firewall:
    """The firewall with a second WAN."""
    fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    return fw


# A command, and what is attached before it.
COMMANDS = [
    pytest.param(None, FIRST, id="attach"),
    pytest.param(FIRST, SECOND, id="replace"),
    pytest.param(FIRST, ("detach",), id="detach"),
]


def prepare(fw: Firewall, before: tuple[str, ...] | None) -> None:
    if before:
        fw.moh(*before)


def every_step(
    fw: Firewall,
    before: tuple[str, ...] | None,
    command: tuple[str, ...],
    choose: Callable[[list[steps.Step]], list[steps.Step]],
) -> Iterator[steps.Step]:
    """The chosen steps of the command, always from the same state: where a fault has changed it,
    detach restores what was there before all, to the letter, and attach works again. In CI every
    third one: most of them take a compile."""
    untouched = present(fw).tc
    prepare(fw, before)
    found = choose(steps.steps(fw.namespace, *command))
    if "CI" in os.environ:
        found = [*found[:-1:3], found[-1]]
    was = None
    for step in found:
        if was is None or present(fw) != was:
            detach(fw)
            assert present(fw).tc == untouched, step
            prepare(fw, before)
            was = present(fw)
        yield step
    detach(fw)
    assert present(fw).tc == untouched


@pytest.mark.parametrize(("before", "command"), COMMANDS)
def test_killed_between_any_two_steps(
    wan2: Firewall, before: tuple[str, ...] | None, command: tuple[str, ...]
) -> None:
    """kill -9: all of the command is done, or nothing; attach works again."""
    done, undone = PLACES.get(command, set()), PLACES.get(before or (), set())
    found = []
    for step in every_step(wan2, before, command, steps.changing):
        steps.kill(wan2.namespace, step, *command)
        left = present(wan2)
        found.append(left.places)
        assert left.places in (done, undone), step
        assert left.missing == [], step
    assert found[0] == undone
    assert found[-1] == done  # killed at its very exit
    wan2.moh(*FIRST)
    assert present(wan2).places == PLACES[FIRST]


@pytest.mark.parametrize(("before", "command"), COMMANDS)
def test_no_memory_at_any_step(
    wan2: Firewall, before: tuple[str, ...] | None, command: tuple[str, ...]
) -> None:
    """A command that fails says so and has changed nothing; one that does not has done it all."""
    done = PLACES.get(command, set())
    refused = 0
    choose = steps.replacing if command == SECOND else steps.telling
    for step in every_step(wan2, before, command, choose):
        if step.call == "exit_group":
            continue
        was = present(wan2)
        ended = steps.fail(wan2.namespace, step, *command)
        now = present(wan2)
        assert "Traceback" not in ended.stderr, step
        if ended.returncode:
            refused += 1
            assert "moh-ebpf: " in ended.stderr, step
            assert now == was, step
        else:
            assert (now.places, now.missing) == (done, []), step
    assert refused > 0


class NthRefused:
    """Batch.send with one message that names no interface: the kernel refuses that one itself."""

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0
        self._send = Batch.send

    def __call__(self, batch: Batch) -> list[MohError]:
        if not self.steps:  # the command's batch, and not that which restores
            self.steps = len(batch.steps)
            step = batch.steps[self.number]
            # struct nlmsghdr, then struct tcmsg: family, padding, ifindex
            message = step.message[:20] + b"\xff\xff\xff\x7f" + step.message[24:]
            batch.steps[self.number] = replace(step, message=message)
        return self._send(batch)


def in_process(fw: Firewall, command: tuple[str, ...]) -> None:
    """The command without its command line."""
    words = iter(command[1:])
    values = {word.lstrip("-").replace("-", "_"): next(words) for word in words}
    with fw.namespace.entered():
        attachment.attach(settings.from_values(values), print)


@pytest.mark.parametrize(("before", "command"), COMMANDS[:2])
def test_each_change_refused_by_the_kernel(
    wan2: Firewall,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[str, ...] | None,
    command: tuple[str, ...],
) -> None:
    """The changes before the one that fails are taken back, and a live stream plays on."""
    prepare(wan2, before)
    was = present(wan2)
    number, changes = 0, 1
    while number < changes:
        refuse = NthRefused(number)
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "send", lambda batch, refuse=refuse: refuse(batch))
            with pytest.raises(MohError, match="all is as it was before"):
                in_process(wan2, command)
        now = present(wan2)
        assert now == was, number
        number, changes = number + 1, refuse.steps
    assert changes == (7 if before else 5)
    if before:
        wan2.wan.send(udp(PROVIDER, HOLD))
        wan2.lan.send(udp(MUSIC, PROVIDER))
        assert [flow(packet) for packet in wan2.wan.sent()] == [(HOLD, PROVIDER)]


@pytest.mark.parametrize("number", range(5))
def test_a_change_of_detach_refused(
    fw: Firewall, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It says what it could not do, and does all else; the next one takes what was left."""
    untouched = both(fw)
    fw.moh(*FIRST)
    refuse = NthRefused(number)
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "send", lambda batch: refuse(batch))
        with fw.namespace.entered(), pytest.raises(MohError, match="detach: no ") as refused:
            attachment.detach(print)
    assert refuse.steps == 5
    fw.moh("detach")
    if "no clsact" in str(refused.value):  # without a filter on it, it is nobody's
        assert "filter" not in both(fw)
    else:
        assert both(fw) == untouched


def both(fw: Firewall) -> str:
    return fw.namespace.tc_state("lan", "wan")


def status(fw: Firewall) -> dict[str, Any]:
    return json.loads(fw.moh("status", "--json", check=False).stdout)


def test_attach_and_detach_at_once(fw: Firewall) -> None:
    """Six commands at once take turns: at the end all of a set is there, or nothing."""
    untouched = both(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf"]
    commands = [FIRST, ("detach",), ("status",), FIRST, ("peers",), ("detach",)]
    running = [
        subprocess.Popen(
            [*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for words in commands
    ]
    for words, each in zip(commands, running, strict=True):
        _, said = each.communicate(timeout=120)
        assert each.returncode in (0, 1, 3), said
        assert "Traceback" not in said
        # 3: nothing attached; 1: status while a set is being taken away
        assert each.returncode != 1 or words[-1] == "status", said
    shown = status(fw)
    assert (len(shown["programs"]), shown["missing"]) in ((3, []), (0, []))
    fw.moh("detach")
    assert both(fw) == untouched


def hold(fw: Firewall) -> list[tuple[str, str]]:
    """The provider speaks to the phantom port, UCM plays; what leaves by the WAN."""
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    return [flow(packet) for packet in fw.wan.sent()]


MUSIC_HEARD = [(HOLD, PROVIDER)]


@pytest.mark.parametrize("interface", ["wan", "lan"])
def test_interface_down_and_up(fw: Firewall, interface: str) -> None:
    """Filters and peers outlast it, though the kernel takes routes and neighbours away."""
    fw.moh(*FIRST)
    assert hold(fw) == MUSIC_HEARD
    fw.namespace.run("ip", "link", "set", interface, "down")
    assert fw.moh("status").returncode == 0
    fw.namespace.run("ip", "link", "set", interface, "up")
    fw.namespace.run("ip", "route", "replace", "default", "via", GATEWAY)
    fw.add_neighbour(GATEWAY, fw.wan)
    wait_for_carrier(fw, interface)
    assert hold(fw) == MUSIC_HEARD
    assert status(fw)["counters"]["learned_moh"] == 1


def wait_for_carrier(fw: Firewall, interface: str) -> None:
    state = Path(f"/sys/class/net/{interface}/operstate")
    deadline = time.monotonic() + 30
    while fw.namespace.run("cat", str(state)).stdout.strip() != "up":
        assert time.monotonic() < deadline, f"{interface} does not come up"


def test_interface_deleted_and_made_anew(fw: Firewall) -> None:
    """As PPPoE does with ppp0: the name is the same, the interface another. status tells; attach
    is needed again, and keeps the LAN's side as it was."""
    fw.moh(*FIRST)
    fw.namespace.run("ip", "link", "del", "wan")
    wire = fw.add_wire("wan", f"{PUBLIC}/24", GATEWAY)
    fw.namespace.run("ip", "route", "replace", "default", "via", GATEWAY)
    shown = fw.moh("status", "--json", check=False)
    assert shown.returncode == 1
    assert {(each["interface"], each["role"]) for each in json.loads(shown.stdout)["missing"]} == {
        ("(gone)", "learn"), ("(gone)", "enforce"),
    }  # fmt: skip
    # Without its WAN, bypass leaves UCM's packets to the firewall, as if it were not there.
    fw.moh(*FIRST)
    assert status(fw)["missing"] == []
    wire.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert [flow(packet) for packet in wire.sent()] == MUSIC_HEARD
    fw.moh("detach")
    assert "clsact" not in both(fw)


@pytest.mark.parametrize(
    "next_one",
    [None, ("--wan", "other"), ("--wan", "wan2")],
    ids=["detach", "attach-there", "attach-elsewhere"],
)
def test_an_ifindex_that_is_used_again(wan2: Firewall, next_one: tuple[str, ...] | None) -> None:
    """The record has ifindexes: a clsact that somebody has made on the next interface stays."""
    index = wan2.namespace.ifindex("wan")
    wan2.moh(*FIRST)
    wan2.namespace.run("ip", "link", "del", "wan")
    wan2.namespace.run(*f"ip link add other index {index} type veth peer name end".split())
    wan2.namespace.run("ip", "link", "set", "end", "up")
    wan2.namespace.run("ip", "addr", "add", f"{PUBLIC}/24", "dev", "other")
    wan2.namespace.run("ip", "link", "set", "other", "up")
    wan2.namespace.run("tc", "qdisc", "add", "dev", "other", "clsact")
    somebody_s = wan2.namespace.tc_state("other")
    assert "clsact" in somebody_s
    if next_one:
        wan2.moh("attach", *next_one, "--lan", "lan", "--ucm", UCM)
    wan2.moh("detach")
    assert wan2.namespace.tc_state("other") == somebody_s
    assert "clsact" not in wan2.namespace.tc_state("lan", "wan2")


def test_interface_moved_to_another_namespace(fw: Firewall) -> None:
    """The kernel strips an interface of qdiscs and filters as it moves: nothing of ours goes along,
    status tells what is missing, and back home it is attached again."""
    untouched = both(fw)
    fw.moh(*FIRST)
    with namespace("elsewhere") as elsewhere:
        fw.namespace.run("ip", "link", "set", "wan", "netns", elsewhere.name)
        assert "clsact" not in elsewhere.tc_state("wan")
        assert elsewhere.moh("status", check=False).returncode == 3
        assert {each["role"] for each in status(fw)["missing"]} == {"learn", "enforce"}
        elsewhere.run("ip", "link", "set", "wan", "netns", fw.namespace.name)
    fw.namespace.run("ip", "link", "set", "wan", "up")
    fw.namespace.run("ip", "addr", "add", f"{PUBLIC}/24", "dev", "wan")
    fw.namespace.run("ip", "route", "replace", "default", "via", GATEWAY)
    fw.add_neighbour(GATEWAY, fw.wan)
    fw.moh(*FIRST)
    assert status(fw)["missing"] == []
    wait_for_carrier(fw, "wan")
    assert hold(fw) == MUSIC_HEARD
    fw.moh("detach")
    assert both(fw) == untouched


def test_namespace_deleted(fw: Firewall) -> None:
    """Its interfaces, filters, programs and maps go with it; nothing keeps them."""
    with firewall() as doomed:
        doomed.moh(*FIRST)
        ids = [each["id"] for each in status(doomed)["programs"]]
        assert len(ids) == 3
        assert all(map(is_loaded, ids))
    wait_until_freed(ids)


def wait_until_freed(ids: list[int]) -> None:
    """The kernel takes a namespace down in the background, and tells nobody when it has."""
    deadline = time.monotonic() + 30
    while any(map(is_loaded, ids)):
        assert time.monotonic() < deadline, "programs outlive their namespace"
        time.sleep(0.01)


# Those that we use, and one that we do not.
HOOKS = [("wan", Hook.INGRESS), ("wan", Hook.EGRESS), ("lan", Hook.INGRESS), ("lan", Hook.EGRESS)]


def test_foreign_filters_at_every_hook(fw: Firewall) -> None:
    """All of them see what they saw before, but for what is consumed, dropped or redirected; all of
    them stay, through attach, replacement and detach."""
    with ExitStack() as stack:
        seen = {
            (interface, hook, priority): stack.enter_context(counter(fw, interface, hook, priority))
            for interface, hook in HOOKS
            for priority in (10, 9000)
        }
        untouched = both(fw)
        fw.moh(*FIRST)
        fw.moh(*FIRST)
        fw.wan.send(udp(PROVIDER, HOLD))  # consumed
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)  # redirected
        fw.lan.send(udp(MUSIC, "203.0.113.99:9000"))  # dropped
        fw.lan.send(udp(f"{UCM}:5060", "203.0.113.99:5060", b"SIP"))  # none of ours: forwarded
        fw.wan.sent()
        assert {(i, h, p): each.packets for (i, h, p), each in seen.items()} == {
            ("wan", Hook.INGRESS, 10): 1, ("wan", Hook.INGRESS, 9000): 0,
            ("wan", Hook.EGRESS, 10): 4, ("wan", Hook.EGRESS, 9000): 4,
            ("lan", Hook.INGRESS, 10): 5, ("lan", Hook.INGRESS, 9000): 1,
            ("lan", Hook.EGRESS, 10): 0, ("lan", Hook.EGRESS, 9000): 0,
        }  # fmt: skip
        fw.moh("detach")
        assert both(fw) == untouched
        fw.lan.send(udp(MUSIC, PROVIDER))
        fw.wan.sent()
        assert seen["lan", Hook.INGRESS, 9000].packets == 2
        assert seen["wan", Hook.EGRESS, 9000].packets == 5


def test_filter_of_our_name_that_is_not_ours(fw: Firewall) -> None:
    """At our priority, with our filter's name, but another program: neither taken for ours by
    status, nor replaced, nor removed."""
    with counter(fw, "wan", Hook.INGRESS, PRIORITY, name="moh_learn", handle=HANDLE):
        untouched = both(fw)
        assert fw.moh("status", check=False).returncode == 3
        refused = fw.moh(*FIRST, check=False)
        assert refused.returncode == 1
        assert "somebody else's" in refused.stderr
        fw.moh("detach")
        assert both(fw) == untouched


# Hold music in a class of its own, by what it looks like as it leaves.
HTB = rf"""
qdisc add dev wan root handle 1: htb default 20
class add dev wan parent 1: classid 1:10 htb rate 100mbit
class add dev wan parent 1: classid 1:20 htb rate 100mbit
filter add dev wan parent 1: protocol ip prio 1 u32 \
    match ip src {PUBLIC} match ip sport 4000 0xffff flowid 1:10
"""


def test_classful_qdisc_on_the_wan(fw: Firewall) -> None:
    """It stays, and shapes hold music as what it has become: rewritten and redirected packets pass
    the WAN's own qdisc."""
    fw.namespace.run("tc", "-batch", "-", input=HTB)
    untouched = both(fw)
    fw.moh(*FIRST)
    for _ in range(23):
        hold(fw)
    fw.lan.send(*[udp(f"{UCM}:5060", "203.0.113.99:5060", b"SIP")] * 7)
    assert len(fw.wan.sent()) == 7
    shown = fw.namespace.run("tc", "-s", "class", "show", "dev", "wan").stdout
    packets = dict(re.findall(r"class htb (\S+) .*\n Sent \d+ bytes (\d+) pkt", shown))
    # Frames of the test's own, which mark the end of what is waited for, go to the default class.
    assert packets["1:10"] == "23"
    assert int(packets["1:20"]) >= 7
    fw.moh("detach")
    assert both(fw) == untouched
