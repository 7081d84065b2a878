"""A whole call by real programs, on a firewall with the SIP helper, masquerade and DNAT of RTP.

SIPp is UCM and the provider, Kamailio the proxy, with docs/kamailio.cfg as it stands; what is heard
is tshark's analysis of the RTP at the provider, before the provider's own firewall.
"""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.firewall import PUBLIC, UCM
from tests.support.hosts import Address
from tests.support.telephony import (
    FIREWALL_RULES,
    KAMAILIO_CFG,
    PHANTOM,
    PROVIDER_ADDRESS,
    Call,
    Capture,
    Sipp,
    Stream,
    call,
    network,
    require_programs,
)
from tests.support.waiting import until

NO_SIP_HELPER = "this kernel has no nf_conntrack_sip"


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    require_programs()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """The whole call with moh-ebpf attached, played once; the tests look at what there was."""
    with call(tmp_path_factory.mktemp("call")) as made:
        made.whole()
        yield made


@pytest.fixture(scope="module")
def heard(ended: Call) -> list[Stream]:
    """What comes to the provider's RTP endpoint, in order of time."""
    return to(ended.rtp, ended.at_provider.streams(ended.rtp[1]))


@pytest.fixture(scope="module")
def sent(ended: Call) -> list[Stream]:
    """What UCM sends there."""
    return to(ended.rtp, ended.at_ucm.streams(ended.rtp[1]))


def to(end: Address, streams: list[Stream]) -> list[Stream]:
    return [stream for stream in streams if stream.to == end]


def test_each_comes_from_the_port_that_the_sdp_names(ended: Call, heard: list[Stream]) -> None:
    """Of hold music and speech, not a packet from elsewhere; none is missing in between."""
    ports = [ended.agent, PHANTOM, ended.agent_again, PHANTOM, ended.voicemail]
    assert [stream.source for stream in heard] == [(PUBLIC, port) for port in ports]
    assert [stream.lost for stream in heard] == [0] * len(ports)
    assert ended.refused() == 0


def test_hold_music_arrives_whole(ended: Call, heard: list[Stream], sent: list[Stream]) -> None:
    """Both holds', though the second is well within conntrack's timeout of the first."""
    music = [stream for stream in sent if stream.source[1] in (ended.music, ended.music_again)]
    assert [stream.source for stream in music] == [(UCM, ended.music), (UCM, ended.music_again)]
    played = [(stream.ssrc, stream.packets) for stream in music]
    assert played == [(s.ssrc, s.packets) for s in heard if s.source == (PUBLIC, PHANTOM)]
    assert ended.counters()["rewritten"] == sum(packets for _, packets in played)


def test_nothing_is_heard_before_identification(
    ended: Call, heard: list[Stream], sent: list[Stream]
) -> None:
    flows = ended.at_provider.flows()
    agent = (PUBLIC, ended.agent)
    assert flows.index((ended.rtp, agent)) < flows.index((agent, ended.rtp))
    early = sent[0].packets - heard[0].packets
    assert early >= 10
    assert ended.counters()["dropped_unidentified"] == early


def test_the_caller_is_heard_when_off_hold(ended: Call) -> None:
    spoken = [s for s in ended.at_ucm.streams(ended.rtp[1]) if s.source == ended.rtp]
    ports = [ended.agent, ended.agent_again, ended.voicemail]
    assert [stream.to for stream in spoken] == [(UCM, port) for port in ports]
    assert [stream.lost for stream in spoken] == [0] * len(ports)


def test_no_private_address_reaches_the_provider(ended: Call) -> None:
    """Neither as a packet's source, nor in an SDP, nor in what an ICMP error quotes."""
    assert ended.at_provider.tshark("-Y", "icmp || ip.addr==10.0.0.0/8") == ""
    bodies = sdp_bodies(ended.at_provider.file)
    assert len(bodies) == 7  # five of UCM's, two of the provider's
    assert [body for body in bodies if b"10.10.10." in body] == []


def test_the_proxy_turns_sendonly_into_sendrecv(ended: Call) -> None:
    """In a re-INVITE, and in an ACK; all else of UCM's SDP stays."""
    assert sdp_lines(ended.at_ucm.file, b"a=X-cisco-media:umoh") == 2
    assert sdp_lines(ended.at_ucm.file, b"a=sendonly") == 2
    assert sdp_lines(ended.at_provider.file, b"a=X-cisco-media:umoh") == 2
    assert sdp_lines(ended.at_provider.file, b"a=sendonly") == 0


