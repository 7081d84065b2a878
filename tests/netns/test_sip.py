"""`moh-ebpf run` reads SIP: each call is known before its first packet."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.packet import Raw

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.service import CONFIG, Service, held_up, reader_of, service
from tests.support.sip import PROVIDER_SIP, Dialog, description
from tests.support.waiting import until
from tests.support.wire import flow, rtp, udp

CALL, MUSIC = f"{UCM}:24576", f"{UCM}:30000"
CONFIG_OF_SIP = CONFIG + "sip_ports = [5060]\n"


class Trunk:
    """SIP between UCM and the provider, through the firewall."""

    def __init__(self, fw: Firewall) -> None:
        self.fw = fw

    def from_ucm(self, message: bytes) -> None:
        self.fw.lan.send(udp(f"{UCM}:5060", f"{PROVIDER_SIP}:5060", message))

    def from_provider(self, message: bytes) -> None:
        self.fw.wan.send(udp(f"{PROVIDER_SIP}:5060", f"{PUBLIC}:5060", message))

    def call(self, dialog: Dialog, ucm: str = CALL, provider: str = PROVIDER) -> None:
        self.from_ucm(dialog.ask("INVITE", description(ucm)))
        self.from_provider(dialog.answer(description(provider)))
        self.from_ucm(dialog.ask("ACK"))

    def hold(self, dialog: Dialog, provider: str = PROVIDER) -> None:
        """By a delayed offer, as UCM does it."""
        self.from_ucm(dialog.ask("INVITE"))
        self.from_provider(dialog.answer(description(provider)))
        self.from_ucm(dialog.ask("ACK", description(f"{UCM}:4000", "sendonly")))


@contextmanager
def running(fw: Firewall, directory: Path, config: str = CONFIG_OF_SIP) -> Iterator[Service]:
    with service(fw.namespace, directory, config) as made:
        made.wait_for_line("SIP is read")
        yield made


def peers(fw: Firewall) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(fw.moh("peers", "--json").stdout)
    return found


def becomes(fw: Firewall, **fields: Any) -> dict[str, Any]:
    """Wait until the one peer has these fields."""

    def found() -> list[dict[str, Any]]:
        return [each for each in peers(fw) if fields.items() <= each.items()]

    until(f"there is a peer with {fields}", found)
    return found()[0]


def leaves(fw: Firewall, source: str) -> str | None:
    """The source that UCM's packet from there has at the provider; None: it does not come."""
    fw.wan.sent()
    fw.lan.send(udp(source, PROVIDER))
    media = [flow(each) for each in fw.wan.sent() if UDP in each]
    return next((source for source, to in media if to == PROVIDER), None)


def hears(fw: Firewall) -> bool:
    """Is there a packet socket?"""
    _, *sockets = fw.namespace.run("cat", "/proc/net/packet").stdout.splitlines()
    return bool(sockets)


def is_over(fw: Firewall) -> bool:
    return all(each["expired"] for each in peers(fw))


def test_a_call_and_its_hold_before_any_packet(fw: Firewall, tmp_path: Path) -> None:
    with running(fw, tmp_path) as run:
        trunk, dialog = Trunk(fw), Dialog()
        trunk.call(dialog)
        call = becomes(fw, state="two", identified="signalling")
        assert (call["address"], call["call_id"]) == (PROVIDER_SIP, dialog.call_id)
        assert (call["caller"], call["called"], call["interface"]) == (None, None, None)
        trunk.hold(dialog)
        becomes(fw, state="moh", identified="signalling", public_port=4000)
        assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"
        trunk.call(dialog)
        becomes(fw, state="two")
        assert leaves(fw, CALL) != f"{PUBLIC}:4000"
        trunk.from_ucm(dialog.ask("BYE"))
        until("the call is over", lambda: is_over(fw))
        assert dialog.call_id in run.wait_for_line("expired")
        assert run.stop() == 0


def test_music_that_is_too_long_for_an_endpoint_that_was_never_heard(
    fw: Firewall, tmp_path: Path
) -> None:
    """The WAN is the routes' choice, and its MTU counts as for any other."""
    fw.namespace.run("ip", "link", "set", "wan", "mtu", "600")
    with running(fw, tmp_path):
        trunk, dialog = Trunk(fw), Dialog()
        trunk.call(dialog)
        trunk.hold(dialog)
        becomes(fw, state="moh", identified="signalling")
        fw.wan.sent()
        fits, long = rtp(size=600 - 20 - 8 - 12), rtp(size=601 - 20 - 8 - 12)
        fw.lan.send(udp(MUSIC, PROVIDER, fits), udp(MUSIC, PROVIDER, long))
        assert [len(packet[IP]) for packet in fw.wan.sent()] == [600]
        fw.lan.sent()
        fw.lan.send(udp(MUSIC, PROVIDER, long, flags="DF"))
        assert [packet[ICMP].nexthopmtu for packet in fw.lan.sent()] == [600]
        counters = json.loads(fw.moh("status", "--json").stdout)["counters"]
        assert (counters["dropped_too_big"], counters["left_to_stack"]) == (1, 1)


