"""status, peers and watch on real packets: the fields that scripts rely on, the view people see."""

import json
import signal
import subprocess
import sys
import termios

from moh_ebpf.counters import COUNTERS, RETIRED
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.terminal import ENTER, LEAVE, SHOW_CURSOR, terminal
from tests.support.wire import udp

HOLD = f"{PUBLIC}:4000"
TALKER = "203.0.113.20:7000"


def one_on_hold_and_one_talking(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 4, *[udp(TALKER, f"{PUBLIC}:24600")] * 3)
    fw.lan.send(*[udp(f"{UCM}:24576", PROVIDER)] * 23, udp(f"{UCM}:24600", TALKER))
    assert len(fw.wan.sent()) == 24


def test_peers_json(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    held, talking = sorted(
        json.loads(fw.moh("peers", "--json").stdout), key=lambda peer: peer["state"]
    )
    size = len(udp(PROVIDER, HOLD))
    times = {name: held.pop(name) for name in ("age", "since", "longest_gap")}
    streams = [held[way].pop("rtp") for way in ("inbound", "outbound")]
    assert [(each["ssrc"], each["expected"]) for each in streams] == [(7, 4), (7, 23)]
    assert 0 <= held["outbound"].pop("age") < 60
    assert held == {
        "address": "203.0.113.10",
        "port": 21000,
        "state": "moh",
        "identified": "rtp",
        "expired": False,
        "public_address": PUBLIC,
        "public_port": 4000,
        "interface": "wan",
        "call_id": None,
        "caller": None,
        "called": None,
        "inbound": {"packets": 4, "bytes": 4 * size},
        "outbound": {"packets": 23, "bytes": 23 * size},
    }
    assert 0 <= times["age"] <= times["since"] < 60
    assert 0 <= times["longest_gap"] <= times["since"]
    assert (talking["state"], talking["public_port"], talking["address"]) == (
        "two", 24600, "203.0.113.20",
    )  # fmt: skip
    assert (talking["inbound"]["packets"], talking["outbound"]["packets"]) == (3, 1)


def test_status_json(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    shown = json.loads(fw.moh("status", "--json").stdout)
    assert shown["attached"] is True
    assert shown["settings"] == {
        "wan": ["wan"], "lan": ["lan"], "ucm": [UCM], "public": [PUBLIC], "port": 4000,
        "rtp_ports": "16384-32767", "provider": [], "timeout": 60.0, "patience": 3.0,
        "rtcp_timeout": 15.0, "max_peers": 65536,
        "quality": True, "flip_hold": False, "signalling": True, "sip_ports": [5060],
        "sip_from": [], "show_numbers": False,
    }  # fmt: skip
    ids = [program.pop("id") for program in shown["programs"]]
    assert len(set(ids)) == 3
    assert shown["programs"] == [
        {"interface": "wan", "hook": "ingress", "role": "learn"},
        {"interface": "wan", "hook": "egress", "role": "enforce"},
        {"interface": "lan", "hook": "ingress", "role": "bypass"},
    ]
    assert list(shown["counters"]) == [*COUNTERS, *RETIRED]
    (wan,) = shown["wans"]
    assert wan.pop("learn_age") < 3600
    assert wan == {"interface": "wan", "failing_open": False, "blind": False, "blind_for": None}


def test_shown_as_text(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    shown = fw.moh("peers").stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:]] == [[PROVIDER, "MOH"], [TALKER, "TWO"]]
    status = fw.moh("status").stdout
    for text in ("learn", "enforce", "bypass", PUBLIC, UCM, "rewritten"):
        assert text in status


def test_watch_in_a_pipe(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "watch",
               "--interval", "200ms"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        assert " moh=1 two=1 " in first
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))
        while " moh=0 two=2 " not in watching.stdout.readline():
            pass
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0


def watching_on(fw: Firewall, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "watch",
            *arguments]  # fmt: skip


def test_watch_on_a_terminal(fw: Firewall) -> None:
    """Drawn on the alternate screen; Ctrl-C gives the terminal back as it was."""
    one_on_hold_and_one_talking(fw)
    with terminal(watching_on(fw, "--interval", "200ms"), 100, 30) as term:
        before = term.modes_before
        term.see(PROVIDER, TALKER, "MOH", "TWO", "1 on hold", HOLD)
        assert ENTER in term.written
        term.process.send_signal(signal.SIGINT)
        assert term.end() == 0
        assert LEAVE in term.written
        assert term.written.rindex(SHOW_CURSOR) > term.written.rindex(PROVIDER)
        assert term.modes() == before
        assert "Traceback" not in term.written


