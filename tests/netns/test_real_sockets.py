"""Real sockets on both sides: the kernel's own checksums and offloads, and a receiver that checks.

What arrives at the provider's socket has been through its kernel: a packet with a wrong checksum,
or cut at the wrong place, would not be there.
"""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.support import kernels
from tests.support.article import NFT_NETDEV, careless, nft_spoils_zero
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.hosts import (
    Address,
    Capture,
    Hosts,
    address,
    ethtool,
    hosts,
    nothing_more,
    receive,
    send,
    send_no_checksums,
    speech,
)
from tests.support.waiting import until
from tests.support.wire import rtp

COUNT = 23
HOLD = (PUBLIC, 4000)
ROUTED_UCM = "192.0.2.10"

# UCM takes a new port every time, and so do the tests that share a firewall.
PORTS = count(24576, 2)

# Who leaves the UDP checksum to the device (CHECKSUM_PARTIAL): UCM's kernel, the firewall's.
# Where only UCM's does, the firewall completes at the WAN what we have rewritten as partial.
OFFLOADS = {
    "partial all the way": (True, True),
    "completed at the WAN": (True, False),
    "complete from UCM on": (False, False),
}
offloads = pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
one_by_one_and_gso = pytest.mark.parametrize("gso", [False, True], ids=["one by one", "GSO"])


@pytest.fixture(scope="module")
def nat() -> Iterator[Hosts]:
    """UCM behind a masquerading firewall: learn, enforce and bypass."""
    with hosts() as made:
        made.attach("--lan", "lan", "--ucm", UCM)
        yield made


@pytest.fixture(scope="module")
def routed() -> Iterator[Hosts]:
    """A firewall that does not NAT, attached at the WAN alone: learn and enforce."""
    with hosts(masquerade=False) as made:
        made.attach("--ucm", UCM)
        yield made


@pytest.fixture(scope="module")
def public_ucm() -> Iterator[Hosts]:
    """The same, and UCM's own address is the one that the provider sends to."""
    with hosts(ucm=ROUTED_UCM, masquerade=False) as made:
        made.attach("--ucm", ROUTED_UCM, "--public", ROUTED_UCM)
        yield made


@pytest.fixture(scope="module")
def on_firewall() -> Iterator[Hosts]:
    """UCM on the firewall itself, with the firewall's address."""
    with hosts() as made:
        made.attach("--ucm", PUBLIC)
        yield replace(made, ucm=made.firewall, ucm_address=PUBLIC)


def set_offload(place: Hosts, offload: tuple[bool, bool]) -> None:
    ethtool(place.ucm, "eth0", tx=offload[0])
    ethtool(place.firewall, "wan", tx=offload[1])


def hold(
    place: Hosts, public: Address = HOLD, *, gso: bool = False, checksums: bool = True
) -> tuple[Address, list[bytes]]:
    """On hold: what UCM plays comes to the provider from the phantom port, whole and in order.

    Returns UCM's own address and the music, for those who look on.
    """
    port, music = next(PORTS), speech(COUNT)
    with (
        closing(place.provider_socket(address(PROVIDER))) as provider,
        closing(place.ucm_socket(port, address(PROVIDER))) as ucm,
    ):
        if not checksums:
            send_no_checksums(ucm)
        provider.sendto(rtp(), public)
        send(ucm, music, gso=gso)
        assert receive(provider, COUNT) == [(packet, public) for packet in music]
    return (place.ucm_address, port), music


def call(place: Hosts, public: str, *, gso: bool, first_heard: bool) -> None:
    """In a call each end hears all that the other says. `first_heard`: also what comes first."""
    port = next(PORTS)
    opening, spoken, answered = rtp(), speech(COUNT), speech(COUNT)
    with (
        closing(place.provider_socket(address(PROVIDER))) as provider,
        closing(place.ucm_socket(port, address(PROVIDER))) as ucm,
    ):
        provider.connect((public, port))
        provider.send(opening)
        send(ucm, spoken, gso=gso)
        assert receive(provider, COUNT) == [(packet, (public, port)) for packet in spoken]
        send(provider, answered, gso=gso)
        heard = [opening, *answered] if first_heard else answered
        assert receive(ucm, len(heard)) == [(packet, address(PROVIDER)) for packet in heard]


@contextmanager
def merging_at_lan(place: Hosts, feature: str) -> Iterator[None]:
    """UCM's bursts are cut up as they leave it, and GRO merges them at the firewall's LAN."""
    ethtool(place.ucm, "eth0", tx_udp_segmentation=False)
    ethtool(place.firewall, "lan", gro=True, **{feature: True})
    try:
        yield
    finally:
        ethtool(place.firewall, "lan", gro=False, **{feature: False})
        # Without checksum offload, segmentation cannot be switched on again.
        ethtool(place.ucm, "eth0", tx=True, tx_udp_segmentation=True)


@offloads
@one_by_one_and_gso
def test_hold_music_through_a_nat(nat: Hosts, offload: tuple[bool, bool], gso: bool) -> None:
    set_offload(nat, offload)
    hold(nat, gso=gso)


@offloads
@one_by_one_and_gso
def test_a_call_through_a_nat(nat: Hosts, offload: tuple[bool, bool], gso: bool) -> None:
    set_offload(nat, offload)
    call(nat, PUBLIC, gso=gso, first_heard=False)


@one_by_one_and_gso
def test_holds_and_calls_by_turns(nat: Hosts, gso: bool) -> None:
    for _ in range(3):
        hold(nat, gso=gso)
        call(nat, PUBLIC, gso=gso, first_heard=False)


