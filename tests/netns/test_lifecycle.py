"""attach, replace and detach: all or nothing, without a gap, without a trace."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from moh_ebpf import doctor
from moh_ebpf.attach import attachment, filters
from moh_ebpf.kernel.tc import Hook
from moh_ebpf.registry import walk
from moh_ebpf.settings import from_values
from tests.support import kernels
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.flood import Streams, playing
from tests.support.foreign import counter, tcx_program
from tests.support.kernels import is_loaded
from tests.support.wire import flow, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"
PATIENT = ("--timeout", "60s")


def state(fw: Firewall) -> str:
    return fw.namespace.tc_state("lan") + fw.namespace.tc_state("wan")


def status(fw: Firewall) -> dict[str, Any]:
    return json.loads(fw.moh("status", "--json", check=False).stdout)


def program_ids(fw: Firewall) -> set[int]:
    return {program["id"] for program in status(fw)["programs"]}


def peers_map(fw: Firewall) -> int:
    """The id of the map of peers."""
    with fw.namespace.entered(), IPRoute() as ipr, walk.found(ipr) as found:
        assert found.attached
        return found.attached.maps.peers_id


def test_detach_leaves_no_trace(fw: Firewall) -> None:
    before = state(fw)
    fw.attach()
    ids = program_ids(fw)
    assert len(ids) == 3
    assert all(map(is_loaded, ids))
    assert state(fw) != before
    assert status(fw)["attached"] is True
    fw.moh("detach")
    assert state(fw) == before
    assert not any(map(is_loaded, ids))
    assert status(fw)["attached"] is False
    assert fw.moh("status", check=False).returncode == 3


def test_detach_returns_when_all_is_freed(fw: Firewall) -> None:
    """In this process, for a command's own end takes longer than the kernel does."""
    fw.attach()
    ids = program_ids(fw)
    with fw.namespace.entered():
        attachment.detach(print)
    assert [is_loaded(each) for each in ids] == [False] * 3


def test_twice_is_fine(fw: Firewall) -> None:
    before = state(fw)
    fw.attach()
    fw.attach()
    assert len(status(fw)["programs"]) == 3
    fw.moh("detach")
    fw.moh("detach")
    assert state(fw) == before


def test_dry_run_attaches_nothing(fw: Firewall) -> None:
    before = state(fw)
    shown = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, "--dry-run").stdout
    assert "would attach bypass on lan ingress" in shown
    assert state(fw) == before


def test_foreign_filters_stay_and_see_what_they_saw(fw: Firewall) -> None:
    with (
        counter(fw, "wan", Hook.EGRESS, 10) as before_ours,
        counter(fw, "wan", Hook.EGRESS, 9000) as after_ours,
        counter(fw, "wan", Hook.INGRESS, 9000) as inbound,
    ):
        prior = state(fw)
        fw.attach(*PATIENT)
        fw.wan.send(udp(PROVIDER, HOLD))  # consumed
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))  # goes on
        fw.wan.send(udp(PROVIDER, HOLD))
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 3)
        assert (before_ours.packets, after_ours.packets, inbound.packets) == (3, 3, 1)
        fw.moh("detach")
        assert state(fw) == prior  # their clsact and filters, to the letter
        fw.lan.send(udp(MUSIC, PROVIDER))
        assert after_ours.packets == 4


def test_clsact_stays_where_somebody_moved_in(fw: Firewall) -> None:
    """We made it, but their filter is on it now."""
    fw.attach()
    with counter(fw, "wan", Hook.EGRESS, 9000):
        fw.moh("detach")
        shown = fw.namespace.tc_state("wan")
        assert "clsact" in shown
        assert "somebody-else" in shown
        assert "moh_" not in shown
        assert "clsact" not in fw.namespace.tc_state("lan")


def test_empty_clsact_of_somebody_stays(fw: Firewall) -> None:
    fw.namespace.run("tc", "qdisc", "add", "dev", "wan", "clsact")
    before = state(fw)
    fw.attach()
    fw.attach()
    fw.moh("detach")
    assert state(fw) == before


