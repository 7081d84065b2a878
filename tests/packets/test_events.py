"""What the programs tell: changes of state, and the first music of a hold. Nothing else."""

import struct

import pytest
from scapy.packet import Packet

from moh_ebpf import layout
from moh_ebpf.calls.events import KernelEvent
from moh_ebpf.layout import Kind, State
from moh_ebpf.registry.record import Role
from tests.packets.bench import Bench, PeerState, bench
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import udp

HOLD, CALL = f"{PUBLIC}:4000", f"{PUBLIC}:24600"
RTCP = b"\x80\xc8\0\6" + bytes(24)


def heard(public: str, payload: bytes | None = None) -> Packet:
    return udp(PROVIDER, public, payload)


def sent(payload: bytes | None = None) -> Packet:
    return udp(f"{UCM}:24576", PROVIDER, payload)


def told(record: KernelEvent) -> tuple[str, str, str, int]:
    """The kind, the endpoint, what it sends to, and the state before."""
    address, port, state, _ = layout.HEARD.unpack(record.heard)
    assert State(state) is (State.MOH if _text(address, port) == HOLD else State.TWO)
    return (Kind(record.kind).name, _text(record.address, record.port), _text(address, port),
            record.before)  # fmt: skip


def _text(address: bytes, port: bytes) -> str:
    return f"{'.'.join(map(str, address))}:{struct.unpack('!H', port)[0]}"


def test_each_change_of_state_and_no_packet_besides(programs: Bench) -> None:
    programs.learn(HOLD, 1, 2, 3)
    programs.learn(CALL, 4, 5)
    programs.learn(HOLD, 6)
    assert [told(each) for each in programs.events()] == [
        ("LEARNED", PROVIDER, HOLD, 0),
        ("CHANGED", PROVIDER, CALL, State.MOH),
        ("CHANGED", PROVIDER, HOLD, State.TWO),
    ]


# Who is told of: what UCM sends to, or holds; if it is RTP.


def test_a_hold_without_music_is_told_with_its_second_packet(programs: Bench) -> None:
    programs.learn(HOLD, 1)
    assert (programs.events(), programs.shown()) == ([], {})
    programs.learn(HOLD, 2)
    assert [told(each) for each in programs.events()] == [("LEARNED", PROVIDER, HOLD, 0)]
    assert programs.shown() == {PROVIDER: ("MOH", "RTP")}
    assert programs.counters() == {"learned_moh": 1, "consumed": 2}


@pytest.mark.parametrize("role", [Role.BYPASS, Role.ENFORCE])
def test_a_call_is_told_when_ucm_sends(programs: Bench, role: Role) -> None:
    programs.learn(CALL, 1, 2, 3)
    assert (programs.events(), programs.shown()) == ([], {})
    programs.send(role, 1, source=f"{UCM}:24600")
    (learned,) = programs.events()
    assert told(learned) == ("LEARNED", PROVIDER, CALL, 0)
    assert 0 < learned.lasted < 10e9  # since its first packet
    assert programs.shown() == {PROVIDER: ("TWO", "RTP")}
    assert programs.counters()["learned_two"] == 1


def test_ucm_s_own_stream_shows_that_it_is_rtp(programs: Bench) -> None:
    """The provider sends a keepalive now and then."""
    programs.learn(CALL, 1)
    programs.send(Role.BYPASS, 1, source=f"{UCM}:24600")
    assert programs.events() == []
    programs.send(Role.BYPASS, 2, source=f"{UCM}:24600")
    assert [told(each) for each in programs.events()] == [("LEARNED", PROVIDER, CALL, 0)]


def test_without_quality_the_same_are_told(shared_firewall: Firewall) -> None:
    with bench(shared_firewall, quality=False) as programs:
        programs.learn(HOLD, 1, 3, 5, 6)
        programs.learn(CALL, 7)
        assert [told(each) for each in programs.events()] == [
            ("LEARNED", PROVIDER, HOLD, 0), ("CHANGED", PROVIDER, CALL, State.MOH),
        ]  # fmt: skip
        (peer,) = programs.all_peers()
        assert (peer.in_rtp, peer.out_rtp, programs.rtp_counters()) == (None, None, {})


def test_a_state_is_told_with_how_long_the_former_one_lasted(programs: Bench) -> None:
    programs.learn(HOLD, 1, 2)
    programs.age_all(4)
    programs.learn(CALL, 3)
    assert 4 <= programs.events()[1].lasted / 1e9 < 9


@pytest.mark.parametrize(("seconds", "news"), [(15, 1), (25, 0)])
def test_one_that_was_forgotten(programs: Bench, seconds: float, news: int) -> None:
    """After a pause within a call it is told of at once, else as a new one is."""
    programs.learn(HOLD, 1, 2)
    programs.age_all(seconds)
    programs.events()
    programs.learn(CALL, 3)
    assert [told(each) for each in programs.events()] == [
        ("LEARNED", PROVIDER, CALL, State.MOH)
    ] * news