@pytest.mark.parametrize("name", ["nat", "routed"])
@one_by_one_and_gso
def test_captures_show_what_came_and_what_left(
    request: pytest.FixtureRequest, name: str, gso: bool, tmp_path: Path
) -> None:
    """Packets are rewritten while others hold clones of them, and those must not change."""
    place = request.getfixturevalue(name)
    set_offload(place, OFFLOADS["partial all the way"])
    with (
        closing(Capture(place.firewall, "lan", tmp_path)) as lan,
        closing(Capture(place.firewall, "wan", tmp_path)) as wan,
    ):
        source, music = hold(place, gso=gso)
        seen = [b"".join(music)] if gso else music
        assert lan.heard(len(seen)) == {source: seen}
        assert wan.heard(1 + len(seen)) == {address(PROVIDER): [rtp()], HOLD: seen}


@one_by_one_and_gso
def test_a_neighbour_not_known_yet_costs_no_packet(nat: Hosts, gso: bool) -> None:
    """ARP takes place while hold music waits for it, and keeps its order."""
    set_offload(nat, OFFLOADS["partial all the way"])
    new = (address(PROVIDER)[0], next(PORTS))  # of a new peer, no next hop is remembered
    music = speech(COUNT)
    with (
        closing(nat.provider_socket(new)) as provider,
        closing(nat.ucm_socket(next(PORTS), new)) as ucm,
    ):
        provider.sendto(rtp(), HOLD)
        forget = ("sh", "-c", "ip neigh flush dev wan && ip neigh show dev wan")
        until("no neighbour is known", lambda: nat.firewall.run(*forget).stdout == "")
        send(ucm, music, gso=gso)
        assert receive(provider, COUNT) == [(packet, HOLD) for packet in music]


@pytest.mark.parametrize("feature", ["rx_udp_gro_forwarding", "rx_gro_list"])
@offloads
def test_hold_music_merged_by_gro(
    nat: Hosts, feature: str, offload: tuple[bool, bool], tmp_path: Path
) -> None:
    """GRO makes one packet of many, in two ways; each is cut up again in a way of its own.

    Packets without a checksum are not among them: the kernel merges none.
    """
    kernels.skip_before(5, 13, "a veth merges nothing (GRO) without XDP")
    set_offload(nat, offload)
    with (
        merging_at_lan(nat, feature),
        closing(Capture(nat.firewall, "lan", tmp_path)) as lan,
    ):
        source, music = hold(nat, gso=True)
        assert lan.heard(1) == {source: [b"".join(music)]}


def test_each_datagram_of_one_packet_counts() -> None:
    """A GSO packet is several of RTP, in a row: none is lost. Two of them are a stream."""
    with hosts() as place:
        place.attach("--lan", "lan", "--ucm", UCM)
        set_offload(place, (True, True))
        music = speech(COUNT)
        with (
            closing(place.provider_socket(address(PROVIDER))) as provider,
            closing(place.ucm_socket(next(PORTS), address(PROVIDER))) as ucm,
        ):
            provider.sendto(rtp(), HOLD)
            for part in (music[: COUNT // 2], music[COUNT // 2 :]):
                send(ucm, part, gso=True)
            assert receive(provider, COUNT) == [(packet, HOLD) for packet in music]
        (peer,) = json.loads(place.firewall.moh("peers", "--json").stdout)
    played = peer["outbound"]["rtp"]
    assert (played["expected"], played["lost"]) == (COUNT, 0)


def test_music_without_checksums_is_heard(nat: Hosts) -> None:
    hold(nat, checksums=False)


def test_music_without_checksums_is_not_heard_through_nftables() -> None:
    """Its garbage is what a receiver throws away; also, that ours does throw something away."""
    if not nft_spoils_zero():
        pytest.skip("this nft is 1.1 or later, and leaves a checksum of 0 alone")
    with (
        hosts() as place,
        closing(place.provider_socket(address(PROVIDER))) as provider,
        closing(place.ucm_socket(next(PORTS), address(PROVIDER))) as ucm,
    ):
        place.firewall.nft(careless(NFT_NETDEV))
        provider.sendto(rtp(), HOLD)
        send(ucm, [rtp()])
        assert receive(provider, 1) == [(rtp(), HOLD)]
        send_no_checksums(ucm)
        send(ucm, [rtp()] * COUNT)
        assert nothing_more(provider) == []
        assert place.bad_checksums() == COUNT


@offloads
@one_by_one_and_gso
def test_hold_music_routed(routed: Hosts, offload: tuple[bool, bool], gso: bool) -> None:
    set_offload(routed, offload)
    hold(routed, gso=gso)


def test_hold_music_routed_without_checksums(routed: Hosts) -> None:
    hold(routed, checksums=False)


@offloads
@one_by_one_and_gso
def test_holds_and_calls_with_a_public_ucm(
    public_ucm: Hosts, offload: tuple[bool, bool], gso: bool
) -> None:
    set_offload(public_ucm, offload)
    for _ in range(2):
        hold(public_ucm, (ROUTED_UCM, 4000), gso=gso)
        # Nothing stands between the two: UCM hears the provider's first packet as well.
        call(public_ucm, ROUTED_UCM, gso=gso, first_heard=True)


# GSO with complete checksums is not here: where the device computes none, the kernel (6.18) lets
# a socket's GSO packet go with a partial checksum marked as complete. The kernel's own NAT spoils
# that as much as ours does.
@pytest.mark.parametrize(
    ("partial", "gso"),
    [(True, False), (True, True), (False, False)],
    ids=["partial", "partial GSO", "complete"],
)
def test_holds_and_calls_with_ucm_on_the_firewall(
    on_firewall: Hosts, partial: bool, gso: bool
) -> None:
    ethtool(on_firewall.firewall, "wan", tx=partial)
    for _ in range(2):
        hold(on_firewall, gso=gso)
        call(on_firewall, PUBLIC, gso=gso, first_heard=False)
