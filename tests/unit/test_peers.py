"""From the maps' bytes to peers, their order, and rates between two snapshots."""

import socket
import struct
from typing import Any

import pytest

from moh_ebpf import layout
from moh_ebpf.calls import peers
from moh_ebpf.calls.peers import Peer, PeerRate, SipCall, call_of
from moh_ebpf.calls.rtp import Rtp
from moh_ebpf.layout import Evidence, State
from tests.support.samples import about, later, peer, snapshot

SECOND = 10**9
NOW = 5_000 * SECOND


def entry(
    *,
    address: str = "203.0.113.10",
    port: int = 20000,
    state: int = State.MOH,
    public: str = "198.51.100.2",
    public_port: int = 4000,
    wan: int = 0,
    **fields: int | bytes,
) -> tuple[bytes, bytes]:
    """A map's entry as the programs write it: bytes in network order inside, times in ns."""
    key = layout.ENDPOINT.pack(socket.inet_aton(address), struct.pack("!H", port))
    heard = layout.HEARD.pack(socket.inet_aton(public), struct.pack("!H", public_port), state, wan)
    streams = dict.fromkeys(("in_rtp", "out_rtp"), bytes(layout.RTP.size))
    words = dict.fromkeys(("by_rtcp", "signalled"), bytes(layout.HEARD.size))
    words |= {"moved_ssrc": bytes(4)}
    words |= dict.fromkeys(("out_from", "out_before"), bytes(layout.ENDPOINT.size))
    times = {"last_seen": NOW, "since": NOW, "told": 1}
    values = dict.fromkeys(layout.PEER_FIELDS, 0) | streams | words | times | fields
    return key, layout.PEER.pack(heard, *[values[name] for name in layout.PEER_FIELDS[1:]])


def decode(*entries: tuple[bytes, bytes], timeout: float = 1.0, **options: Any) -> list[Peer]:
    unpacked = [(layout.ENDPOINT.unpack(key), layout.PEER.unpack(value)) for key, value in entries]
    given: dict[str, Any] = {"now": NOW, "timeout": timeout, "interfaces": {0: "eth1", 1: "ppp0"}}
    return peers.decode(unpacked, **(given | options))


def test_every_field_is_decoded() -> None:
    fields: dict[str, Any] = {
        "last_seen": NOW - SECOND // 4,
        "since": NOW - 90 * SECOND,
        "longest_gap": SECOND // 2,
        "in_packets": 1,
        "in_bytes": 200,
        "out_packets": 2**40,
        "out_bytes": 2**50,
        "out_last": NOW - SECOND // 50,
        "in_rtp": layout.RTP.pack(
            0,
            5 * 10**7,
            16 * 10**6,
            0,
            0,
            0,
            0,
            b"\0\0\0\7",
            b"\0\0\0\6",
            5,
            4,
            3,
            10,
            9,
            125000,
            19,
            8,
        ),
        "hop_checked": 7,
        "hop_dst": 8,
        "hop_src": 9,
    }
    assert decode(entry(state=State.TWO, public_port=24576, wan=1, **fields)) == [
        Peer(
            address="203.0.113.10",
            port=20000,
            state=State.TWO,
            expired=False,
            public_address="198.51.100.2",
            public_port=24576,
            interface="ppp0",
            age=about(0.25),
            since=about(90),
            longest_gap=about(0.5),
            in_packets=1,
            in_bytes=200,
            out_packets=2**40,
            out_bytes=2**50,
            out_age=about(0.02),
            in_rtp=Rtp(7, 8, 10, 1, about(0.001), about(0.05)),
            out_rtp=None,
        )
    ]


def test_peers_keep_the_order_of_the_map() -> None:
    ports = [20003, 20001, 20002]
    assert [each.port for each in decode(*(entry(port=port) for port in ports))] == ports


@pytest.mark.parametrize(
    ("silence", "expired"), [(0, False), (SECOND - 1000, False), (SECOND, True), (SECOND + 1, True)]
)
def test_a_peer_is_forgotten_when_its_silence_reaches_the_timeout(
    silence: int, expired: bool
) -> None:
    (one,) = decode(entry(last_seen=NOW - silence))
    assert one.expired is expired


RTCP = layout.HEARD.pack(socket.inet_aton("198.51.100.3"), struct.pack("!H", 4000), State.MOH, 1)