def test_our_priority_taken_is_refused(fw: Firewall) -> None:
    with counter(fw, "wan", Hook.EGRESS, 4000):
        before = state(fw)
        refused = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, check=False)
        assert refused.returncode == 1
        assert "priority 4000" in refused.stderr
        assert "tc filter show dev wan egress" in refused.stderr
        assert state(fw) == before
        fw.moh("detach")
        assert state(fw) == before


def test_failure_halfway_is_rolled_back(fw: Firewall) -> None:
    """The LAN's hooks are a shared block: the WAN's filters are in when bypass fails."""
    fw.namespace.run(*["tc", "qdisc", "add", "dev", "lan", "ingress_block", "7", "clsact"])
    before = state(fw)
    failed = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, check=False)
    assert failed.returncode == 1
    assert "moh_bypass on lan ingress" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert state(fw) == before


def test_failed_replacement_leaves_the_old_set_at_work(fw: Firewall) -> None:
    fw.add_wire("lan2", "10.40.0.1/24", "10.40.0.2")
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    ids = program_ids(fw)
    fw.namespace.run(*["tc", "qdisc", "add", "dev", "lan2", "ingress_block", "7", "clsact"])
    before = state(fw)
    failed = fw.moh(
        "attach", "--wan", "wan", "--lan", "lan", "lan2", "--ucm", UCM, "--port", "5000",
        check=False,
    )  # fmt: skip
    assert failed.returncode == 1
    assert state(fw) == before
    assert program_ids(fw) == ids
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert [flow(packet) for packet in fw.wan.sent()] == [(HOLD, PROVIDER)]


@pytest.mark.parametrize("change", [(), ("--max-peers", "1000"), ("--rtp-ports", "20000-32767")])
def test_replacement_interrupts_nothing(fw: Firewall, change: tuple[str, ...]) -> None:
    """A live stream, inbound and outbound, while everything is replaced: not one packet lost."""
    fw.attach(*PATIENT)
    fw.wan.send(udp(PROVIDER, HOLD))
    old, old_peers = program_ids(fw), peers_map(fw)
    with playing(Streams(fw, [PROVIDER])) as rounds:
        fw.attach(*PATIENT, *change)
    sent = rounds()
    assert not old & program_ids(fw)
    assert sent > 50
    assert [flow(packet) for packet in fw.wan.sent()] == [(HOLD, PROVIDER)] * sent
    shown = status(fw)
    assert shown["counters"]["rewritten"] == shown["counters"]["bypassed"] == sent
    assert shown["counters"]["dropped_unidentified"] == 0
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    counted = (peer["inbound"]["packets"] - 1, peer["outbound"]["packets"])
    if "--max-peers" in change:  # copied into a new map: what came between copy and swap is missed
        assert 0 < min(counted) <= max(counted) <= sent
    else:
        assert counted == (sent, sent)
        assert peers_map(fw) == old_peers
    assert shown["counters"]["learned_moh"] == 1


def test_replacement_may_move_roles_and_drop_interfaces(fw: Firewall) -> None:
    fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
    before = {name: fw.namespace.tc_state(name) for name in ("lan", "wan", "wan2")}
    fw.moh("attach", "--wan", "wan", "wan2", "--lan", "lan", "--ucm", UCM, *PATIENT)
    wan2_peer = "203.0.113.20:7000"
    fw.wan.send(*[udp(PROVIDER, HOLD), udp(wan2_peer, HOLD)] * 2)
    # The first WAN goes: its peers are kept where their WAN is, under its new index.
    fw.moh("attach", "--wan", "wan2", "wan", "--lan", "lan", "--ucm", UCM, *PATIENT)
    shown = json.loads(fw.moh("peers", "--json").stdout)
    assert {(peer["address"], peer["interface"]) for peer in shown} == {
        ("203.0.113.10", "wan"), ("203.0.113.20", "wan"),
    }  # fmt: skip
    fw.moh("attach", "--wan", "wan2", "--lan", "wan", "--ucm", UCM, "--public", "192.0.2.2")
    assert json.loads(fw.moh("peers", "--json", "--all").stdout) == []
    places = {(p["interface"], p["hook"], p["role"]) for p in status(fw)["programs"]}
    assert places == {
        ("wan2", "ingress", "learn"), ("wan2", "egress", "enforce"), ("wan", "ingress", "bypass"),
    }  # fmt: skip
    assert fw.namespace.tc_state("lan") == before["lan"]
    fw.moh("detach")
    assert {name: fw.namespace.tc_state(name) for name in before} == before


