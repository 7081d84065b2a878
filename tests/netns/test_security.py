"""What docs/security.md says of forged packets."""

import json

from scapy.layers.inet import UDP

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.waiting import until
from tests.support.wire import flow, rtp, udp

MEDIA = f"{UCM}:24576"
CALL = f"{PUBLIC}:24576"
HOLD = f"{PUBLIC}:4000"
PATIENT = ("--timeout", "60s")


def delivered(fw: Firewall) -> list[tuple[str, str]]:
    return [flow(packet) for packet in fw.wan.sent() if UDP in packet]


def test_no_program_changes_a_destination(fw: Firewall) -> None:
    """Whatever is forged, UCM's packets go to where UCM sends them."""
    fw.attach(*PATIENT)
    forged = ["203.0.113.66:31000", "198.18.7.7:4000", "8.8.8.8:53"]
    for source in forged:
        for public in (HOLD, CALL, f"{PUBLIC}:4001", f"{PUBLIC}:1024"):
            fw.wan.send(udp(source, public))
    fw.wan.send(udp(PROVIDER, HOLD))
    fw.lan.send(*[udp(MEDIA, PROVIDER, rtp(number)) for number in range(5)])
    assert delivered(fw) == [(HOLD, PROVIDER)] * 5
    fw.wan.send(udp(PROVIDER, CALL))
    fw.lan.send(*[udp(MEDIA, PROVIDER, rtp(number)) for number in range(5)])
    assert delivered(fw) == [(CALL, PROVIDER)] * 5


def test_sources_that_are_not_listed_teach_nothing(fw: Firewall) -> None:
    fw.attach(*PATIENT, "--provider", "203.0.113.0/24")
    fw.wan.send(udp("203.0.114.10:21000", HOLD), udp("203.0.112.255:21000", CALL))
    assert json.loads(fw.moh("peers", "--json", "--all").stdout) == []


def test_a_spoofed_state_lasts_until_the_endpoint_speaks(fw: Firewall) -> None:
    fw.attach(*PATIENT)
    for own, forged in ((CALL, HOLD), (HOLD, CALL)):
        fw.wan.send(udp(PROVIDER, own))
        fw.lan.send(udp(MEDIA, PROVIDER))
        fw.wan.send(udp(PROVIDER, forged))
        fw.lan.send(udp(MEDIA, PROVIDER))
        fw.wan.send(udp(PROVIDER, own))
        fw.lan.send(udp(MEDIA, PROVIDER))
        assert delivered(fw) == [(public, PROVIDER) for public in (own, forged, own)]


def test_what_a_spoofed_call_opens_is_the_firewalls_to_decide(fw: Firewall) -> None:
    fw.namespace.nft(
        "table ip rules { chain forward { type filter hook forward priority filter;"
        " ip daddr 203.0.113.66 drop; }; }"
    )
    fw.attach(*PATIENT)
    fw.wan.send(*[udp("203.0.113.66:31000", CALL)] * 2)
    fw.lan.send(*[udp(MEDIA, "203.0.113.66:31000")] * 2)
    assert delivered(fw) == []
    (peer,) = json.loads(fw.moh("peers", "--json").stdout)
    assert (peer["state"], peer["outbound"]["packets"]) == ("two", 2)


def test_noise_keeps_no_call_waiting_for_longer_than_the_patience(fw: Firewall) -> None:
    """Learn's clock runs for any packet to a public address, the attacker's too."""
    fw.attach("--patience", "500ms")

    def passes() -> bool:
        fw.wan.send(udp("8.8.8.8:443", f"{PUBLIC}:40000", b"noise"))
        fw.lan.send(udp(MEDIA, PROVIDER))
        return bool(delivered(fw))

    assert not passes()
    until("the call passes", passes)
    assert json.loads(fw.moh("status", "--json").stdout)["counters"]["passed_unheard"]
