"""A whole call without a SIP proxy: SIPp as UCM, baresip as the provider's side, us between them.

  SIPp, GStreamer ── lan │ nftables, moh-ebpf │ wan ── baresip, nftables; tcpdump, tshark

UCM's SIP goes through the firewall's masquerade to baresip, a user agent that knows nothing of the
test: what it answers to a hold, and where it sends RTP, is its own decision.
"""

import array
import math
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from moh_ebpf.lab.audio import SAMPLE_RATE, Sound, measure
from tests.support.firewall import GATEWAY, PUBLIC, UCM
from tests.support.hosts import Hosts, add_sip_helper, hosts
from tests.support.namespace import Namespace
from tests.support.service import service
from tests.support.telephony import (
    FIREWALL_RULES,
    HELPER_RULES,
    PHANTOM,
    PROVIDER_ADDRESS,
    PROVIDER_RULES,
    Capture,
    Conversation,
    Program,
    Sipp,
)
from tests.support.waiting import until

PROGRAMS = {"sipp": "sip-tester", "baresip": "baresip-core", "tshark": "tshark"}
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_SECONDS = 120  # of what the caller says; a call is over long before

ANY_SIP = "meta l4proto { tcp, udp } th dport 5060"
# UCM is reached as it is behind static NAT: its SIP and its RTP.
RULES = FIREWALL_RULES.replace(
    f"dnat to {UCM}",
    f'dnat to {UCM}\n        iifname "wan" ip saddr {PROVIDER_ADDRESS} {ANY_SIP} dnat to {UCM}',
)

# The SIP helper for UDP and for TCP.
_HELPERS = HELPER_RULES + HELPER_RULES.replace("udp", "tcp").replace("ip helper", "ip helper_tcp")

_BARESIP = """
poll_method epoll
sip_listen {address}:5060
rtp_ports 21000-21099
audio_source aufile,{directory}/caller.wav
audio_player aubridge,nowhere
audio_alert aubridge,nowhere
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
snd_path {directory}
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module_tmp account.so
module_app menu.so
"""


# UCM's scenario

_REQUEST = """
{method} {uri} SIP/2.0
Via: SIP/2.0/[transport] [address]:5060;branch=[branch]
Max-Forwards: 70
From: <sip:2000@[address]>;tag=ucm
To: <sip:[service]@[remote_ip]>{tag}
Call-ID: [call_id]
CSeq: {number} {sequence}
Contact: <sip:2000@[address]:5060;transport=[transport]>
"""
_BODY = """Content-Type: application/sdp
Content-Length: [len]

v=0
o=CiscoSystemsCCM-SIP 2000 {number} IN IP4 [address]
s=SIP Call
c=IN IP4 [address]
t=0 0
m=audio {port} RTP/AVP 0
{more}a=rtpmap:0 PCMU/8000
a=ptime:20
a={direction}
"""
_RECEIVED = """
<recv response="100" optional="true" />
<recv response="180" optional="true" />
<recv response="200" rrs="true">
  <action>
    <ereg regexp="m=audio ([0-9]+) " search_in="body" check_it="true" assign_to="line,port" />
    <ereg regexp="a=(sendrecv|recvonly|inactive)" search_in="body" assign_to="line,direction" />
  </action>
</recv>
"""
_STEP = """
<nop><action><exec command="echo {step} [$port] [$direction] > [steps]" /></action></nop>
<recv request="INFO" />
"""


class Scenario:
    """UCM's side of a call. Each step tells of itself, and waits for a key to be pressed."""

    def __init__(self, *, tcp: bool = False) -> None:
        self.tcp = tcp
        self._parts: list[str] = []
        self._number = 0

    def exchange(self, step: str, port: str, direction: str, *, delayed: bool = False) -> None:
        """An INVITE with UCM's SDP; `delayed`: the SDP is in the ACK, the provider makes the offer.

        `port` is the phantom's number, or the name of one of SIPp's keys.
        """
        self._number += 1
        body = _BODY.format(
            number=self._number,
            port=port,
            direction=direction,
            more="a=X-cisco-media:umoh\n" if port == str(PHANTOM) else "",
        )
        nothing = "Content-Length: 0\n"
        self._send("INVITE", nothing if delayed else body)
        self._parts.append(_RECEIVED)
        self._send("ACK", body if delayed else nothing)
        self._parts.append(_STEP.format(step=step))

    def hang_up(self) -> None:
        self._number += 1
        self._send("BYE", "Content-Length: 0\n")
        self._parts.append('<recv response="200" />\n<Reference variables="line" />')

    def _send(self, method: str, rest: str) -> None:
        first = self._number == 1 and method == "INVITE"
        head = _REQUEST.format(
            method=method,
            sequence="INVITE" if method == "ACK" else method,
            uri="sip:[service]@[remote_ip]:[remote_port]" if first else "[next_url]",
            tag="" if first else "[peer_tag_param]",
            number=self._number,
        )
        retrans = "" if method == "ACK" else ' retrans="500"'
        self._parts.append(f"<send{retrans}><![CDATA[\n{head}{rest}\n]]></send>")

    def write(self, file: Path) -> None:
        head = '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<scenario name="ucm">'
        file.write_text("\n".join([head, *self._parts, "</scenario>\n"]))


