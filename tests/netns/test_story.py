"""The article's story, packet by packet, on a masquerading firewall."""

import json

from scapy.layers.inet import UDP

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import flow, udp

HOLD = f"{PUBLIC}:4000"


def ucm_sends(fw: Firewall, port: int, count: int, to: str = PROVIDER) -> list[tuple[str, str]]:
    fw.lan.send(*[udp(f"{UCM}:{port}", to)] * count)
    return [flow(packet) for packet in fw.wan.sent() if UDP in packet]


def counters(fw: Firewall) -> dict[str, int]:
    """Those that are not 0, but for the sums over RTP streams."""
    shown = json.loads(fw.moh("status", "--json").stdout)["counters"]
    return {name: n for name, n in shown.items() if n and not name.startswith("rtp_")}


def test_hold_call_hold_again(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    assert ucm_sends(fw, 24576, 3) == []  # nobody knows the provider yet

    fw.wan.send(udp(PROVIDER, HOLD))
    assert ucm_sends(fw, 24576, 5) == [(HOLD, PROVIDER)] * 5

    fw.wan.send(udp(PROVIDER, f"{PUBLIC}:24600"))
    assert ucm_sends(fw, 24600, 5) == [(f"{PUBLIC}:24600", PROVIDER)] * 5

    fw.wan.send(udp(PROVIDER, HOLD))
    assert ucm_sends(fw, 24700, 5) == [(HOLD, PROVIDER)] * 5

    assert counters(fw) == {
        "learned_moh": 1,
        "moh_to_two": 1,
        "two_to_moh": 1,
        "consumed": 2,
        "rewritten": 10,
        "bypassed": 10,
        "passed_two": 5,
        "dropped_unidentified": 3,
    }
    assert fw.lan.sent() == []  # RTP to the phantom port ended at the firewall
