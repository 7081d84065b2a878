"""status, peers and watch on real packets: the fields that scripts rely on, the view people see."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

from moh_ebpf import layout
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
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
    assert [(each["ssrc"], each["expected"]) for each in streams] == [(7, 1)] * 2
    assert 0 <= held["outbound"].pop("age") < 60
    assert held == {
        "address": "203.0.113.10",
        "port": 21000,
        "state": "moh",
        "expired": False,
        "public_address": PUBLIC,
        "public_port": 4000,
        "interface": "wan",
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
        "rtp_ports": "16384-32767", "provider": [], "timeout": 60.0, "max_peers": 65536,
        "quality": True,
    }  # fmt: skip
    ids = [program.pop("id") for program in shown["programs"]]
    assert len(set(ids)) == 3
    assert shown["programs"] == [
        {"interface": "wan", "hook": "ingress", "role": "learn"},
        {"interface": "wan", "hook": "egress", "role": "enforce"},
        {"interface": "lan", "hook": "ingress", "role": "bypass"},
    ]
    assert list(shown["counters"]) == list(layout.COUNTERS)


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


def test_watch_on_a_terminal(fw: Firewall) -> None:
    """Drawn on the alternate screen; Ctrl-C gives the terminal back as it was."""
    one_on_hold_and_one_talking(fw)
    terminal, end = pty.openpty()
    os.set_blocking(terminal, False)
    command = ["ip", "netns", "exec", fw.namespace.name, sys.executable, "-m", "moh_ebpf", "watch",
               "--interval", "200ms"]  # fmt: skip
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as watching:
        os.close(end)
        seen = read_until(terminal, [PROVIDER, TALKER, "MOH", "TWO", "1 on hold", HOLD])
        assert "\x1b[?1049h" in seen
        watching.send_signal(signal.SIGINT)
        left = read_until(terminal, ["\x1b[?1049l", "\x1b[?25h"])
        assert watching.wait(timeout=30) == 0
        assert "Traceback" not in seen + left
    os.close(terminal)


def read_until(terminal: int, wanted: list[str]) -> str:
    text, deadline = "", time.monotonic() + 30
    while not all(each in text for each in wanted):
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"not all of {wanted} came: {text!r}"
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


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