def test_a_replacement_tells_what_it_did_where(fw: Firewall) -> None:
    attach = ("attach", "--ucm", UCM, "--public", PUBLIC, "--wan")
    new = "attached learn on wan ingress", "attached enforce on wan egress"
    assert fw.moh(*attach, "wan").stdout.splitlines()[:-1] == [*new]
    exchanged = ("lan", "--lan", "wan")
    done = [
        "attached learn on lan ingress",
        "attached enforce on lan egress",
        "attached bypass on wan ingress",
        "detached enforce from wan egress",
    ]
    dry = [line.replace("attached", "would attach") for line in done[:-1]]
    shown = fw.moh(*attach, *exchanged, "--dry-run").stdout.splitlines()
    assert shown[:-1] == [*dry, "would detach enforce from wan egress"]
    assert fw.moh(*attach, *exchanged).stdout.splitlines()[:-1] == done
    again = [line.replace("attached", "replaced") for line in done[:-1]]
    assert fw.moh(*attach, *exchanged).stdout.splitlines()[:-1] == again


def test_filter_removed_by_hand_is_missed(fw: Firewall) -> None:
    fw.attach()
    fw.namespace.run(*["tc", "filter", "del", "dev", "wan", "egress", "pref", "4000"])
    shown = fw.moh("status", "--json", check=False)
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["missing"] == [
        {"interface": "wan", "hook": "egress", "role": "enforce"}
    ]
    fw.attach()
    assert status(fw)["missing"] == []
    assert fw.moh("status").returncode == 0


def test_clsact_removed_by_hand(fw: Firewall) -> None:
    before = state(fw)
    fw.attach()
    fw.namespace.run(*["tc", "qdisc", "del", "dev", "wan", "clsact"])
    assert {each["role"] for each in status(fw)["missing"]} == {"learn", "enforce"}
    fw.moh("detach")
    assert state(fw) == before


def test_interface_that_vanishes(fw: Firewall) -> None:
    fw.attach()
    lan = fw.namespace.tc_state("lan")
    fw.namespace.run("ip", "link", "del", "wan")
    shown = status(fw)
    assert {(each["interface"], each["role"]) for each in shown["missing"]} == {
        ("(gone)", "learn"), ("(gone)", "enforce"),
    }  # fmt: skip
    fw.moh("detach")
    assert "moh_" in lan
    assert "moh_" not in fw.namespace.tc_state("lan")


def test_renamed_interface(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)
    fw.namespace.run("ip", "link", "set", "wan", "name", "uplink")
    assert {p["interface"] for p in status(fw)["programs"]} == {"uplink", "lan"}
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    assert peer["interface"] == "uplink"
    fw.moh("detach")
    assert "clsact" not in fw.namespace.tc_state("uplink")


def test_the_second_command_waits_and_says_so(fw: Firewall) -> None:
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "detach"]
    with ExitStack() as locked:
        locked.enter_context(fw.namespace.locked())
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            said = waiting.stderr.readline()
            assert f"waiting for another moh-ebpf (process {os.getpid()})" in said
            assert waiting.poll() is None
            locked.close()
            assert waiting.wait(timeout=30) == 0


