"""`discover` on firewalls with real packets: what it proposes is what the test knows, and attaches;
it changes nothing itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.packet import Packet

from tests.support.direct import DirectCall, direct_call, whole_call
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall, firewall
from tests.support.namespace import Namespace
from tests.support.sip import PROVIDER_SIP, Dialog, description
from tests.support.telephony import require_programs
from tests.support.waiting import until
from tests.support.wire import Wire, rtp, udp

_PACKETS = 12


class Discovering:
    """`moh-ebpf discover --json`, from when it hears until it is interrupted."""

    def __init__(self, place: Namespace) -> None:
        command = [sys.executable, "-m", "moh_ebpf", "discover", "--json", "--for", "10m"]
        with place.entered():
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        assert self._process.stderr
        first = self._process.stderr.readline()
        assert "listening for 10m" in first, first + self._process.stderr.read()

    def ended(self) -> subprocess.CompletedProcess[str]:
        self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=60)
        return subprocess.CompletedProcess([], self._process.returncode, out, err)

    def found(self) -> dict[str, Any]:
        done = self.ended()
        assert done.returncode == 0, done.stderr
        shown: dict[str, Any] = json.loads(done.stdout)
        return shown

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def discovering(place: Namespace) -> Iterator[Discovering]:
    started = Discovering(place)
    try:
        yield started
    finally:
        started.close()


def stream(
    wire: Wire, source: str, destination: str, count: int = _PACKETS, first: int = 1
) -> None:
    """RTP in sequence."""
    for number in range(first, first + count):
        wire.send(udp(source, destination, rtp(number)))


def call(fw: Firewall, ucm: str = f"{UCM}:20000", provider: str = PROVIDER) -> None:
    """Both sides speak."""
    stream(fw.wan, provider, f"{PUBLIC}:20000")
    stream(fw.lan, ucm, provider)


def hold(fw: Firewall, ucm: str = f"{UCM}:25000", provider: str = PROVIDER) -> None:
    """The provider sends on, and UCM's music meets it."""
    stream(fw.wan, provider, f"{PUBLIC}:4000", 6)
    stream(fw.lan, ucm, provider)
    stream(fw.wan, provider, f"{PUBLIC}:4000", 6, 7)


def test_a_call_and_its_hold() -> None:
    """Nothing is changed by looking."""
    with firewall() as fw:
        before = fw.namespace.tc_state("lan", "wan")
        with discovering(fw.namespace) as heard:
            call(fw)
            hold(fw)
            found = heard.found()
        assert found["settings"] == {"wan": ["wan"], "lan": ["lan"], "ucm": [UCM]}
        assert (
            found["habits"] | {"holds": 1, "send_on_hold": 1, "silent_on_hold": 0}
            == (found["habits"])
        )
        assert fw.namespace.tc_state("lan", "wan") == before


