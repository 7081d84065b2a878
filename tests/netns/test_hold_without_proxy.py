"""--flip-hold in a whole call without a SIP proxy: SIPp is UCM, baresip the provider's user agent.

What is heard is what baresip has decoded, and tshark's reading of the packets on both sides.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moh_ebpf.lab.audio import Sound
from tests.support.direct import (
    PROGRAMS,
    DirectCall,
    Sdp,
    call_by_steps,
    direct_call,
    sdps,
    sip_text,
    whole_call,
)
from tests.support.firewall import PUBLIC, UCM
from tests.support.telephony import PHANTOM, require_programs


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    require_programs(PROGRAMS)


WAYS = ["udp", "tcp", "udp-helper", "tcp-helper"]


@pytest.fixture(scope="module", params=WAYS)
def ended(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DirectCall]:
    """The whole call, played once each way; the tests look at what there was."""
    scenario = whole_call(tcp=request.param.startswith("tcp"))
    helper = request.param.endswith("helper")
    directory = tmp_path_factory.mktemp("call")
    with direct_call(directory, "--flip-hold", scenario=scenario, helper=helper) as made:
        made.whole(DirectCall.play)
        yield made


def expected(ended: DirectCall, *, hold: str, answer: str) -> list[Sdp]:
    """The SDPs of the whole call: the direction of UCM's holds, and of the answer to the first."""
    rtp = ended.rtp[1]
    return [
        Sdp(True, "INVITE", 1, ended.agent, "sendrecv"),
        Sdp(False, "200", 1, rtp, "sendrecv"),
        Sdp(True, "INVITE", 2, PHANTOM, hold),
        Sdp(False, "200", 2, rtp, answer),
        Sdp(True, "INVITE", 3, ended.agent_again, "sendrecv"),
        Sdp(False, "200", 3, rtp, "sendrecv"),
        Sdp(False, "200", 4, rtp, "sendrecv"),
        Sdp(True, "ACK", 4, PHANTOM, hold),
        Sdp(False, "200", 5, rtp, "sendrecv"),
        Sdp(True, "ACK", 5, ended.agent_at_last, "sendrecv"),
    ]


def once(found: list[Sdp]) -> list[Sdp]:
    """Over UDP, what is not answered in time is sent again."""
    return list(dict.fromkeys(found))


def test_the_provider_is_told_sendrecv(ended: DirectCall) -> None:
    """And answers so, which its side of the wire shows."""
    wanted = expected(ended, hold="sendrecv", answer="sendrecv")
    assert once(sdps(ended.at_provider)) == wanted


def test_ucm_sees_the_answer_to_what_it_has_said(ended: DirectCall) -> None:
    """An offer that it has asked for in order to resume is left as the provider makes it."""
    assert once(sdps(ended.at_ucm)) == expected(ended, hold="sendonly", answer="recvonly")


def test_the_counters_count_them(ended: DirectCall) -> None:
    seen, counters = sdps(ended.at_ucm), ended.counters()
    assert counters["sip_flipped"] == sum(each.direction == "sendonly" for each in seen) >= 2
    assert counters["sip_restored"] == sum(each.direction == "recvonly" for each in seen) >= 1
    assert counters["sip_split"] == 0


def test_nothing_else_of_sip_is_changed(ended: DirectCall) -> None:
    """But for the addresses, and the length, where the SIP helper rewrites them."""
    ucm, provider = ended.at_ucm, ended.at_provider
    for from_ucm, here, there, before, after in (
        (True, ucm, provider, b"a=sendonly", b"a=sendrecv"),
        (False, provider, ucm, b"a=sendrecv", b"a=recvonly"),
    ):
        sent = [plain(text) for text in sip_text(here, from_ucm=from_ucm)]
        came = [plain(text) for text in sip_text(there, from_ucm=from_ucm)]
        others = [text for text, other in zip(sent, came, strict=True) if text != other]
        assert others
        wanted = [text.replace(before, after) if text in others else text for text in sent]
        assert wanted == came


def plain(text: bytes) -> bytes:
    """Without what the SIP helper changes: it adds ports to addresses, too."""
    text = text.replace(UCM.encode(), PUBLIC.encode()).replace(
        f"{PUBLIC}:5060".encode(), PUBLIC.encode()
    )
    return re.sub(rb"Content-Length: +[0-9]+", b"Content-Length:", text)


