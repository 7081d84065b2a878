"""A whole call by real programs: SIPp as UCM and as provider, Kamailio and us on the firewall.

  SIPp, GStreamer ── lan │ Kamailio, nftables, moh-ebpf │ wan ── SIPp, nftables; tcpdump, tshark

Everything runs in the namespaces of tests/support/hosts.py, and dies with them.
"""

import json
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from moh_ebpf.lab.audio import Sound
from moh_ebpf.lab.call import Phone
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.hosts import Address, Hosts, address, hosts
from tests.support.namespace import Namespace
from tests.support.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[2]
SCENARIOS = ROOT / "tests/telephony"
KAMAILIO_CFG = ROOT / "docs/kamailio.cfg"
PROGRAMS = {"sipp": "sip-tester", "kamailio": "kamailio", "tshark": "tshark"}  # Debian's packages

LAN = "10.10.10.1"
PROVIDER_ADDRESS = address(PROVIDER)[0]
PHANTOM = 4000
UCM_PORTS = range(24576, 32768, 2)
# Where UCM's speech goes while nobody is to hear it: the firewall drops it.
NOWHERE = (LAN, 9)

_POLL_SECONDS = 0.02  # where there is no event to wait for

# A firewall as its owner has grown it: masquerade, and DNAT for two-way RTP.
FIREWALL_RULES = f"""
table ip firewall {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname "lo" accept
        iifname "lan" udp dport 5060 accept
        iifname "wan" ip saddr {PROVIDER_ADDRESS} udp dport 5060 accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct status dnat accept
        iifname "lan" oifname "wan" accept
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        iifname "wan" udp dport 24576-32767 dnat to {UCM}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        oifname "wan" masquerade
    }}
}}
"""

# The kernel reads the proxy's SIP, and expects the RTP that SDPs tell of (nf_conntrack_sip).
HELPER_RULES = """
table ip helper {
    ct helper sip {
        type "sip" protocol udp;
    }
    chain prerouting {
        type filter hook prerouting priority filter;
        udp dport 5060 ct helper set "sip"
    }
    chain output {
        type filter hook output priority filter;
        udp dport 5060 ct helper set "sip"
    }
}
"""

# RTP is heard from where RTP was sent to, and from nowhere else.
PROVIDER_RULES = """
table ip provider {
    counter refused { }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established accept
        iifname "lo" accept
        udp dport 5060 accept
        meta l4proto udp counter name refused
    }
}
"""


def require_programs(packages: Mapping[str, str] = PROGRAMS) -> None:
    """The test fails where one of these programs is not installed; their Debian packages."""
    missing = [package for program, package in packages.items() if not shutil.which(program)]
    if missing:
        pytest.fail(f"this takes {', '.join(packages)}: apt install {' '.join(missing)}")


