"""Whole calls by real programs, known by their signalling: SIPp is UCM and the provider, Kamailio a
proxy on the firewall that leaves the hold's sendonly as it is, moh-ebpf runs as a service.

The provider does as SDPs say: on hold it sends nothing at all, so that only SIP tells of it.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.support.direct import DirectCall, direct_call, whole_call
from tests.support.firewall import PUBLIC, UCM
from tests.support.service import Service, service
from tests.support.telephony import (
    KAMAILIO_CFG,
    PHANTOM,
    PROVIDER_RULES,
    SCENARIOS,
    Call,
    Conversation,
    Sipp,
    Stream,
    network,
    require_programs,
    start_kamailio,
)
from tests.support.waiting import until

CONFIG = f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\n'
FAR_PROXY_CFG = SCENARIOS / "far-proxy.cfg"
FLIP = 'replace_body_all("a=sendonly", "a=sendrecv");'


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    require_programs()


class SilentOnHold(Call):
    """Who is told sendonly sends nothing, and hears music all the same."""

    def play(self, port: int) -> None:
        self._play_until_heard(port)
        self._hush()


# What the firewall's proxy needs to speak TLS with the provider's.
WITH_TLS = {
    "disable_tcp=yes": "tcp_children=2\nenable_tls=yes\nlisten=tls:PUBLIC:5061",
    'loadmodule "nathelper.so"': """loadmodule "nathelper.so"
loadmodule "tls.so"
modparam("tls", "certificate", "{certificate}")
modparam("tls", "private_key", "{key}")
modparam("tls", "tls_method", "TLSv1.2+")""",
    "if (dst_ip == LAN) $rd = $def(PROVIDER);": """if (dst_ip == LAN) {{
            $rd = $def(PROVIDER);
            $du = "sip:" + $def(PROVIDER) + ":5061;transport=tls";
        }}""",
}


def proxy_config(directory: Path, changes: dict[str, str]) -> Path:
    text = KAMAILIO_CFG.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    config = directory / "kamailio.cfg"
    config.write_text(text)
    return config


@contextmanager
def known_call(
    directory: Path, changes: dict[str, str], **far_proxy: str
) -> Iterator[tuple[SilentOnHold, Service]]:
    """A call whose firewall has a proxy with these changes; with another of the provider's, if that
    is told anything."""
    config = proxy_config(directory, {FLIP: ""} | changes)
    with network(directory, attached=False, config=config) as made, ExitStack() as stack:
        # A firewall of its own that lets in what answers it alone would let no music in.
        made.provider.nft("flush chain ip provider input")
        made.provider.nft(PROVIDER_RULES.replace("policy drop", "policy accept"))
        if far_proxy:
            (directory / "far").mkdir()
            started = start_kamailio(
                made.provider, directory / "far", FAR_PROXY_CFG, "far-proxy", **far_proxy
            )
            stack.enter_context(closing(started))
            listening = ("ss", "-Hltn", "sport = 5061")
            until("the provider's proxy listens", lambda: made.provider.run(*listening).stdout)
        run = stack.enter_context(service(made.firewall, directory, CONFIG))
        run.wait_for_line("SIP is read")
        yield SilentOnHold(made, directory, stack), run


def heard(call: Conversation) -> list[Stream]:
    return [each for each in call.at_provider.streams(call.rtp[1]) if each.to == call.rtp]


def test_a_provider_that_is_silent_on_hold(tmp_path: Path) -> None:
    with known_call(tmp_path, {}) as (call, run):
        whole(call)
        assert run.stop() == 0


def test_tls_towards_the_provider_and_clear_sip_on_the_lan(tmp_path: Path) -> None:
    """The proxy's own packets to UCM come in nowhere, and are read all the same."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=proxy")
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate), "-days", "2"],
        check=True, capture_output=True,
    )  # fmt: skip
    changes = {old: new.format(certificate=certificate, key=key) for old, new in WITH_TLS.items()}
    quoted = {"CERTIFICATE": f'"{certificate}"', "KEY": f'"{key}"'}
    with known_call(tmp_path, changes, **quoted) as (call, run):
        whole(call)
        assert run.stop() == 0
        sip = ("-Y", "sip", "-d", "udp.port==5060,sip", "-d", "tcp.port==5060,sip")
        assert call.at_provider.tshark(*sip, "-T", "fields", "-e", "ip.src").split() == []


@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_without_a_proxy(tmp_path: Path, way: str) -> None:
    """UCM and baresip, which stops its RTP at sendonly, as RFC 3264 has it."""
    scenario, config = whole_call(tcp=way == "tcp"), CONFIG + 'rtcp_timeout = "0s"\n'
    with direct_call(tmp_path, scenario=scenario, config=config) as ended:
        # It sends no RTP to the phantom port that could open its own firewall.
        ended.hosts.provider.nft(f"insert rule ip provider input udp sport {PHANTOM} accept")
        ended.whole(DirectCall.play_by_signalling)
        ports = [ended.agent, PHANTOM, ended.agent_again, PHANTOM, ended.agent_at_last]
        assert [each.source for each in heard(ended)] == [(PUBLIC, port) for port in ports]
        assert ended.refused() == 0


def whole(call: SilentOnHold) -> None:
    """Talk, hold, resume, hold by a delayed offer, transfer, hang up."""
    call.talk()
    call.hold()
    call.play(call.music)
    (peer,) = call.peers()
    assert (peer["state"], peer["identified"]) == ("moh", "signalling")
    assert peer["call_id"] == Sipp.CALL_ID
    call.resume()
    call.hold_again()
    call.play(call.music_again)
    call.transfer()
    call.hang_up()
    until("the call is over", lambda: all(each["expired"] for each in call.peers()))
    ports = [call.agent, PHANTOM, call.agent_again, PHANTOM, call.voicemail]
    streams = heard(call)
    assert [stream.source for stream in streams] == [(PUBLIC, port) for port in ports]
    assert [stream.lost for stream in streams] == [0] * len(ports)