def test_the_sip_helper_follows_the_call(ended: Call) -> None:
    """It is on, that is; it expects the provider's RTP at the phantom port."""
    if not ended.has_sip_helper():
        pytest.skip(NO_SIP_HELPER)
    (provider, _), (public, port) = ended.rtp, (PUBLIC, PHANTOM)
    expectation = rf"src={provider} dst={public} sport=0 dport={port} .* helper=sip$"
    assert re.search(expectation, ended.expected_on_hold, re.MULTILINE)


def sdp_bodies(capture: Path) -> list[bytes]:
    """Those that differ, in order of time."""
    bodies = re.findall(rb"\r\n(v=0\r\n(?:[a-z]=[^\r\n]*\r\n)+)", capture.read_bytes())
    return list(dict.fromkeys(bodies))


def sdp_lines(capture: Path, line: bytes) -> int:
    return sum(body.count(line + b"\r\n") for body in sdp_bodies(capture))


def test_a_call_from_the_provider_reaches_ucm(tmp_path: Path) -> None:
    """The other way round; the signalling alone."""
    with (
        network(tmp_path, attached=False) as made,
        closing(Capture(made.provider, tmp_path, "provider")) as at_provider,
        closing(Sipp(made.ucm, UCM, tmp_path, "called")) as ucm,
    ):
        ucm.listens()
        to = ("-s", "2000", f"{PUBLIC}:5060")
        with closing(Sipp(made.provider, PROVIDER_ADDRESS, tmp_path, "caller", *to)) as caller:
            caller.succeeds()
            ucm.succeeds()
        at_provider.catch_up()
        _, answer = sdp_bodies(at_provider.file)
        assert f"c=IN IP4 {PUBLIC}".encode() in answer
        assert UCM.encode() not in answer


WITHOUT_DNAT = FIREWALL_RULES.replace(f"dnat to {UCM}", "counter")


def test_the_sip_helper_without_dnat_moves_the_port_of_a_call(tmp_path: Path) -> None:
    """The fault of an open input chain: `related` opens it to all RTP that the helper expects."""
    with call(tmp_path, rules=WITHOUT_DNAT) as made:
        if not made.has_sip_helper():
            pytest.skip(NO_SIP_HELPER)
        made.answer()
        made.sends(made.agent)
        made.at_provider.catch_up()
        heard = {source for source, end in made.at_provider.flows() if end == made.rtp}
        assert heard
        assert (PUBLIC, made.agent) not in heard


def test_where_related_opens_nothing_a_call_needs_no_dnat(tmp_path: Path) -> None:
    with call(tmp_path, rules=WITHOUT_DNAT.replace("established,related", "established")) as made:
        made.talk()
        assert made.refused() == 0


def test_without_moh_ebpf_the_hold_is_dead_air(tmp_path: Path) -> None:
    with call(tmp_path, attached=False) as made:
        made.talk()
        made.hold()
        refused = made.refused()
        made.play_unheard(made.music)
        made.at_provider.catch_up()
        wrong = ((PUBLIC, made.music), made.rtp)
        assert made.at_provider.count(*wrong) > 0
        assert made.at_provider.count((PUBLIC, PHANTOM), made.rtp) == 0
        assert made.refused() > refused


def test_without_the_proxys_sendrecv_the_hold_is_dead_air(tmp_path: Path) -> None:
    """The provider does as sendonly says, so that nothing tells the firewall of the hold."""
    text = KAMAILIO_CFG.read_text()
    config = tmp_path / "kamailio.cfg"
    config.write_text(text.replace('replace_body_all("a=sendonly", "a=sendrecv");', ""))
    assert config.read_text() != text
    with call(tmp_path, "--timeout", "1s", config=config) as made:
        made.talk()
        made.hold()
        until("the provider is forgotten", lambda: made.peers() == [])
        made.at_provider.catch_up()
        before = len(made.at_provider.flows())
        made.play_unheard(made.music)
        made.at_provider.catch_up()
        heard = {source for source, end in made.at_provider.flows()[before:] if end == made.rtp}
        # After the patience the music goes as a call's would: not from where it is listened for.
        assert (PUBLIC, 4000) not in heard
        assert {address for address, _ in heard} <= {PUBLIC}
