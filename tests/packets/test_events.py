"""What the programs tell: changes of state, and the first music of a hold. Nothing else."""

import struct

import pytest
from scapy.packet import Packet

from moh_ebpf import layout
from moh_ebpf.events import Record
from moh_ebpf.layout import Kind, State
from moh_ebpf.registry import Role
from tests.packets.bench import Bench, PeerState
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import rtp, udp

HOLD, CALL = f"{PUBLIC}:4000", f"{PUBLIC}:24600"
RTCP = b"\x80\xc8\0\6" + bytes(24)


def heard(public: str, payload: bytes | None = None) -> Packet:
    return udp(PROVIDER, public, payload)


def sent(payload: bytes | None = None) -> Packet:
    return udp(f"{UCM}:24576", PROVIDER, payload)


def told(record: Record) -> tuple[str, str, str, int]:
    """The kind, the endpoint, what it sends to, and the state before."""
    address, port, state, _ = layout.HEARD.unpack(record.heard)
    assert State(state) is (State.MOH if _text(address, port) == HOLD else State.TWO)
    return (Kind(record.kind).name, _text(record.address, record.port), _text(address, port),
            record.before)  # fmt: skip


def _text(address: bytes, port: bytes) -> str:
    return f"{'.'.join(map(str, address))}:{struct.unpack('!H', port)[0]}"


def test_each_change_of_state_and_no_packet_besides(programs: Bench) -> None:
    for public in (HOLD, HOLD, CALL, CALL, HOLD):
        programs.run(Role.LEARN, heard(public))
    assert [told(each) for each in programs.events()] == [
        ("LEARNED", PROVIDER, HOLD, 0),
        ("CHANGED", PROVIDER, CALL, State.MOH),
        ("CHANGED", PROVIDER, HOLD, State.TWO),
    ]


def test_a_state_is_told_with_how_long_the_former_one_lasted(programs: Bench) -> None:
    programs.run(Role.LEARN, heard(HOLD))
    programs.age_all(4)
    programs.run(Role.LEARN, heard(CALL))
    assert 4 <= programs.events()[1].lasted / 1e9 < 9


def test_one_that_was_forgotten(programs: Bench) -> None:
    programs.run(Role.LEARN, heard(CALL))
    programs.age_all(30)
    programs.run(Role.LEARN, heard(HOLD))
    assert told(programs.events()[1]) == ("LEARNED", PROVIDER, HOLD, State.TWO)


@pytest.mark.parametrize("role", [Role.BYPASS, Role.ENFORCE])
def test_time_to_music(programs: Bench, role: Role) -> None:
    """From the first packet dropped to the first one sent on, once for each hold."""
    for _ in range(3):
        programs.run(role, sent())
    assert programs.events() == []
    programs.run(Role.LEARN, heard(HOLD))
    for _ in range(3):
        programs.run(role, sent())
    learned, music = programs.events()
    assert told(music) == ("MUSIC", PROVIDER, HOLD, State.MOH)
    assert music.dropped == 3
    assert 0 < learned.time - (music.time - music.lasted) <= music.lasted < 10e9
    programs.run(Role.LEARN, heard(CALL))
    programs.run(role, sent())
    programs.run(Role.LEARN, heard(HOLD))
    programs.run(role, sent())
    again = [each for each in programs.events() if each.kind == Kind.MUSIC]
    assert [(each.dropped, each.lasted) for each in again] == [(0, 0)]


def test_what_was_dropped_before_a_call_is_no_hold_s(programs: Bench) -> None:
    programs.run(Role.BYPASS, sent())
    programs.run(Role.LEARN, heard(CALL))
    programs.run(Role.BYPASS, sent())
    programs.run(Role.LEARN, heard(HOLD))
    programs.run(Role.BYPASS, sent())
    music = programs.events()[-1]
    assert (music.kind, music.dropped, music.lasted) == (Kind.MUSIC, 0, 0)