@contextmanager
def locked(fw: Firewall, script: str, *by: str) -> Iterator[None]:
    """Somebody else's program, which has the namespace's lock when it says something."""
    script = f"import fcntl, os, time; namespace = open('/proc/self/ns/net'); {script}"
    command = ["ip", "netns", "exec", fw.namespace.name, *by, "/usr/bin/python3", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            yield
        finally:
            holder.kill()


def test_nobody_but_root_keeps_root_waiting(fw: Firewall) -> None:
    script = "fcntl.flock(namespace, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"
    with locked(fw, script, "setpriv", "--reuid", "65534", "--clear-groups"):
        assert "not root's" in fw.moh("detach").stderr


def test_a_lock_whose_holder_has_ended_keeps_nobody_waiting(fw: Firewall) -> None:
    """The lock is its open file's, which a child of the one who took it may keep: none of our
    commands has one."""
    script = (
        "os.fork() or (fcntl.flock(namespace, fcntl.LOCK_EX), os._exit(0)); "
        "os.wait(); print(flush=True); time.sleep(600)"
    )
    with locked(fw, script):
        said = fw.moh("detach").stderr
    # In a container, /proc/locks does not show such a lock.
    assert re.search("which has ended, locks|cannot be seen here locks", said)


def test_peers_are_copied_before_the_swap_and_after(
    fw: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a map of another size. What is heard between the copy and the swap, perhaps within one
    tick of the clock, is copied after it; music goes on from the moment of the swap."""
    fw.attach(*PATIENT)
    staying, changing, coming = "203.0.113.20:7000", PROVIDER, "203.0.113.30:7000"
    fw.wan.send(*[udp(changing, HOLD), udp(staying, HOLD)] * 2)
    swap = filters.apply

    def hear_swap_and_play(*arguments: Any) -> None:
        fw.wan.send(udp(changing, f"{PUBLIC}:24600"), *[udp(coming, HOLD)] * 2)
        swap(*arguments)
        fw.lan.send(udp(MUSIC, staying))

    monkeypatch.setattr(filters, "apply", hear_swap_and_play)
    values = {"wan": "wan", "lan": "lan", "ucm": UCM, "timeout": "60s", "max_peers": "1000"}
    with fw.namespace.entered():
        attachment.attach(from_values(values), print)
    assert [flow(packet) for packet in fw.wan.sent()] == [(HOLD, staying)]
    shown = json.loads(fw.moh("peers", "--json").stdout)
    assert {(f"{peer['address']}:{peer['port']}", peer["state"]) for peer in shown} == {
        (changing, "two"), (staying, "moh"), (coming, "moh"),
    }  # fmt: skip


def test_another_layout_is_replaced_at_once(fw: Firewall, tmp_path: Path) -> None:
    """An upgrade: maps that have changed are neither read nor shared, the others go on, and the
    filters are swapped all the same."""
    older = tmp_path / "older.py"
    older.write_text("from dataclasses import replace\n"
                     "from moh_ebpf.maps import ROWS\n"
                     "ROWS['peers'] = replace(ROWS['peers'], parts=('older',))\n"
                     "from moh_ebpf.cli import main; main()\n")  # fmt: skip
    before = state(fw)
    fw.namespace.run("env", f"PYTHONPATH={Path.cwd()}", sys.executable, str(older), "attach",
                     "--wan", "wan", "--lan", "lan", "--ucm", UCM)  # fmt: skip
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    refused = fw.moh("status", check=False)
    assert refused.returncode == 1
    assert "another version" in refused.stderr
    with fw.namespace.entered(), IPRoute() as ipr, walk.found(ipr) as found:
        assert found.attached is None
        assert found.readable
        assert {"counters", "events"} <= found.readable.maps.opened.keys()
        assert "peers" not in found.readable.maps
    if not doctor.CONFIG.exists():
        refused = fw.moh("doctor", check=False)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "another version" in refused.stderr
    fw.attach(*PATIENT)
    assert len(program_ids(fw)) == 3
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert [flow(packet) for packet in fw.wan.sent()] == [(HOLD, PROVIDER)] * 2
    counted = json.loads(fw.moh("status", "--json").stdout)["counters"]
    assert (counted["rewritten"], counted["learned_moh"]) == (2, 0)
    fw.moh("detach")
    assert state(fw) == before


def test_attach_says_as_json_what_it_did(fw: Firewall) -> None:
    """What would be, what is done, what is replaced and detached; and why it is not."""
    places = [
        {"interface": "wan", "hook": "ingress", "role": "learn"},
        {"interface": "wan", "hook": "egress", "role": "enforce"},
        {"interface": "lan", "hook": "ingress", "role": "bypass"},
    ]
    words = ("attach", "--json", "--wan", "wan", "--ucm", UCM)
    for more in ("--dry-run", "--quality"):
        done = fw.moh(*words, "--lan", "lan", more)
        shown = json.loads(done.stdout)
        assert (shown["attached"], shown["replaced"], shown["detached"]) == (places, [], [])
        assert (shown["settings"]["public"], shown["warnings"]) == ([PUBLIC], [])
        assert done.stderr == ""
    shown = json.loads(fw.moh(*words).stdout)
    assert (shown["attached"], shown["replaced"], shown["detached"]) == ([], places[:2], places[2:])
    with counter(fw, "wan", Hook.INGRESS, 10):
        (warning,) = json.loads(fw.moh(*words, "--lan", "lan").stdout)["warnings"]
    assert "runs before learn" in warning
    refused = fw.moh("attach", "--json", "--wan", "none", "--ucm", UCM, check=False)
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, refused.stderr) == (2, f"moh-ebpf: {error}\n")


def test_filter_before_ours_is_pointed_out(fw: Firewall) -> None:
    with counter(fw, "wan", Hook.INGRESS, 10):
        said = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM).stderr
    assert "wan ingress: the bpf filter somebody-else at priority 10 runs before learn" in said


@pytest.mark.parametrize(
    ("interface", "hook", "role"),
    [
        ("wan", Hook.INGRESS, "learn"),
        ("wan", Hook.EGRESS, "enforce"),
        ("lan", Hook.INGRESS, "bypass"),
    ],
)
def test_tcx_program_before_ours_is_pointed_out(
    fw: Firewall, interface: str, hook: Hook, role: str
) -> None:
    kernels.skip_before(6, 6, "TCX")
    with tcx_program(fw, interface, hook):
        said = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM).stderr
        assert f"{interface} {hook}: the TCX program count runs before {role}" in said
    assert "TCX" not in fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM).stderr


def test_macvlan_on_the_lan_is_pointed_out(fw: Firewall) -> None:
    fw.namespace.run("ip", "link", "add", "vrrp0", "link", "lan", "type", "macvlan")
    said = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM).stderr
    assert "vrrp0 is a macvlan on lan" in said


def test_wan_and_lan_exchanged_are_pointed_out(fw: Firewall) -> None:
    said = fw.moh("attach", "--wan", "lan", "--lan", "wan", "--ucm", UCM, "--dry-run").stderr
    assert f"UCM's {UCM} is behind lan, which is named as --wan" in said
    said = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM, "--dry-run").stderr
    assert "exchanged" not in said


def test_three_at_once(fw: Firewall) -> None:
    before = state(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf"]
    attach = [*command, "attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM]
    running = [
        subprocess.Popen(attach, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [each.wait(timeout=60) for each in running] == [0, 0, 0]
    shown = status(fw)
    assert (len(shown["programs"]), shown["missing"]) == (3, [])
    fw.moh("detach")
    assert state(fw) == before


def test_without_root_nothing_is_tried(fw: Firewall) -> None:
    # The checkout may lie where root alone can read, such as in /root.
    read_all = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    for verb in (["attach", "--wan", "wan", "--ucm", UCM], ["detach"], ["status"], ["peers"],
                 ["watch"]):  # fmt: skip
        refused = fw.namespace.run(
            "setpriv", "--reuid", "65534", "--clear-groups", *read_all, sys.executable, "-c",
            f"import sys; sys.path.insert(0, {str(Path.cwd())!r}); "
            "from moh_ebpf.cli import main; main()",
            *verb, check=False,
        )  # fmt: skip
        assert refused.returncode == 1, refused
        assert "needs root" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_peers_forgotten_after_the_timeout(fw: Firewall) -> None:
    fw.attach("--timeout", "300ms")
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)
    while not json.loads(fw.moh("peers", "--json", "--all").stdout)[0]["expired"]:
        pass
    assert json.loads(fw.moh("peers", "--json").stdout) == []
    fw.lan.send(udp(MUSIC, PROVIDER))
    assert fw.wan.sent() == []
    assert status(fw)["counters"]["dropped_unidentified"] == 1


def test_signal_while_waiting_leaves_nothing(fw: Firewall) -> None:
    before = state(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf",
               "attach", "--wan", "wan", "--ucm", UCM]  # fmt: skip
    with (
        fw.namespace.locked(),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting,
    ):
        assert waiting.stderr is not None
        assert "waiting" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=30) == 130
        assert "Traceback" not in waiting.stderr.read()
    assert state(fw) == before