def test_numbers_of_who_calls_are_kept_if_that_is_wanted(fw: Firewall, tmp_path: Path) -> None:
    with running(fw, tmp_path, CONFIG + "show_numbers = true\n"):
        Trunk(fw).call(Dialog())
        call = becomes(fw, state="two")
        assert (call["caller"], call["called"]) == ("100", "+4930123")


def test_sip_is_not_read_if_that_is_not_wanted(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG + "signalling = false\n") as run:
        run.wait_for_line("attached")
        Trunk(fw).call(Dialog())
        fw.lan.send(udp(CALL, PROVIDER), udp(CALL, PROVIDER))
        assert peers(fw) == []
        assert run.stop() == 0
        assert not [line for line in run.lines if "SIP" in line]


def test_without_a_lan(fw: Firewall, tmp_path: Path) -> None:
    """UCM is where the routes lead; what comes by the WAN in its name is forged as ever."""
    with running(fw, tmp_path, CONFIG.replace('lan = ["lan"]\n', "")):
        trunk, dialog, forged = Trunk(fw), Dialog(), Dialog("forged@ucm")
        invite = forged.ask("INVITE", description(CALL))
        fw.wan.send(udp(f"{UCM}:5060", f"{PROVIDER_SIP}:5060", invite))
        trunk.from_provider(forged.answer(description("203.0.113.99:20000")))
        trunk.call(dialog)
        assert becomes(fw, state="two", identified="signalling")["call_id"] == dialog.call_id
        assert len(peers(fw)) == 1


class Tcp:
    """One direction of a connection, in segments of a few bytes."""

    def __init__(self, source: str, to: str, send: Callable[..., None]) -> None:
        self.source, self.to, self.send, self.sequence = source, to, send, 1000
        self._segment("S")

    def _segment(self, flags: str, data: bytes = b"") -> IP:
        segment = (
            IP(src=self.source, dst=self.to)
            / TCP(sport=5060, dport=5060, seq=self.sequence, flags=flags)
            / Raw(data)
        )
        self.send(segment)
        self.sequence += len(data) + (flags == "S")
        return segment

    def say(self, data: bytes, size: int = 100) -> None:
        for at in range(0, len(data), size):
            self._segment("A", data[at : at + size])


def test_sip_over_tcp(fw: Firewall, tmp_path: Path) -> None:
    with running(fw, tmp_path):
        ucm = Tcp(UCM, PROVIDER_SIP, fw.lan.send)
        provider = Tcp(PROVIDER_SIP, PUBLIC, fw.wan.send)
        dialog = Dialog()
        ucm.say(b"\r\n\r\n" + dialog.ask("INVITE", description(CALL)))
        provider.say(dialog.answer(status=180) + dialog.answer(description(PROVIDER)))
        becomes(fw, state="two", call_id=dialog.call_id)
        ucm.say(dialog.ask("ACK") + dialog.ask("INVITE", description(f"{UCM}:4000")))
        provider.say(dialog.answer(description(PROVIDER)))
        becomes(fw, state="moh")


def test_sip_in_fragments(fw: Firewall, tmp_path: Path) -> None:
    """A long message, as a provider's with many codecs is."""
    with running(fw, tmp_path):
        trunk, dialog = Trunk(fw), Dialog()
        trunk.from_ucm(dialog.ask("INVITE", description(CALL)))
        long = dialog.answer(description(PROVIDER, "", *["a=rtpmap:0 PCMU/8000"] * 100))
        whole = udp(f"{PROVIDER_SIP}:5060", f"{PUBLIC}:5060", long, id=77)
        fw.wan.send(*reversed(fragment(whole, fragsize=800)))
        becomes(fw, state="two", call_id=dialog.call_id)


def test_what_strangers_say_teaches_nothing(fw: Firewall, tmp_path: Path) -> None:
    """A provider's description names an endpoint and no state; one that may not be learned is none;
    half a dialog, and rubbish, are nothing. The service goes on."""
    config = CONFIG + 'provider = ["203.0.113.0/28"]\nsip_from = ["203.0.113.10/32"]\n'
    with running(fw, tmp_path, config):
        trunk = Trunk(fw)
        for number, endpoint in enumerate(["10.10.10.99:20000", "203.0.113.99:20000"]):
            trunk.call(Dialog(f"{number}@ucm"), provider=endpoint)
        stranger = Dialog("stranger@there")
        invite = stranger.ask("INVITE", description(f"{UCM}:4000"), by_provider=True)
        trunk.from_provider(invite)
        trunk.from_provider(stranger.answer(description(f"{UCM}:4000")))
        for data in (b"\0" * 400, os.urandom(1400), b"INVITE sip:x SIP/2.0\r\n" * 50):
            trunk.from_provider(data)
            trunk.from_ucm(data)
        other = Dialog("other@there")
        trunk.from_ucm(other.ask("INVITE", description(CALL)))
        answer = other.answer(description(PROVIDER))
        fw.wan.send(udp("203.0.113.11:5060", f"{PUBLIC}:5060", answer))  # not from sip_from
        elsewhere = fw.add_wire("other", "10.9.9.1/24", "10.9.9.2")  # no interface of ours
        for to in (PUBLIC, UCM):
            elsewhere.send(udp(f"{PROVIDER_SIP}:5060", f"{to}:5060", answer))
        trunk.call(Dialog("honest@ucm"), provider="203.0.113.12:20000")
        assert becomes(fw, state="two")["address"] == "203.0.113.12"
        assert len(peers(fw)) == 1