class Program:
    """A program in a namespace. It and all that it starts die when it is closed, or we do."""

    # A PID namespace, whose processes die with its first; that one, with unshare; that, with us.
    MORTAL = (
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--pid", "--mount-proc", "--fork", "--kill-child"),
    )

    def __init__(
        self, place: Namespace, directory: Path, name: str, *command: str, cwd: Path = ROOT
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", place.name, *self.MORTAL, *command],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it does."""
        until(f"{self.name} says {words}", lambda: words in self.said or self._ended())

    def succeeds(self) -> None:
        """Wait until it ends; with exit status 0, or it is an error."""
        until(f"{self.name} ends", lambda: self._process.poll() is not None)
        assert self._process.returncode == 0, f"{self.name}: {self.said}"

    def _ended(self) -> bool:
        assert self._process.poll() is None, f"{self.name} has ended: {self.said}"
        return False


@dataclass(frozen=True)
class Stream:
    """A line of tshark's analysis of RTP streams."""

    source: Address
    to: Address
    ssrc: str
    packets: int
    lost: int


class Capture:
    """All IPv4 of an interface, to a file for tshark; UDP can be looked at while it is caught.

    tcpdump may be late: who looks for what is not there, or comes to the end, lets it catch up.
    """

    def __init__(
        self, place: Namespace, directory: Path, name: str, interface: str = "eth0"
    ) -> None:
        self.file = directory / f"{name}.pcap"
        self._place, self._interface = place, interface
        # Room for 2,000 packets that tcpdump is late for: if they might be longer, it has 32.
        size = ("--snapshot-length=4096", "--buffer-size=8192")
        options = ["-n", "-U", "--immediate-mode", *size, "-Z", "root", "-w", str(self.file)]
        self._tcpdump = Program(
            place, directory, f"tcpdump-{name}", "tcpdump", "-i", interface, *options, "ip"
        )
        self._offset = 24  # a pcap file's header
        self._flows: list[tuple[Address, Address]] = []
        try:
            self._tcpdump.says("listening on")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._tcpdump.close()

    def catch_up(self) -> None:
        """Wait until all that has passed the interface by now is in the file: a packet of ours,
        which nobody takes, is the last of it."""
        source = ("192.0.2.254", random.randrange(1024, 65536))
        mark = IP(src=source[0], dst="192.0.2.255") / UDP(sport=source[1], dport=9) / b"mark"
        with self._place.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as end:
            end.bind((self._interface, 0))
            end.send(bytes(Ether(src="02:00:00:00:00:fe", dst="02:00:00:00:00:ff") / mark))
        until("tcpdump catches up", lambda: source in (each for each, _ in self.flows()))

    def flows(self) -> list[tuple[Address, Address]]:
        """Source and destination of each UDP packet so far."""
        with self.file.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        while len(new) >= 16 and len(new) >= 16 + (size := int.from_bytes(new[8:12], "little")):
            packet, new = new[16 + 14 : 16 + size], new[16 + size :]  # 14: Ethernet's header
            self._offset += 16 + size
            if packet[9] == socket.IPPROTO_UDP:
                sport, dport = struct.unpack_from("!HH", packet, 20)
                source, to = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
                self._flows.append(((source, sport), (to, dport)))
        return self._flows

    def count(self, source: Address, to: Address) -> int:
        return self.flows().count((source, to))

    def tshark(self, *options: str) -> str:
        done = subprocess.run(
            ["tshark", "-n", "-r", str(self.file), *options],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def streams(self, port: int) -> list[Stream]:
        """The RTP streams from and to a port, in order of time, as tshark sees them."""
        said = self.tshark("-q", "-z", "rtp,streams", "-d", f"udp.port=={port},rtp")
        # Start, end, from, port, to, port, SSRC, codec, packets, lost, …; in no order to rely on.
        rows = [line.split() for line in said.splitlines() if " g711U " in line]
        return [
            Stream((row[2], int(row[3])), (row[4], int(row[5])), row[6], int(row[8]), int(row[9]))
            for row in sorted(rows, key=lambda row: float(row[0]))
        ]


class Sipp(Program):
    """SIPp, playing a scenario. Where that waits for an INFO, `press` lets it go on."""

    CALL_ID = "call"

    def __init__(
        self,
        place: Namespace,
        at: str,
        directory: Path,
        name: str,
        *more: str,
        scenarios: Path = SCENARIOS,
        tcp: bool = False,
    ) -> None:
        scenario = str(scenarios / f"{name}.xml")
        options = ["-sf", scenario, "-i", at, "-mi", at, "-p", "5060", "-m", "1", "-nostdin"]
        traces = ["-trace_err", "-error_file", f"{name}-errors.log"]
        transport = ("-t", "t1" if tcp else "u1")
        command = ("sipp", *options, *transport, *traces, *more)
        # Its files, and the one that it plays, are where it runs.
        super().__init__(place, directory, f"sipp-{name}", *command, cwd=directory)
        self._place, self._at, self._presses = place, at, 0
        self._kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM

    def listens(self) -> None:
        """Wait until it does."""
        sockets = ("ss", "-Hlun", "src", f"{self._at}:5060")
        until(f"{self.name} listens", lambda: self._place.run(*sockets).stdout)

    def press(self) -> None:
        """A finger on a key of its phone."""
        self._presses += 1
        name = "UDP" if self._kind == socket.SOCK_DGRAM else "TCP"
        with self._place.entered(), socket.socket(socket.AF_INET, self._kind) as finger:
            finger.bind((self._at, 0))
            finger.connect((self._at, 5060))
            port = finger.getsockname()[1]
            headers = (
                f"INFO sip:phone@{self._at} SIP/2.0",
                f"Via: SIP/2.0/{name} {self._at}:{port};branch=z9hG4bK-{self._presses}",
                f"From: <sip:finger@{self._at}>;tag=finger",
                f"To: <sip:phone@{self._at}>",
                f"Call-ID: {self.CALL_ID}",
                f"CSeq: {self._presses} INFO",
                "Content-Length: 0",
            )
            finger.sendall("\r\n".join((*headers, "", "")).encode())


class Steps:
    """What UCM's scenario writes when it has taken a step."""

    def __init__(self, directory: Path) -> None:
        self.fifo = directory / "steps"
        os.mkfifo(self.fifo)
        self._file = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        self._unread = ""

    def close(self) -> None:
        os.close(self._file)

    def next(self) -> list[str]:
        while "\n" not in self._unread:
            ready, _, _ = select.select([self._file], [], [], PATIENCE_SECONDS)
            assert ready, "UCM's scenario has come to no further step"
            self._unread += os.read(self._file, 4096).decode()
        line, _, self._unread = self._unread.partition("\n")
        return line.split()


def start_kamailio(
    place: Namespace, directory: Path, config: Path, name: str = "kamailio", **more: str
) -> Program:
    addresses = {"LAN": LAN, "PUBLIC": PUBLIC, "UCM": UCM, "PROVIDER": PROVIDER_ADDRESS}
    defines = [
        word for key, value in (addresses | more).items() for word in ("-A", f"{key}={value}")
    ]
    return Program(
        *(place, directory, name),
        *("kamailio", "-f", str(config), "-DD", "-E", "-Y", str(directory), *defines),
    )


def answers_options(hosts: Hosts) -> bool:
    """The proxy's answer to UCM's keepalive: 200."""
    with hosts.ucm.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ucm:
        ucm.bind((UCM, 5060))
        ucm.settimeout(_POLL_SECONDS * 5)
        headers = (
            f"OPTIONS sip:{LAN} SIP/2.0",
            f"Via: SIP/2.0/UDP {UCM}:5060;branch=z9hG4bK-options",
            f"From: <sip:{UCM}>;tag=ucm",
            f"To: <sip:{LAN}>",
            "Call-ID: keepalive",
            "CSeq: 1 OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
        )
        try:
            ucm.sendto("\r\n".join((*headers, "", "")).encode(), (LAN, 5060))
            return ucm.recv(65535).startswith(b"SIP/2.0 200 ")
        except (TimeoutError, ConnectionRefusedError):
            return False


class Conversation:
    """What is common to the calls from UCM to the provider, step by step; afterwards, what the
    captures show of them.

    UCM's devices listen before an SDP names their port. They speak when the provider has turned to
    them, and are silent again before it is told to turn: of UCM's packets in between, who is
    overtaken by whom is another subject.
    """

    HEARD = 40  # packets each way, before the call goes on

    rtp: Address
    _ucm: Sipp
    _speech: tuple[int, Sound]

    def __init__(self, hosts: Hosts, directory: Path, stack: ExitStack) -> None:
        self.hosts = hosts
        ports = random.sample(UCM_PORTS, 5)
        self.agent, self.music, self.agent_again, self.music_again, self._fifth = ports
        self.at_ucm = stack.enter_context(closing(Capture(hosts.ucm, directory, "ucm")))
        self.at_provider = stack.enter_context(
            closing(Capture(hosts.provider, directory, "provider"))
        )
        self._media = self._start_media(directory, stack)
        self._steps = stack.enter_context(closing(Steps(directory)))

    def _start_media(self, directory: Path, stack: ExitStack) -> Phone:
        control = directory / "media.sock"
        command = (sys.executable, "-m", "moh_ebpf.lab.endpoint", UCM, str(control))
        started = Program(self.hosts.ucm, directory, "media", *command)
        stack.enter_context(closing(started))
        started.says("ready")
        return Phone(control)

    def _step(self, name: str, direction: str) -> Address:
        """Wait for UCM to take a step. Returns where the provider wants its RTP."""
        step, port, answered = self._steps.next()
        assert (step, answered) == (name, direction), f"UCM: {step}, and sees {answered}"
        return PROVIDER_ADDRESS, int(port)

    def hold(self, answer: str = "recvonly") -> None:
        self._ucm.press()
        self._step("held", answer)

    def play(self, port: int) -> None:
        """Hold music, once the provider has turned to the phantom port."""
        self._turned(PHANTOM)
        self._play_until_heard(port)
        self._hush()

    def _play_until_heard(self, port: int) -> None:
        self._speak(port, Sound.MUSIC)
        before = self.at_provider.count((PUBLIC, PHANTOM), self.rtp)
        until(
            "hold music is heard",
            lambda: self.at_provider.count((PUBLIC, PHANTOM), self.rtp) >= before + self.HEARD,
        )

    def sends(self, port: int) -> None:
        """Wait until UCM has sent more from this port, to the provider's RTP endpoint."""
        wanted = self.at_ucm.count((UCM, port), self.rtp) + self.HEARD
        until("UCM speaks", lambda: self.at_ucm.count((UCM, port), self.rtp) >= wanted)

    def _catch_up(self) -> None:
        for capture in (self.at_ucm, self.at_provider):
            capture.catch_up()

    def refused(self) -> int:
        """UDP packets that the provider's firewall has dropped."""
        said = self.hosts.provider.run("nft", "list", "counter", "ip", "provider", "refused").stdout
        return int(re.findall(r"packets (\d+)", said)[0])

    def has_sip_helper(self) -> bool:
        tables = self.hosts.firewall.run("nft", "list", "tables").stdout
        return "table ip helper" in tables

    def expected(self) -> str:
        """The connections that the firewall's SIP helper has read of in SDPs."""
        return self.hosts.firewall.run("conntrack", "-L", "expect").stdout

    def peers(self) -> list[dict[str, object]]:
        return json.loads(self.hosts.firewall.moh("peers", "--json").stdout)

    def counters(self) -> dict[str, int]:
        return json.loads(self.hosts.firewall.moh("status", "--json").stdout)["counters"]

    def _speak(self, port: int, sound: Sound) -> None:
        self._speech = (port, sound)
        self._media.play(port, sound, self.rtp)

    def _hush(self) -> None:
        self._media.play(*self._speech, NOWHERE)

    def _turned(self, port: int) -> None:
        """Wait until the provider sends to this port of UCM's SDP."""
        before = self.at_provider.count(self.rtp, (PUBLIC, port))
        until(
            f"the provider turns to {port}",
            lambda: self.at_provider.count(self.rtp, (PUBLIC, port)) > before,
        )

    def _heard_both_ways(self, port: int) -> None:
        until(
            f"both hear each other, port {port}",
            lambda: (
                self.at_provider.count((PUBLIC, port), self.rtp) >= self.HEARD
                and self.at_ucm.count(self.rtp, (UCM, port)) >= self.HEARD
            ),
        )


class Call(Conversation):
    """Through the proxy, with a transfer."""

    def __init__(self, hosts: Hosts, directory: Path, stack: ExitStack) -> None:
        super().__init__(hosts, directory, stack)
        self.voicemail = self._fifth
        self.expected_on_hold = ""
        self._provider = self._start_provider(directory, stack)
        self._ucm = self._start_ucm(directory, stack)
        self.rtp = self._step("ringing", "sendrecv")

    def _start_provider(self, directory: Path, stack: ExitStack) -> Sipp:
        (directory / "caller.pcmu").write_bytes(bytes(range(160)) * 50)  # a second of a sound
        media = ("-mp", "21000")
        started = Sipp(self.hosts.provider, PROVIDER_ADDRESS, directory, "provider", *media)
        stack.enter_context(closing(started))
        started.listens()
        return started

    def _start_ucm(self, directory: Path, stack: ExitStack) -> Sipp:
        keys = {
            "agent": self.agent,
            "agent_again": self.agent_again,
            "voicemail": self.voicemail,
            "steps": self._steps.fifo,
        }
        words = [str(word) for name, value in keys.items() for word in ("-key", name, value)]
        call = ("-cid_str", Sipp.CALL_ID, "-s", "5551234", f"{LAN}:5060")
        started = Sipp(self.hosts.ucm, UCM, directory, "ucm", *words, *call)
        stack.enter_context(closing(started))
        return started

    def whole(self) -> None:
        """Talk, hold, resume, hold, transfer, hang up."""
        self.talk()
        self.hold()
        self.play(self.music)
        self.expected_on_hold = self.expected()
        self.resume()
        self.hold_again()
        self.play(self.music_again)
        self.transfer()
        self.hang_up()

    def talk(self) -> None:
        """The phone is lifted, and both speak."""
        self.answer()
        self._heard_both_ways(self.agent)
        self._hush()

    def answer(self) -> None:
        """The agent speaks while it rings; then the phone is lifted."""
        self._speak(self.agent, Sound.AGENT)
        until("UCM speaks", lambda: self.at_ucm.count((UCM, self.agent), self.rtp) >= 10)
        self._provider.press()
        self._step("talking", "sendrecv")

    def play_unheard(self, port: int) -> None:
        """Hold music that is not to be heard: whatever becomes of it."""
        self._speak(port, Sound.MUSIC)
        self.sends(port)

    def resume(self) -> None:
        self._speech = (self.agent_again, Sound.AGENT)
        self._converse("resumed")

    def hold_again(self) -> None:
        self._ucm.press()
        self._step("held", "sendrecv")  # the provider's offer: UCM's answer is in its ACK

    def transfer(self) -> None:
        self._speech = (self.voicemail, Sound.GREETING)
        self._converse("transferred")

    def hang_up(self) -> None:
        self._ucm.press()
        self._ucm.succeeds()
        self._provider.succeeds()
        self._catch_up()

    def _converse(self, step: str) -> None:
        port, _ = self._speech
        self._hush()  # it listens from now on
        self._ucm.press()
        self._step(step, "sendrecv")
        self._turned(port)
        self._speak(*self._speech)
        self._heard_both_ways(port)
        self._hush()


@contextmanager
def network(
    directory: Path,
    *options: str,
    attached: bool = True,
    rules: str = FIREWALL_RULES,
    config: Path = KAMAILIO_CFG,
) -> Iterator[Hosts]:
    """The hosts, both firewalls' rules, and the proxy. The options are for attach."""
    with hosts(masquerade=False) as made:
        made.firewall.nft(rules)
        made.firewall.run("nft", "-f", "-", input=HELPER_RULES, check=False)  # not in each kernel
        made.provider.nft(PROVIDER_RULES)
        if attached:
            made.attach("--lan", "lan", "--ucm", UCM, *options)
        with closing(start_kamailio(made.firewall, directory, config)) as proxy:
            try:
                until("Kamailio answers", lambda: answers_options(made))
            except AssertionError as error:
                raise AssertionError(f"{error}: {proxy.said}") from None
            yield made


@contextmanager
def call(directory: Path, *options: str, **network_options: Any) -> Iterator[Call]:
    """A call that rings, in such a network."""
    with network(directory, *options, **network_options) as made, ExitStack() as stack:
        yield Call(made, directory, stack)