@pytest.mark.parametrize(("seconds", "dropped"), [(5, 2), (12, 0)])
def test_a_wait_that_was_given_up(programs: Bench, seconds: float, dropped: int) -> None:
    """What UCM sent to the same endpoint for a call long ago is no wait for this hold's music."""
    for _ in range(2):
        programs.run(Role.BYPASS, sent())
    programs.age_waiting(seconds)
    programs.run(Role.LEARN, heard(HOLD))
    programs.run(Role.BYPASS, sent())
    music = programs.events()[-1]
    assert (music.kind, music.dropped) == (Kind.MUSIC, dropped)
    assert (music.lasted >= seconds * 1e9) == bool(dropped)


def test_who_is_forgotten_and_still_sent_to(programs: Bench) -> None:
    """For as long as UCM goes on; neither one that is heard (again), nor one that never was."""
    for endpoint, age in ((PROVIDER, 11), ("203.0.113.11:20000", 1), ("203.0.113.12:20000", 11)):
        programs.set_peer(endpoint, PeerState(State.TWO, CALL, age=age))
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
    assert programs.events() == []
    programs.run(Role.BYPASS, sent(RTCP))
    programs.run(Role.BYPASS, sent(rtp()))
    assert programs.events() == []


def test_rtp_and_rtcp_on_one_port(programs: Bench) -> None:
    """RFC 5761: whichever comes first, the endpoint is told of, and of each of its changes."""
    for public, payload in ((CALL, RTCP), (CALL, RTCP), (CALL, rtp()), (CALL, rtp()), (HOLD, RTCP)):
        programs.run(Role.LEARN, heard(public, payload))
    programs.run(Role.LEARN, heard(HOLD))
    assert [told(each) for each in programs.events()] == [
        ("LEARNED", PROVIDER, CALL, 0),
        ("CHANGED", PROVIDER, HOLD, State.TWO),
    ]


def test_music_is_told_after_the_hold(programs: Bench) -> None:
    """Known by RTCP alone, it is not told of yet; nor is its music."""
    programs.run(Role.BYPASS, sent())
    programs.run(Role.LEARN, heard(HOLD, RTCP))
    programs.run(Role.BYPASS, sent())
    assert programs.events() == []
    programs.run(Role.LEARN, heard(HOLD))
    programs.run(Role.BYPASS, sent())
    assert [(each.kind, each.dropped) for each in programs.events()] == [
        (Kind.LEARNED, 0), (Kind.MUSIC, 1),
    ]  # fmt: skip


def test_rtp_and_rtcp_on_one_port_after_a_silence(programs: Bench) -> None:
    programs.run(Role.LEARN, heard(CALL))
    programs.age_all(30)
    for public, payload in ((CALL, RTCP), (HOLD, RTCP), (HOLD, None), (HOLD, RTCP)):
        programs.run(Role.LEARN, heard(public, payload))
    assert [told(each) for each in programs.events()] == [
        ("LEARNED", PROVIDER, CALL, 0),
        ("LEARNED", PROVIDER, CALL, State.TWO),
        ("CHANGED", PROVIDER, HOLD, State.TWO),
    ]


def test_a_ring_that_nobody_reads_is_full_one_day(programs: Bench) -> None:
    """Then events are counted, and packets are what they were."""
    room = programs._loaded.maps["events"].max_entries // (8 + layout.EVENT.size)
    for n in range(room + 100):
        programs.run(Role.LEARN, heard((HOLD, CALL)[n % 2]))
    unread = programs.counters()["events_unread"]
    assert room // 2 <= room + 100 - unread <= room
    programs._ring.read()
    programs.run(Role.LEARN, heard((CALL, HOLD)[room % 2]))
    programs.run(Role.LEARN, heard((HOLD, CALL)[room % 2]))
    assert programs.events()
    assert programs.counters()["events_unread"] == unread