@pytest.mark.parametrize(
    ("silence", "reported", "identified", "expired"),
    [
        (0.5, 3, Evidence.RTCP, False),  # it has decided since: RTP would have taken that back
        (0.5, 16, Evidence.RTP, False),
        (1.5, 3, Evidence.RTCP, False),
        (100, 14.9, Evidence.RTCP, False),
        (100, 15, Evidence.RTCP, True),
    ],
)
def test_rtcp_speaks_where_rtp_is_silent(
    silence: float, reported: float, identified: Evidence, expired: bool
) -> None:
    (one,) = decode(
        entry(
            state=State.TWO,
            last_seen=NOW - round(silence * SECOND),
            by_rtcp=RTCP,
            rtcp_at=NOW - round(reported * SECOND),
        ),
        rtcp_timeout=15.0,
    )
    by_rtcp = identified is Evidence.RTCP
    assert (one.identified, one.expired) == (identified, expired)
    assert (one.state, one.public_address, one.interface) == (
        (State.MOH, "198.51.100.3", "ppp0") if by_rtcp else (State.TWO, "198.51.100.2", "eth1")
    )
    assert one.age == pytest.approx(reported if by_rtcp else silence)


def test_one_that_is_known_by_rtcp_alone() -> None:
    """Its last_seen may lie before the kernel's clock began."""
    values: dict[str, Any] = {
        "state": 0,
        "last_seen": 2**64 - 5,
        "by_rtcp": RTCP,
        "rtcp_at": NOW - SECOND,
    }
    (one,) = decode(entry(**values), rtcp_timeout=15.0)
    assert (one.state, one.identified, one.expired) == (State.MOH, Evidence.RTCP, False)


# What signalling says: without a WAN, and on hold.
SAID = layout.HEARD.pack(
    socket.inet_aton("198.51.100.9"), struct.pack("!H", 4000), State.MOH, layout.NO_WAN
)


def signalled(lease: float, **fields: Any) -> dict[str, Any]:
    """The fields of a peer of which signalling says SAID for so many seconds to come."""
    return {"signalled": SAID, "signalled_until": NOW + round(lease * SECOND)} | fields