def whole_call(*, tcp: bool = False) -> Scenario:
    """Hold and resume by UCM's offers, and once more by the provider's."""
    made = Scenario(tcp=tcp)
    made.exchange("talking", "[agent]", "sendrecv")
    made.exchange("held", str(PHANTOM), "sendonly")
    made.exchange("resumed", "[agent_again]", "sendrecv")
    made.exchange("held", str(PHANTOM), "sendonly", delayed=True)
    made.exchange("resumed", "[agent_at_last]", "sendrecv", delayed=True)
    made.hang_up()
    return made


def call_by_steps() -> Scenario:
    """As UCM does it by default: each change stops the media first, then asks for an offer."""
    made = Scenario()
    made.exchange("talking", "[agent]", "sendrecv")
    made.exchange("stopped", "[agent]", "inactive")
    made.exchange("held", str(PHANTOM), "sendonly", delayed=True)
    made.exchange("stopped", str(PHANTOM), "inactive")
    made.exchange("resumed", "[agent_again]", "sendrecv", delayed=True)
    made.hang_up()
    return made


# baresip


def _write_tone(file: Path, hertz: int) -> None:
    samples = (
        round(8000 * math.sin(2 * math.pi * hertz * n / SAMPLE_RATE)) for n in range(SAMPLE_RATE)
    )
    second = array.array("h", samples)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframes(second.tobytes() * _SECONDS)


class Baresip(Program):
    """A user agent that answers calls, says the caller's tone, and records what it hears."""

    def __init__(self, place: Namespace, at: str, directory: Path) -> None:
        self._directory = directory / "baresip"
        self._directory.mkdir()
        _write_tone(self._directory / "caller.wav", Sound.CALLER.value)
        modules = next(Path("/usr/lib").glob("**/baresip/modules"))
        config = _BARESIP.format(address=at, directory=self._directory, modules=modules)
        (self._directory / "config").write_text(config)
        (self._directory / "accounts").write_text(
            f"<sip:5551234@{at}>;regint=0;answermode=auto;audio_codecs=PCMU\n"
        )
        (self._directory / "contacts").write_text("")
        command = ("stdbuf", "-oL", "baresip", "-f", str(self._directory))
        super().__init__(place, directory, "baresip", *command, cwd=self._directory)

    def heard(self) -> dict[Sound, float]:
        """Seconds of each sound in what it has decoded, once a call is over.

        After a pause in what it sends, baresip 1.0 decodes no more ("discard old frame").
        """
        found: dict[Sound, float] = {}
        for file in self._directory.glob("dump-*-dec.wav"):
            with wave.open(str(file)) as sound:
                assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
                assert sound.getframerate() == SAMPLE_RATE
                seconds, _ = measure(sound.readframes(sound.getnframes()))
            for each, length in seconds.items():
                found[each] = found.get(each, 0.0) + length
        return found


# The call


class Sdp(NamedTuple):
    """What a message says, as tshark has read it on one side of the firewall."""

    from_ucm: bool
    what: str  # method, or status of a response
    sequence: int  # CSeq's number
    port: int
    direction: str