def test_it_is_piped_into_attach(tmp_path: Path) -> None:
    """What it says can be attached as it is."""
    with firewall() as fw:
        moh = f"{sys.executable} -m moh_ebpf"
        said = tmp_path / "said"
        said.touch()
        script = f"{moh} discover --for 4s 2>{said} | {moh} attach --config /dev/stdin --dry-run"
        with fw.namespace.entered():
            piped = subprocess.Popen(
                ["sh", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        with piped:
            until("it listens", lambda: "listening" in said.read_text())
            while piped.poll() is None:
                hold(fw)
                time.sleep(0.1)
            out, _ = piped.communicate()
        assert piped.returncode == 0
        assert out.splitlines()[:3] == [
            "would attach learn on wan ingress",
            "would attach enforce on wan egress",
            "would attach bypass on lan ingress",
        ]
        assert fw.moh("status", check=False).returncode == 3


def play_for_long(call: DirectCall, port: int) -> None:
    """So that a silence is told from a turn."""
    call.play_by_signalling(port)
    time.sleep(4.5)


def test_a_silent_provider_and_its_sip(tmp_path: Path) -> None:
    """UCM and a real phone: SIPp and baresip, which is silent at sendonly, as RFC 3264 has it."""
    require_programs()
    with direct_call(tmp_path, scenario=whole_call(), config='wan = ["wan"]\nlan = ["lan"]\n'
                     f'ucm = ["{UCM}"]\nrtcp_timeout = "0s"\n') as ended:  # fmt: skip
        ended.hosts.provider.nft("insert rule ip provider input udp sport 4000 accept")
        with discovering(ended.hosts.firewall) as heard:
            ended.whole(play_for_long)
            found = heard.found()
    assert found["settings"] == {
        "wan": ["wan"],
        "lan": ["lan"],
        "ucm": [UCM],
        "flip_hold": True,
    }
    (ucm,) = (each for each in found["evidence"] if each["setting"] == "ucm")
    assert "2 streams of music" in ucm["because"][0]
    assert found["habits"]["silent_on_hold"] == found["habits"]["holds"] == 2


def message(fw: Firewall, text: bytes, *, by_ucm: bool, port: int) -> None:
    if by_ucm:
        fw.lan.send(udp(f"{UCM}:{port}", f"{PROVIDER_SIP}:{port}", text))
    else:
        fw.wan.send(udp(f"{PROVIDER_SIP}:{port}", f"{PUBLIC}:{port}", text))


def test_another_port_of_sip() -> None:
    """Found by its text; UCM's address is that of its hold, which another node of it sends from."""
    with firewall() as fw, discovering(fw.namespace) as heard:
        dialog, music = Dialog(), "10.10.10.44:4000"
        for _ in range(2):  # by the first it is found where SIP is
            message(fw, dialog.ask("INVITE", description(f"{UCM}:20000")), by_ucm=True, port=6070)
            time.sleep(2.0)
        message(fw, dialog.answer(description(PROVIDER)), by_ucm=False, port=6070)
        message(fw, dialog.ask("ACK"), by_ucm=True, port=6070)
        call(fw)
        text = description(music, "sendonly", "a=X-cisco-media:umoh")
        message(fw, dialog.ask("INVITE", text), by_ucm=True, port=6070)
        message(fw, dialog.answer(description(PROVIDER)), by_ucm=False, port=6070)
        message(fw, dialog.ask("ACK"), by_ucm=True, port=6070)
        found = heard.found()
    assert found["settings"] | {"sip_ports": [6070], "ucm": ["10.10.10.44"]} == found["settings"]
    (ucm,) = (each for each in found["evidence"] if each["setting"] == "ucm")
    assert "marked X-cisco-media" in ucm["because"][0]
    assert UCM in ucm["because"][-1]


def test_a_trunk_of_private_addresses() -> None:
    with firewall() as fw, discovering(fw.namespace) as heard:
        private = "172.20.0.9:21000"
        call(fw, provider=private)
        hold(fw, provider=private)
        found = heard.found()
    assert found["settings"]["provider"] == ["172.20.0.9/32"]


def test_ports_of_a_gateway() -> None:
    with firewall() as fw, discovering(fw.namespace) as heard:
        hold(fw, ucm=f"{UCM}:9000")
        found = heard.found()
    assert found["settings"]["rtp_ports"] == "8000-48200"


def on_the_firewall(fw: Firewall) -> None:
    """RTP of the machine's own, by a socket."""
    with fw.namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind((PUBLIC, 24600))
        address, port = PROVIDER.split(":")
        for number in range(1, _PACKETS):
            own.sendto(rtp(number), (address, int(port)))


def test_ucm_on_the_firewall_itself() -> None:
    with firewall() as fw, discovering(fw.namespace) as heard:
        stream(fw.wan, PROVIDER, f"{PUBLIC}:4000")
        on_the_firewall(fw)
        found = heard.found()
    assert found["settings"] == {"wan": ["wan"], "ucm": [PUBLIC]}


@pytest.mark.parametrize("noise", [False, True])
def test_a_firewall_without_calls(noise: bool) -> None:
    """Nothing, or what only looks like RTP: DNS answers, and packets that are in no sequence."""
    with firewall() as fw, discovering(fw.namespace) as heard:
        packets: list[Packet] = [
            udp("203.0.113.53:53", f"{PUBLIC}:40000", b"\x80\x08" + bytes(40)),
            *(udp(PROVIDER, f"{PUBLIC}:20000", rtp(number)) for number in (9, 700, 44, 9000)),
        ]
        for each in packets if noise else ():
            fw.wan.send(each)
        done = heard.ended()
    assert done.returncode == 1
    assert "wan and ucm: no call with the provider: make one while it listens" in done.stderr
    assert json.loads(done.stdout)["settings"] == {}


def test_an_interface_that_vanishes_meanwhile() -> None:
    with firewall() as fw, discovering(fw.namespace) as heard:
        fw.namespace.run("ip", "link", "add", "gone0", "type", "bridge")
        call(fw)
        time.sleep(4.0)  # it looks each second
        fw.namespace.run("ip", "link", "del", "gone0")
        fw.namespace.run("ip", "link", "del", "lan")
        found = heard.found()
    assert (found["settings"]["wan"], found["settings"]["lan"]) == (["wan"], ["lan"])


@pytest.mark.parametrize("duration", ["0s", "61m", "-1s", "soon"])
def test_a_time_that_is_none(duration: str) -> None:
    with firewall() as fw:
        done = fw.moh("discover", f"--for={duration}", check=False)
    assert done.returncode == 2
    assert "--for" in done.stderr
    assert "Traceback" not in done.stderr