def test_each_comes_from_the_port_that_the_sdp_names(ended: DirectCall) -> None:
    """Of hold music and speech, not a packet from elsewhere; none is missing in between."""
    streams = ended.at_provider.streams(ended.rtp[1])
    heard = [each for each in streams if each.to == ended.rtp]
    ports = [ended.agent, PHANTOM, ended.agent_again, PHANTOM, ended.agent_at_last]
    assert [each.source for each in heard] == [(PUBLIC, port) for port in ports]
    assert [each.lost for each in heard] == [0] * len(ports)
    music = [each.packets for each in heard if each.source == (PUBLIC, PHANTOM)]
    assert ended.counters()["rewritten"] == sum(music)
    assert ended.refused() == 0


def test_the_provider_sends_to_the_phantom_port(ended: DirectCall) -> None:
    """All of which ends at the firewall, RTP and RTCP."""
    ports = (PHANTOM, PHANTOM + 1)
    sent = [to for _, to in ended.at_provider.flows() if to in {(PUBLIC, port) for port in ports}]
    assert ended.counters()["consumed"] == len(sent)
    assert not [to for _, to in ended.at_ucm.flows() if to[1] in ports]


def test_the_provider_hears_agent_and_music(ended: DirectCall) -> None:
    """Two times 0.8 s of music at least, three of the agent; its jitter buffer takes its share."""
    heard = ended.baresip.heard()
    assert heard[Sound.MUSIC] >= 0.8
    assert heard[Sound.AGENT] >= 1.2


def test_a_hold_that_stops_the_media_first(tmp_path: Path) -> None:
    """The answers to inactive are left alone; by when it resumes, the hold is over."""
    with direct_call(tmp_path, "--flip-hold", scenario=call_by_steps()) as ended:
        ended.talk()
        ended.stop()
        ended.hold("sendrecv")
        ended.play(ended.music)
        ended.stop()
        ended.resume(ended.agent_again)
        ended.hang_up()
        seen = [each.direction for each in once(sdps(ended.at_provider))]
        sent = [each.direction for each in once(sdps(ended.at_ucm))]
        talking, stopped = ["sendrecv", "sendrecv"], ["inactive", "inactive"]
        assert seen == talking + stopped + talking + stopped + talking
        assert sent == [*talking, *stopped, "sendrecv", "sendonly", *stopped, *talking]
        assert ended.counters()["sip_restored"] == 0
        assert ended.refused() == 0


def test_rtcp_alone_tells_of_a_hold(tmp_path: Path) -> None:
    """No flip, and a user agent that stops its RTP at sendonly, as RFC 3264 has it, and goes on
    with its reports: the music leaves from the phantom port all the same. SIP is not read, so it
    might as well be encrypted. The first report may come later than the patience by default."""
    options = ("--timeout", "1s", "--patience", "never")
    with direct_call(tmp_path, *options, scenario=whole_call()) as ended:
        # It sends no RTP to the phantom port that could open its own firewall.
        ended.hosts.provider.nft(f"insert rule ip provider input udp sport {PHANTOM} accept")
        ended.whole(DirectCall.play_by_rtcp)
        assert once(sdps(ended.at_provider)) == expected(ended, hold="sendonly", answer="recvonly")
        assert not ended.at_provider.count(ended.rtp, (PUBLIC, PHANTOM)), "it has sent RTP"
        told = ended.hosts.firewall.moh("events", "--json", "--history", "--for", "0s").stdout
        events = [json.loads(line) for line in told.splitlines()]
        by_rtcp = [each["to"] for each in events if each["identified"] == "rtcp"]
        assert by_rtcp.count("moh") >= 2
        assert ended.refused() == 0


@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_without_it_the_hold_is_dead_air(tmp_path: Path, way: str) -> None:
    """The provider does as sendonly says, so that without its RTCP nothing tells the firewall of
    the hold. So the music goes as a call's would: not from where it is listened for."""
    options = ("--timeout", "1s", "--rtcp-timeout", "0s")
    with direct_call(tmp_path, *options, scenario=whole_call(tcp=way == "tcp")) as ended:
        ended.whole(DirectCall.play_unheard)
        assert once(sdps(ended.at_provider)) == expected(ended, hold="sendonly", answer="recvonly")
        assert sdps(ended.at_provider) == sdps(ended.at_ucm)
        talked = {(PUBLIC, port) for port in (ended.agent, ended.agent_again, ended.agent_at_last)}
        sources = {source for source, to in ended.at_provider.flows() if to == ended.rtp}
        assert talked <= sources
        assert (PUBLIC, 4000) not in sources
        unheard = ("dropped_unidentified", "passed_blind", "passed_unheard")
        counters = ended.counters()
        assert sum(counters[name] for name in unheard) >= 2 * DirectCall.HEARD