@pytest.mark.parametrize("role", [Role.BYPASS, Role.ENFORCE])
def test_time_to_music(programs: Bench, role: Role) -> None:
    """From the first packet dropped to the first one sent on, once for each hold."""
    programs.send(role, 1, 2, 3)
    assert programs.events() == []
    programs.learn(HOLD, 1, 2)
    programs.send(role, 4, 5, 6)
    learned, music = programs.events()
    assert told(music) == ("MUSIC", PROVIDER, HOLD, State.MOH)
    assert music.dropped == 3
    assert 0 < learned.time - (music.time - music.lasted) <= music.lasted < 10e9
    programs.learn(CALL, 3)
    programs.send(role, 7)
    programs.learn(HOLD, 4)
    programs.send(role, 8)
    again = [each for each in programs.events() if each.kind == Kind.MUSIC]
    assert [(each.dropped, each.lasted) for each in again] == [(0, 0)]


def test_music_follows_the_hold_in_the_story(programs: Bench) -> None:
    """A hold that UCM's stream shows to be one: LEARNED, then MUSIC."""
    programs.learn(HOLD, 1)
    programs.send(Role.BYPASS, 1, 2)
    assert [each.kind for each in programs.events()] == [Kind.LEARNED, Kind.MUSIC]


def test_what_was_dropped_before_a_call_is_no_hold_s(programs: Bench) -> None:
    programs.send(Role.BYPASS, 1, source=f"{UCM}:24600")
    programs.learn(CALL, 1, 2)
    programs.send(Role.BYPASS, 2, source=f"{UCM}:24600")
    programs.learn(HOLD, 3)
    programs.send(Role.BYPASS, 3)
    music = programs.events()[-1]
    assert (music.kind, music.dropped, music.lasted) == (Kind.MUSIC, 0, 0)


@pytest.mark.parametrize(("seconds", "dropped"), [(5, 2), (12, 0)])
def test_a_wait_that_was_given_up(programs: Bench, seconds: float, dropped: int) -> None:
    """What UCM sent to the same endpoint for a call long ago is no wait for this hold's music."""
    for _ in range(2):
        programs.run(Role.BYPASS, sent())
    programs.age_waiting(seconds)
    programs.learn(HOLD, 1, 2)
    programs.run(Role.BYPASS, sent())
    music = programs.events()[-1]
    assert (music.kind, music.dropped) == (Kind.MUSIC, dropped)
    assert (music.lasted >= seconds * 1e9) == bool(dropped)


def test_who_is_forgotten_and_still_sent_to(programs: Bench) -> None:
    """For as long as UCM goes on; neither one that is heard (again), nor one that never was."""
    for endpoint, age in ((PROVIDER, 11), ("203.0.113.11:20000", 1), ("203.0.113.12:20000", 11)):
        programs.set_peer(endpoint, PeerState(State.TWO, CALL, age=age, told=True))
    for endpoint in (PROVIDER, "203.0.113.11:20000", "203.0.113.13:20000"):
        programs.run(Role.BYPASS, udp(f"{UCM}:24576", endpoint))
    assert programs.unheard() == [PROVIDER]
    programs.run(Role.LEARN, heard(CALL))
    assert programs.unheard() == []


def test_who_is_forgotten_and_was_sent_to(programs: Bench) -> None:
    programs.set_peer(PROVIDER, PeerState(State.TWO, CALL, age=11))
    programs.run(Role.BYPASS, sent())
    programs.age_waiting(3)
    assert programs.unheard() == []


def test_rtcp_is_no_event(programs: Bench) -> None:
    programs.run(Role.LEARN, heard(CALL, RTCP))
    programs.run(Role.BYPASS, sent(RTCP))
    programs.run(Role.LEARN, heard(HOLD, RTCP))
    programs.run(Role.BYPASS, sent(RTCP))
    assert programs.events() == []


def test_a_ring_that_nobody_reads_is_full_one_day(programs: Bench) -> None:
    """Then events are counted, and packets are what they were."""
    room = programs.loaded.maps.opened["events"].max_entries // (8 + layout.EVENT.size)
    programs.set_peer(PROVIDER, PeerState(State.TWO, CALL, told=True))
    for n in range(room + 100):
        programs.run(Role.LEARN, heard((HOLD, CALL)[n % 2]))
    unread = programs.counters()["events_unread"]
    assert room // 2 <= room + 100 - unread <= room
    programs.ring.read()
    programs.run(Role.LEARN, heard((CALL, HOLD)[room % 2]))
    programs.run(Role.LEARN, heard((HOLD, CALL)[room % 2]))
    assert programs.events()
    assert programs.counters()["events_unread"] == unread
