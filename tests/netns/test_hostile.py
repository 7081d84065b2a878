"""Hostile packets at the WAN, on a real wire: nothing breaks, no live stream loses any.

The oracle (tests/packets/model.py) says of each what learn must make of it.
"""

import json
import re
import subprocess
import time
from ipaddress import IPv4Address
from random import Random

from moh_ebpf.kernel.tc import Hook
from tests.packets import model
from tests.packets.model import Model
from tests.packets.test_oracle import packet
from tests.support.firewall import PUBLIC, UCM, Firewall
from tests.support.foreign import counter
from tests.support.wire import rtp, udp

PACKETS = 100_000
STREAMS = 20
# Between two rounds of the live streams.
BURST = 500

LIVE = [f"198.18.0.{n}:{20000 + 2 * n}" for n in range(1, STREAMS + 1)]

# What leaves is hold music, and nothing of what the firewall answers or sends back.
QUIET = """
table ip quiet {
    chain output { type filter hook output priority filter; policy drop; };
    chain forward { type filter hook forward priority filter; iifname "wan" drop; };
};
"""


def hostile(random: Random, frame: bytes) -> bytes:
    """The frame, or what a hostile neighbour makes of it: bits flipped, cut, or noise."""
    kind = random.randrange(4)
    if kind == 0:
        return frame
    mangled = bytearray(frame)
    if kind == 1:
        for _ in range(random.randrange(1, 4)):
            mangled[random.randrange(12, len(mangled))] ^= 1 << random.randrange(8)
    elif kind == 2:
        del mangled[random.randrange(14, len(mangled)) :]
    else:
        mangled[14:] = random.randbytes(random.randrange(0, 200))
    return bytes(mangled)


def untag(frame: bytes) -> tuple[bytes, int]:
    """What the kernel shows to tc: the frame without its (outer) VLAN tag, and the VID, or 0.
    Nothing of one that is too short for its tag."""
    if frame[12:14] not in (b"\x81\x00", b"\x88\xa8"):
        return frame, 0
    if len(frame) < 20:
        return b"", 0
    return frame[:12] + frame[16:], int.from_bytes(frame[14:16], "big") & 0x0FFF


def trouble() -> list[str]:
    """What the kernel has complained of so far."""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return re.findall(
        r"^.*(?:BUG:|WARNING:|Oops|general protection|skbuff: ).*$", said, re.MULTILINE
    )


def test_hostile_packets_at_the_wan(fw: Firewall) -> None:
    random = Random(7)
    before = trouble()
    expected = Model(
        ucm=set(), public={IPv4Address(PUBLIC)}, providers=[],
        leaves_by_wan=lambda _: True, lan_mac=b"", timeout=3600.0,
    )  # fmt: skip
    played = [bytes(fw.lan.frame(udp(f"{UCM}:24576", endpoint))) for endpoint in LIVE]
    to_us = bytes.fromhex(fw.wan.firewall_mac.replace(":", ""))
    passes = rounds = 0
    with (
        counter(fw, "wan", Hook.INGRESS, 9000) as let_in,
        counter(fw, "wan", Hook.EGRESS, 9000) as left,
    ):
        fw.namespace.nft(QUIET)
        fw.attach("--timeout", "60m")  # the model's time is about the kernel's
        for number in range(PACKETS):
            expected.now = time.monotonic()
            if number % BURST == 0:
                rounds += 1
                for endpoint in LIVE:
                    heard = udp(endpoint, f"{PUBLIC}:4000", rtp(rounds))
                    frame = bytes(fw.wan.frame(heard))
                    expected.learn(frame)
                    fw.wan.send_frame(frame)
                for frame in played:
                    fw.lan.send_frame(frame)
            frame = hostile(random, packet(random, inbound=True, late=False))
            frame = to_us + frame[6:]
            shown, vid = untag(frame)
            verdict = model.UNSPEC if vid else expected.learn(shown)[0]
            passes += verdict == model.UNSPEC and shown[12:14] == b"\x08\x00"
            fw.wan.send_frame(frame)
        assert let_in.packets == passes
        assert left.packets == rounds * STREAMS
    shown = json.loads(fw.moh("status", "--json").stdout)["counters"]
    assert {
        name: count
        for name, count in shown.items()
        if count
        and name not in ("rewritten", "bypassed", "events_unread")
        and not name.startswith("rtp_")
    } == dict(+expected.counters)
    peers = json.loads(fw.moh("peers", "--json", "--all").stdout)
    assert {
        (peer["address"], peer["port"]): (
            peer["state"].upper(), peer["public_port"], peer["inbound"]["packets"]
        )
        for peer in peers
    } == {
        (str(address), port): (peer.state, peer.public and peer.public[1], peer.inbound[0])
        for (address, port), peer in expected.peers.items()
        if peer.told
    }  # fmt: skip
    assert len(peers) > STREAMS
    assert trouble() == before