def test_rtp_that_says_the_same_as_signalling_is_what_it_is_known_by() -> None:
    """It says where music comes from, too, and by which WAN."""
    (one,) = decode(entry(wan=1, **signalled(60, last_seen=NOW - SECOND // 4)))
    assert (one.state, one.identified, one.expired) == (State.MOH, Evidence.RTP, False)
    assert (one.public_address, one.interface) == ("198.51.100.2", "ppp0")
    assert one.age == about(0.25)


def test_rtp_that_contradicts_signalling_is_not_believed() -> None:
    (one,) = decode(entry(state=State.TWO, public_port=24576, **signalled(60)))
    assert (one.state, one.identified, one.expired) == (State.MOH, Evidence.SIGNALLING, False)
    assert (one.public, one.interface) == ("198.51.100.9:4000", "")
    assert one.to_json()["interface"] is None
    assert one.age == 0  # it is heard all the same


@pytest.mark.parametrize(("state", "public"), [(State.MOH, "198.51.100.2"),
                                               (State.TWO, "198.51.100.9")])  # fmt: skip
def test_signalling_speaks_where_rtp_is_silent(state: State, public: str) -> None:
    """Where its RTP was sent to still counts, if that has said the same."""
    (one,) = decode(entry(state=state, **signalled(60, last_seen=NOW - 100 * SECOND)))
    assert (one.state, one.identified, one.expired) == (State.MOH, Evidence.SIGNALLING, False)
    assert (one.public_address, one.age) == (public, about(100))


@pytest.mark.parametrize(("lease", "counts"), [(1e-6, True), (0, False), (-5, False)])
@pytest.mark.parametrize("silence", [0.5, 100])
def test_when_the_lease_of_signalling_is_over_rtp_counts_again(
    lease: float, counts: bool, silence: float
) -> None:
    last_seen = NOW - round(silence * SECOND)
    (one,) = decode(entry(state=State.TWO, **signalled(lease, last_seen=last_seen)))
    # Of what is over, the last word is shown.
    is_last = counts or silence > 5
    by_rtp = (State.TWO, Evidence.RTP, silence >= 1)
    assert (one.state, one.identified, one.expired) == (
        (State.MOH, Evidence.SIGNALLING, not counts) if is_last else by_rtp
    )


@pytest.mark.parametrize(("lease", "expired"), [(60, False), (0, True), (-5, True)])
def test_one_that_signalling_names_and_that_was_never_heard(lease: float, expired: bool) -> None:
    """Its last_seen may lie before the kernel's clock began."""
    never: dict[str, Any] = {"state": 0, "public": "0.0.0.0", "public_port": 0}
    times = {"last_seen": 2**64 - 5, "since": NOW - 7 * SECOND}
    (one,) = decode(entry(**never, **signalled(lease, **times)))
    assert (one.state, one.identified, one.expired) == (State.MOH, Evidence.SIGNALLING, expired)
    assert (one.public, one.interface) == ("198.51.100.9:4000", "")
    assert (one.age, one.since) == (about(7), about(7))


def test_rtcp_counts_again_when_the_lease_of_signalling_is_over() -> None:
    """What the kernel has decided by RTCP was cleared when signalling spoke: it is later."""
    fields: dict[str, Any] = {"state": State.TWO, "last_seen": NOW - 100 * SECOND}
    (one,) = decode(
        entry(**fields, **signalled(-5, by_rtcp=RTCP, rtcp_at=NOW - SECOND)), rtcp_timeout=15.0
    )
    assert (one.identified, one.public_address) == (Evidence.RTCP, "198.51.100.3")


def test_on_a_deaf_wan_a_hold_that_is_signalled_goes_on() -> None:
    """Nothing can end a hold that RTP alone has told of; of this one, signalling says the end."""
    silent: dict[str, Any] = {"last_seen": NOW - 100 * SECOND}
    assert decode(entry(**silent), timeout=3600, deaf={0})[0].expired
    assert decode(entry(**signalled(-5, **silent)), timeout=3600, deaf={0})[0].expired
    for timeout in (1, 3600):
        (one,) = decode(entry(**signalled(60, **silent)), timeout=timeout, deaf={0})
        assert not one.expired


def test_calls_that_signalling_has_ended_are_left_out_as_others_are() -> None:
    never: dict[str, Any] = {"state": 0, "last_seen": 2**64 - 5}
    over = [entry(port=20000 + n, **never, **signalled(-n)) for n in range(8)]
    assert [each.port for each in decode(*over, forgotten_for=5.0)] == [20000 + n for n in range(5)]


def test_each_has_the_call_that_signalling_names_it_in() -> None:
    calls = {(socket.inet_aton("203.0.113.10"), struct.pack("!H", 20002)): SipCall("a@b", "1", "2")}
    one, other = decode(entry(port=20002), entry(port=20003), calls=calls)
    assert (one.call, other.call) == (SipCall("a@b", "1", "2"), None)
    assert [one.to_json()[name] for name in ("call_id", "caller", "called")] == ["a@b", "1", "2"]


def test_a_call_by_its_texts() -> None:
    assert call_of(b"a@b".ljust(128, b"\0"), bytes(32), bytes(32)) == SipCall("a@b", None, None)
    numbers = (b"100".ljust(32, b"\0"), b"+4930123".ljust(32, b"\0"))
    assert call_of(b"x" * 128, *numbers) == SipCall("x" * 128, "100", "+4930123")


def test_a_call_id_gives_a_terminal_no_orders() -> None:
    """Strangers have written it."""
    assert call_of(b"\x1b[2J\ra\0b\xff@c", b"\x07", b"") == SipCall("?[2J?a?b?@c", "?", None)


def test_what_nobody_is_told_of_is_left_out() -> None:
    noise = entry(told=0)
    assert decode(noise) == []
    assert len(decode(noise, untold=True)) == 1


def test_without_quality_there_are_no_streams() -> None:
    stream = layout.RTP.pack(0, 0, 0, 0, 0, 0, 0, bytes(4), bytes(4), 0, 0, 0, 2, 2, 0, 0, 0)
    (one,) = decode(entry(in_rtp=stream, out_rtp=stream), quality=False)
    assert (one.in_rtp, one.out_rtp) == (None, None)


def test_the_timeout_is_the_attached_one() -> None:
    silent = entry(last_seen=NOW - 2 * SECOND)
    assert decode(silent, timeout=1.5)[0].expired
    assert not decode(silent, timeout=2.5)[0].expired


def test_a_packet_that_came_while_the_map_was_read_is_no_packet_from_the_future() -> None:
    (one,) = decode(entry(last_seen=NOW + 1000, since=NOW + 1000))
    assert (one.age, one.since, one.expired) == (0, 0, False)


def test_calls_long_past_are_left_out() -> None:
    silences = [0, 5 * SECOND, 6 * SECOND, 7 * SECOND, 4000 * SECOND]
    entries = [entry(port=20000 + n, last_seen=NOW - silence) for n, silence in enumerate(silences)]
    assert [each.port for each in decode(*entries, forgotten_for=5.0)] == [20000, 20001]
    assert len(decode(*entries)) == len(entries)


def test_an_interface_that_is_no_more_is_said_to_be_gone() -> None:
    assert decode(entry(wan=3))[0].interface == "(gone)"


def test_json_has_the_documented_fields() -> None:
    (one,) = decode(entry(last_seen=NOW - SECOND // 8, in_packets=3, in_bytes=600, out_packets=2))
    assert one.to_json() == {
        "address": "203.0.113.10",
        "port": 20000,
        "state": "moh",
        "identified": "rtp",
        "expired": False,
        "public_address": "198.51.100.2",
        "public_port": 4000,
        "interface": "eth1",
        "call_id": None,
        "caller": None,
        "called": None,
        "age": 0.125,
        "since": 0,
        "longest_gap": 0,
        "inbound": {"packets": 3, "bytes": 600, "rtp": None},
        "outbound": {"packets": 2, "bytes": 0, "age": None, "rtp": None},
    }


def test_hold_music_is_first_then_the_latest_change_and_the_forgotten_last() -> None:
    order = [
        peer(4, State.MOH, since=3.0),
        peer(1, State.MOH, since=60.0),
        peer(2, State.MOH, since=60.0),
        peer(3, State.TWO, since=1.0),
        peer(5, State.TWO, since=2.0),
        peer(6, State.MOH, since=0.5, expired=True),
        peer(7, State.TWO, since=0.1, expired=True),
    ]
    for most in range(len(order) + 1):
        assert peers.by_interest(order[::-1], most) == order[:most]
    assert peers.by_interest(order[::-1]) == order


def test_without_an_earlier_snapshot_there_are_no_rates() -> None:
    rates = peers.rates(None, snapshot(peer(), rewritten=5))
    assert (rates.peers, rates.counters) == ({}, {})


def test_two_snapshots_of_one_moment_have_no_rates() -> None:
    once = snapshot(peer(), rewritten=5)
    assert peers.rates(once, once).counters == {}


def test_rates_are_per_second_whatever_the_interval() -> None:
    before = snapshot(peer(1), peer(2), rewritten=1000, consumed=7)
    rates = peers.rates(before, later(before, packets=125, seconds=2.5, rewritten=250))
    assert rates.peers == {
        "203.0.113.1:20001": PeerRate(50, 50),
        "203.0.113.2:20002": PeerRate(50, 50),
    }
    assert (rates.counters["rewritten"], rates.counters["consumed"]) == (100, 0)


def test_in_and_out_are_not_mixed_up() -> None:
    before = snapshot(peer(1, in_packets=100, out_packets=10))
    after = snapshot(peer(1, in_packets=150, out_packets=13), time=101.0)
    assert peers.rates(before, after).peers["203.0.113.1:20001"] == PeerRate(50, 3)


def test_a_peer_that_is_new_has_counted_from_zero() -> None:
    after = snapshot(peer(1, in_packets=20, out_packets=10), time=102.0)
    assert peers.rates(snapshot(), after).peers["203.0.113.1:20001"] == PeerRate(10, 5)


def test_what_shrank_has_counted_from_zero() -> None:
    before = snapshot(peer(1, in_packets=5000, out_packets=5000), rewritten=5000)
    after = snapshot(peer(1, in_packets=30, out_packets=20), time=101.0, rewritten=20)
    rates = peers.rates(before, after)
    assert rates.peers["203.0.113.1:20001"] == PeerRate(30, 20)
    assert rates.counters["rewritten"] == 20


def test_a_peer_that_is_gone_has_no_rate() -> None:
    rates = peers.rates(snapshot(peer(1), peer(2)), snapshot(peer(2), time=101.0))
    assert list(rates.peers) == ["203.0.113.2:20002"]
