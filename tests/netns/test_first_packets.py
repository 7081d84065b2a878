"""The first packets of a hold, through the firewall's own NAT: none from another port than 4000."""

import json
import time

import pytest

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.waiting import until
from tests.support.wire import flow, udp

CALL, HOLD = f"{PUBLIC}:24576", f"{PUBLIC}:4000"
VOICE, MUSIC, NEXT = f"{UCM}:24576", f"{UCM}:30000", f"{UCM}:31000"
PACKET_SECONDS = 0.02
LONGEST_SECONDS = 0.2  # NEW_SOURCE_NS in bpf/config.h


def left(fw: Firewall) -> list[str]:
    """Where UCM's packets that have left came from."""
    return [flow(each)[0] for each in fw.wan.sent()]


def held_back(fw: Firewall) -> int:
    return json.loads(fw.moh("status", "--json").stdout)["counters"]["held_back"]


def talk(fw: Firewall) -> None:
    for _ in range(3):
        fw.wan.send(udp(PROVIDER, CALL))
        fw.lan.send(udp(VOICE, PROVIDER))
    assert left(fw) == [CALL] * 3


def play_for(fw: Firewall, seconds: float) -> int:
    """Music, and the provider's speech, as they cross; how many packets of music."""
    begun, played = time.monotonic(), 0
    while played * PACKET_SECONDS < seconds:
        fw.lan.send(udp(MUSIC, PROVIDER))
        fw.wan.send(udp(PROVIDER, CALL))
        played += 1
        time.sleep(max(0.0, begun + played * PACKET_SECONDS - time.monotonic()))
    return played


@pytest.mark.parametrize("round_trip", [0.02, 0.1, 0.18])
def test_no_music_leaves_before_the_provider_has_turned(fw: Firewall, round_trip: float) -> None:
    took = LONGEST_SECONDS
    while took >= LONGEST_SECONDS:  # again, if the machine has paused for longer
        fw.moh("detach", check=False)
        fw.attach("--timeout", "60s")
        talk(fw)
        begun = time.monotonic()
        played = play_for(fw, round_trip)
        fw.wan.send(udp(PROVIDER, HOLD))
        took = time.monotonic() - begun
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 5)
        seen = left(fw)
    assert seen == [HOLD] * 5
    assert held_back(fw) == played
    # The next hold has another port again, and the provider sends to the phantom port already.
    fw.lan.send(udp(NEXT, PROVIDER))
    assert left(fw) == [HOLD]


def test_a_call_whose_port_is_another_goes_on(fw: Firewall) -> None:
    """No hold: the provider does not turn, and UCM's packets pass before long."""
    fw.attach("--timeout", "60s")
    talk(fw)
    played = play_for(fw, 2 * LONGEST_SECONDS)

    def passes() -> bool:
        fw.lan.send(udp(MUSIC, PROVIDER))
        return bool(left(fw))

    until("it passes", passes)
    # Not one after that, however long the machine takes.
    fw.lan.send(*[udp(MUSIC, PROVIDER), udp(VOICE, PROVIDER)] * 5)
    assert len(left(fw)) == 10
    assert 0 < held_back(fw) <= played


def test_a_call_whose_port_matches_loses_nothing(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    for port in (24576, 25000, 26000):
        fw.wan.send(udp(PROVIDER, f"{PUBLIC}:{port}"))
        fw.lan.send(*[udp(f"{UCM}:{port}", PROVIDER)] * 5)
        assert left(fw) == [f"{PUBLIC}:{port}"] * 5
    assert held_back(fw) == 0
