"""CHECKSUM_COMPLETE: where a driver has summed the whole packet, that sum follows the rewrite."""

import errno

import pytest
from scapy.layers.inet import UDP, IPOption_NOP
from scapy.packet import Packet

from moh_ebpf.layout import State
from moh_ebpf.registry.record import Role
from tests.packets.bench import COMPLETE, REDIRECT, UNSPEC, Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import flow, udp

HOLD, MUSIC = f"{PUBLIC}:4000", f"{UCM}:24576"


def without_checksum() -> Packet:
    packet = udp(MUSIC, PROVIDER)
    packet[UDP].chksum = 0
    return packet


@pytest.mark.parametrize(
    "packet",
    [
        udp(MUSIC, PROVIDER),
        udp(MUSIC, PROVIDER, b"\x80\0odd"),
        udp(MUSIC, PROVIDER, options=[IPOption_NOP()] * 8),
        without_checksum(),
    ],
    ids=["plain", "odd length", "IP options", "no checksum"],
)
@pytest.mark.parametrize(("role", "verdict"), [(Role.ENFORCE, UNSPEC), (Role.BYPASS, REDIRECT)])
def test_the_sum_of_the_whole_packet_follows(
    programs: Bench, role: Role, verdict: int, packet: Packet
) -> None:
    """Twice: bypass sends the first packet by the route, and the second by the hop it keeps."""
    programs.set_peer(PROVIDER, PeerState(State.MOH, HOLD))
    for turn in range(2):
        if turn and role is Role.BYPASS:
            programs.trust_hops()
        try:
            found, out = programs.run(role, packet, flags=COMPLETE)
        except OSError as error:
            if error.errno == errno.EINVAL:
                pytest.skip("this kernel's test runs know no CHECKSUM_COMPLETE")
            raise
        assert found == verdict
        assert flow(type(packet)(out[14:])) == (HOLD, PROVIDER)