def test_a_call_that_was_there_before(fw: Firewall, tmp_path: Path) -> None:
    """Before `run`, or on another firewall: it is known from its next offer and answer on."""
    dialog = Dialog()
    Trunk(fw).call(dialog)
    with running(fw, tmp_path):
        trunk = Trunk(fw)
        trunk.from_ucm(dialog.ask("ACK"))
        trunk.hold(dialog)
        becomes(fw, state="moh", call_id=dialog.call_id)
        assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"


def test_a_call_that_begins_while_run_attaches(fw: Firewall, tmp_path: Path) -> None:
    """Which takes seconds: its SIP waits until then."""
    with ExitStack() as locked:
        locked.enter_context(fw.namespace.locked())
        with service(fw.namespace, tmp_path, CONFIG_OF_SIP) as run:
            until("attach waits", lambda: held_up(run))
            until("SIP is heard", lambda: hears(fw))
            trunk, dialog = Trunk(fw), Dialog()
            trunk.call(dialog)
            trunk.hold(dialog)
            assert fw.moh("status", check=False).returncode == 3
            locked.close()
            run.wait_for_word("READY")
            assert becomes(fw, state="moh")["call_id"] == dialog.call_id
            assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"


@pytest.mark.parametrize("before", ["wan", ""])
def test_a_call_by_an_interface_that_run_attaches_to(
    fw: Firewall, tmp_path: Path, before: str
) -> None:
    """Which has just come, be it the first one."""
    wans = ", ".join(f'"{each}"' for each in (before, "wan2") if each)
    config = CONFIG_OF_SIP.replace('wan = ["wan"]', f"wan = [{wans}]")
    with service(fw.namespace, tmp_path, config) as run, ExitStack() as locked:
        run.wait_for_line("SIP is read" if before else "waiting for wan2")
        locked.enter_context(fw.namespace.locked())
        wan2 = fw.add_wire("wan2", "192.0.2.2/24", "192.0.2.1")
        until("attach waits", lambda: held_up(run))
        until("SIP is heard", lambda: hears(fw))
        trunk, dialog = Trunk(fw), Dialog()
        trunk.from_ucm(dialog.ask("INVITE", description(CALL)))
        answer = dialog.answer(description(PROVIDER))
        wan2.send(udp(f"{PROVIDER_SIP}:5060", "192.0.2.2:5060", answer))
        locked.close()
        run.wait_for_line("wan2")
        assert becomes(fw, state="two")["call_id"] == dialog.call_id


def test_the_reader_is_killed(fw: Firewall, tmp_path: Path) -> None:
    """What was said stays; the next reader goes on with it."""
    with running(fw, tmp_path) as run:
        trunk, dialog = Trunk(fw), Dialog()
        trunk.call(dialog)
        trunk.hold(dialog)
        becomes(fw, state="moh")
        os.kill(reader_of(run), signal.SIGKILL)
        run.wait_for_line("SIP is not read")
        assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"
        run.wait_for_line("SIP is read")
        assert becomes(fw, state="moh")["call_id"] == dialog.call_id
        trunk.from_ucm(dialog.ask("BYE"))
        until("the call is over", lambda: is_over(fw))
        assert run.stop() == 0


@pytest.mark.parametrize("how", ["reload", "restart", "crash"])
def test_programs_are_replaced(fw: Firewall, tmp_path: Path, how: str) -> None:
    """The calls stay known, with their Call-IDs, and go on."""
    with running(fw, tmp_path) as run:
        trunk, dialog = Trunk(fw), Dialog()
        trunk.call(dialog)
        trunk.hold(dialog)
        becomes(fw, state="moh")
        if how == "reload":
            (tmp_path / "moh-ebpf.toml").write_text(CONFIG + "max_peers = 1000\n")
            run.send(signal.SIGHUP)
            run.wait_for_line("config reloaded")
        else:
            run.stop(signal.SIGUSR1 if how == "restart" else signal.SIGKILL)
        assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"
        if how == "reload":
            trunk.call(dialog)
            becomes(fw, state="two", call_id=dialog.call_id)
            assert run.stop() == 0
            return
    with running(fw, tmp_path, CONFIG + "max_peers = 1000\n") as again:
        assert leaves(fw, MUSIC) == f"{PUBLIC}:4000"
        becomes(fw, state="moh", call_id=dialog.call_id)
        trunk.call(dialog)
        becomes(fw, state="two", call_id=dialog.call_id)
        trunk.from_provider(dialog.ask("BYE", by_provider=True))
        until("the call is over", lambda: is_over(fw))
        assert again.stop() == 0
