"""The lab from outside: its verbs as a user gives them, and what it leaves behind: nothing."""

import json
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MOH_EBPF = [sys.executable, "-m", "moh_ebpf"]


def moh_ebpf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MOH_EBPF, *arguments], capture_output=True, text=True, timeout=60)


def succeed(*arguments: str) -> str:
    done = moh_ebpf(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def traces(name: str) -> list[str]:
    """What there is of a lab: namespaces, directory, processes."""
    places = [*Path("/run").glob(f"netns/moh-{name}-*"), *Path("/run").glob(f"moh-lab-{name}")]
    return [*map(str, places), *map(str, processes(name))]


def processes(name: str) -> list[int]:
    """The lab's endpoints: they have its name in their command line."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"/moh-lab-{name}/".encode() in cmdline.read_bytes():
                found.append(int(cmdline.parent.name))
        except OSError:  # it ended while we looked
            continue
    return found


@pytest.fixture
def lab() -> Iterator[str]:
    """A standing lab's name."""
    name = f"t{secrets.token_hex(3)}"
    succeed("lab", "up", "--name", name)
    yield name
    if traces(name):
        succeed("lab", "down", "--name", name)


def test_the_story_is_as_told() -> None:
    acts = json.loads(succeed("lab", "demo", "--json"))
    assert [act["act"] for act in acts] == list("abcdef")
    assert all(act["passed"] for act in acts)
    heard = [[finding["found"] for finding in act["findings"]] for act in acts]
    assert heard == [
        ["agent", "caller", "dead air"],
        ["hold music"],
        ["agent", "caller"],
        ["hold music"],
        ["greeting", "caller"],
        ["as before", "dead air"],
    ]


@pytest.mark.parametrize(
    ("numbers", "moment"),
    [
        ([signal.SIGINT, signal.SIGINT], r"^\(a\)"),
        ([signal.SIGINT, signal.SIGTERM], r"^\(b\)"),
        ([signal.SIGTERM], r"^Lab"),
        ([signal.SIGHUP], r"^Lab"),
    ],
    ids=["twice Ctrl-C while it attaches", "while attached", "SIGTERM", "SIGHUP"],
)
def test_a_signal_leaves_nothing_behind(numbers: list[signal.Signals], moment: str) -> None:
    with subprocess.Popen([*MOH_EBPF, "lab", "demo"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        name = ""
        for line in demo.stdout:
            name = name or re.findall(r"^Lab (\w+)", line)[0]
            if re.search(moment, line):
                break
        assert traces(name)
        for number in numbers:
            demo.send_signal(number)
            time.sleep(0.05)
        demo.stdout.read()
    assert demo.returncode == 130
    assert traces(name) == []


def test_a_broken_pipe_leaves_nothing_behind() -> None:
    with subprocess.Popen([*MOH_EBPF, "lab", "demo"], stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        name = re.findall(r"^Lab (\w+)", demo.stdout.readline())[0]
        demo.stdout.close()
    assert demo.returncode != 0
    assert traces(name) == []


def test_the_standing_lab_tells_what_the_caller_hears(lab: str) -> None:
    named = ("--name", lab)
    assert "caller hears: dead air" in succeed("lab", "hold", *named)
    attach = "moh_ebpf attach --wan wan --lan lan --ucm 10.10.10.10"
    succeed("lab", "exec", *named, "firewall", sys.executable, "-m", *attach.split())
    assert "caller hears: hold music" in succeed("lab", "hold", *named)
    assert "caller hears: agent. At UCM's end one hears: caller." in succeed(
        "lab", "resume", *named
    )
    assert "caller hears: greeting. At UCM's end one hears: caller." in succeed(
        "lab", "voicemail", *named
    )
    succeed("lab", "down", *named)
    assert traces(lab) == []
    assert succeed("lab", "down", *named) == f"there is no lab {lab}\n"


def test_an_endpoint_outlives_who_hangs_up_on_it(lab: str) -> None:
    for role in ("ucm", "provider"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(f"/run/moh-lab-{lab}/{role}.sock")
    assert "At UCM's end one hears: caller." in succeed("lab", "resume", "--name", lab)


def test_exec_passes_options_output_and_exit_status(lab: str) -> None:
    script = "cat /sys/class/net/wan/ifindex; exit 7"
    done = moh_ebpf("lab", "exec", "--name", lab, "firewall", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (7, "3\n"), done.stderr


def test_nothing_of_the_lab_is_seen_outside(lab: str) -> None:
    links = subprocess.check_output(["ip", "-brief", "link"], text=True)
    assert not re.search(r"^(lan|wan)\b", links, re.MULTILINE)


def test_up_refuses_a_name_that_is_taken(lab: str) -> None:
    before = traces(lab)
    done = moh_ebpf("lab", "up", "--name", lab)
    assert done.returncode == 1
    assert f"lab {lab} exists already" in done.stderr
    assert traces(lab) == before


@pytest.mark.parametrize("verb", ["hold", "resume", "voicemail"])
def test_a_lab_that_is_not_there_is_said_to_be_missing(verb: str) -> None:
    done = moh_ebpf("lab", verb, "--name", "nowhere")
    assert done.returncode == 1
    assert "there is no lab nowhere" in done.stderr


@pytest.mark.parametrize("name", ["../etc", "UPPER", "", "a" * 33])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    done = moh_ebpf("lab", "up", "--name", name)
    assert done.returncode == 2
    assert "lab name" in done.stderr