def test_keys_of_watch_on_real_peers(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    with terminal(watching_on(fw, "--interval", "200ms"), 120, 40) as term:
        before = term.modes_before
        assert order(term.see(PROVIDER, TALKER, "IN-JITTER")) == [PROVIDER, TALKER]

        term.type("m")
        term.see(PROVIDER, "only MOH: 1 of 2", without=f"\n{TALKER}")
        term.type("a/203.0.113.16/28")
        term.see("/203.0.113.16/28", TALKER, without=f"\n{PROVIDER}")
        term.type("\r")
        term.see("only 203.0.113.16/28: 1 of 2", without=f"\n{PROVIDER}")
        term.type("\x1b")
        term.see(f"\n{PROVIDER}", f"\n{TALKER}", "by interest")

        term.type("s")
        assert order(term.see("by ENDPOINT, smallest first")) == [PROVIDER, TALKER]
        term.type("r")
        assert order(term.see("by ENDPOINT, largest first")) == [TALKER, PROVIDER]

        term.type("ij\n")
        detail = " ".join(" ".join(term.see("INBOUND", f"{PROVIDER}  on hold")).split())
        assert "packets 4 23" in detail
        assert "public port 4000" in detail
        term.see_that(lambda lines: any("OUT/s" in line and "_" in line for line in lines))
        term.type("\n")
        term.see("ENDPOINT")

        term.resize(60, 14)
        term.see(PROVIDER, TALKER, "OUT/s", without="PUBLIC")
        assert max(map(len, term.view())) <= 60
        term.type("q")
        assert term.end() == 0
        assert term.modes() == before


def order(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.startswith("203.0.113.")]


def test_watch_paused_shows_what_was(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    with terminal(watching_on(fw, "--interval", "100ms"), 100, 30) as term:
        term.see("1 on hold  1 two-way", "q quit")
        term.type("p")
        term.see("PAUSED")
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))
        states = {each["state"] for each in json.loads(fw.moh("peers", "--json").stdout)}
        assert states == {"two"}
        term.type("s")
        term.see("1 on hold  1 two-way", "PAUSED", "by ENDPOINT")
        term.type(" ")
        term.see("0 on hold  2 two-way", without="PAUSED")


def test_watch_stopped_by_ctrl_z_leaves_the_terminal_sane(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    # Without readline, which would change the terminal's modes itself.
    with terminal(["bash", "--norc", "--noediting", "-i"], 100, 30) as term:
        term.type("PS1='$ '; echo ready\n")
        term.read_until("ready\r\n")
        before = term.modes()
        term.type(" ".join(watching_on(fw, "--interval", "200ms")) + "\n")
        term.see(PROVIDER, TALKER, "q quit")
        assert not term.modes()[3] & (termios.ECHO | termios.ICANON)
        term.type("\x1a")
        term.read_until("Stopped")
        assert term.modes() == before
        term.type("fg\n")
        term.read_until(ENTER)
        term.type("m")
        term.see(PROVIDER, "only MOH", without=f"\n{TALKER}")
        term.type("q")
        term.read_until(LEAVE)
        term.type("echo status=$?\n")
        term.read_until("status=0")
        assert term.modes() == before


def test_watch_ended_by_sigterm_leaves_the_terminal_as_it_was(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    with terminal(watching_on(fw), 100, 30) as term:
        before = term.modes_before
        term.see(PROVIDER)
        assert term.modes() != before
        term.process.terminate()
        assert term.end() == -signal.SIGTERM
        assert LEAVE in term.written
        assert term.modes() == before


def test_peers_on_a_terminal(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "peers"]
    with terminal(command, 160, 30) as term:
        assert term.end() == 0
        lines = term.view()
        assert order(lines) == [PROVIDER, TALKER]
        held = " ".join(next(line for line in lines if line.startswith(PROVIDER)).split())
        size = len(udp(PROVIDER, HOLD))
        assert f" 4 {4 * size} B 23 " in held
        assert "kB" in held
        assert "1 on hold  1 two-way" in lines


def test_watch_notices_detach(fw: Firewall) -> None:
    one_on_hold_and_one_talking(fw)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "watch",
               "--interval", "200ms"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert " moh=1 two=1 " in watching.stdout.readline()
        fw.moh("detach")
        assert watching.wait(timeout=30) == 3
        assert "detached" in watching.stderr.read()