class DirectCall(Conversation):
    """A call from UCM to baresip, step by step; afterwards, what the captures show of it.

    UCM's devices listen before an SDP names their port. They speak when baresip has turned to them,
    and are silent again before it is told to turn (tests/support/telephony.py says why).
    """

    def __init__(
        self, made: Hosts, directory: Path, stack: ExitStack, scenario: Scenario, helped: bool
    ) -> None:
        super().__init__(made, directory, stack)
        self.agent_at_last = self._fifth
        self.baresip = Baresip(made.provider, PROVIDER_ADDRESS, directory)
        stack.enter_context(closing(self.baresip))
        self.baresip.says("baresip is ready")
        self._ucm = self._start_ucm(directory, stack, scenario, helped)
        self._speech = (self.agent, Sound.AGENT)
        self.rtp = self._step("talking", "sendrecv")

    def _start_ucm(
        self, directory: Path, stack: ExitStack, scenario: Scenario, helped: bool
    ) -> Sipp:
        scenario.write(directory / "ucm.xml")
        keys = {
            "agent": self.agent,
            "agent_again": self.agent_again,
            "agent_at_last": self.agent_at_last,
            "address": UCM if helped else PUBLIC,
            "steps": self._steps.fifo,
        }
        words = [str(word) for name, value in keys.items() for word in ("-key", name, value)]
        call = ("-cid_str", Sipp.CALL_ID, "-s", "5551234", f"{PROVIDER_ADDRESS}:5060")
        started = Sipp(
            self.hosts.ucm,
            UCM,
            directory,
            "ucm",
            *words,
            *call,
            scenarios=directory,
            tcp=scenario.tcp,
        )
        stack.enter_context(closing(started))
        return started

    def _press(self, step: str, direction: str) -> None:
        self._ucm.press()
        assert self._step(step, direction) == self.rtp, "baresip has moved"

    def whole(self, play: Callable[["DirectCall", int], None]) -> None:
        """Talk, hold, resume; the same by the provider's offers; hang up. `play` is for holds."""
        self.talk()
        self.hold()
        play(self, self.music)
        self.resume(self.agent_again)
        self.hold("sendrecv")  # baresip's offer: UCM's answer is in its ACK
        play(self, self.music_again)
        self.resume(self.agent_at_last)
        self.hang_up()

    def talk(self) -> None:
        self._converse(self.agent)

    def stop(self) -> None:
        """No media, either way."""
        self._press("stopped", "inactive")

    def play_unheard(self, port: int) -> None:
        """Hold music for a provider that has fallen silent, and was forgotten."""
        until("the provider is forgotten", lambda: self.peers() == [])
        self._speak(port, Sound.MUSIC)
        self.sends(port)
        self._hush()

    def play_by_rtcp(self, port: int) -> None:
        """Hold music for a provider that sends reports and no RTP."""
        self._play_known_by("rtcp", port)

    def play_by_signalling(self, port: int) -> None:
        """Hold music for a provider that sends nothing, as SDPs tell it."""
        self._play_known_by("signalling", port)

    def _play_known_by(self, identified: str, port: int) -> None:
        self._play_until_heard(port)
        (peer,) = self.peers()
        assert (peer["state"], peer["identified"]) == ("moh", identified)
        self._hush()

    def resume(self, port: int) -> None:
        """In a delayed offer, too, what UCM sees is sendrecv: else the call would stay one way."""
        self._press("resumed", "sendrecv")
        self._converse(port)

    def hang_up(self) -> None:
        self._ucm.press()
        self._ucm.succeeds()
        self.baresip.says("session closed")
        self._catch_up()

    def _converse(self, port: int) -> None:
        """The agent listens, and speaks when baresip does."""
        self._turned(port)
        self._speak(port, Sound.AGENT)
        self._heard_both_ways(port)
        self._hush()


def sdps(capture: Capture) -> list[Sdp]:
    """The SDPs that a capture has, in order of time, with those that were sent again."""
    fields = ["ip.src", "sip.Method", "sip.Status-Code", "sip.CSeq.seq"]
    fields += ["sdp.media.port_string", "sdp.media_attr"]
    found = []
    for line in _fields(capture, "sdp", *fields):
        source, method, status, sequence, port, attributes = line
        directions = [each for each in attributes.split(",") if each in DIRECTIONS]
        assert len(directions) == 1, line
        from_ucm = source in (UCM, PUBLIC)
        found.append(Sdp(from_ucm, method or status, int(sequence), int(port), directions[0]))
    return found


def sip_text(capture: Capture, *, from_ucm: bool) -> list[bytes]:
    """The text of each packet of SIP that goes one way."""
    rows = _fields(capture, "sip", "ip.src", "udp.payload", "tcp.payload")
    return [
        bytes.fromhex(udp or tcp)
        for source, udp, tcp in rows
        if (source in (UCM, PUBLIC)) is from_ucm
    ]


def _fields(capture: Capture, which: str, *fields: str) -> list[list[str]]:
    words = [word for field in fields for word in ("-e", field)]
    said = capture.tshark("-Y", which, "-T", "fields", "-E", "separator=;", *words)
    return [line.split(";") for line in said.splitlines()]


@contextmanager
def direct_call(
    directory: Path,
    *options: str,
    scenario: Scenario,
    helper: bool = False,
    config: str | None = None,
) -> Iterator[DirectCall]:
    """A call that was answered. The options are for attach; with a `config` there is the service
    instead, which reads SIP.

    UCM names the public address, as behind static NAT; `helper`: its own, and the firewall's SIP
    helper rewrites that. Where the kernel has no such helper, the test is skipped.
    """
    with hosts(masquerade=False) as made, ExitStack() as stack:
        made.firewall.nft(RULES)
        if helper:
            add_sip_helper(made.firewall, _HELPERS)
        made.provider.nft(PROVIDER_RULES.replace("udp dport 5060", ANY_SIP))
        # What baresip sends comes from the address that it listens on.
        route = (f"{GATEWAY.rpartition('.')[0]}.0/24", "dev", "eth0", "src", PROVIDER_ADDRESS)
        made.provider.run("ip", "route", "replace", *route)
        if config is None:
            made.attach("--lan", "lan", "--ucm", UCM, *options)
        else:
            run = stack.enter_context(service(made.firewall, directory, config))
            run.wait_for_line("SIP is read")
        yield DirectCall(made, directory, stack, scenario, helper)
