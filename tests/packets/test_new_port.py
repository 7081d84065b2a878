"""A new source port of UCM's to an endpoint in a call: held back, until it is known what it is."""

import time

import pytest

from moh_ebpf.layout import Kind, State
from moh_ebpf.registry.record import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState
from tests.packets.conftest import Benches
from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.wire import rtp, udp

CALL, HOLD = f"{PUBLIC}:24576", f"{PUBLIC}:4000"
VOICE, MUSIC, OTHER = f"{UCM}:24576", f"{UCM}:30000", f"{UCM}:31000"
BOTH = [Role.ENFORCE, Role.BYPASS]


@pytest.fixture
def call(programs: Bench) -> Bench:
    """Both sides have spoken, UCM from the port that the provider sends to."""
    programs.set_learned()
    programs.learn(CALL, 1, 2)
    assert programs.send(Role.BYPASS, 1, 2) == [UNSPEC, UNSPEC]
    programs.events()
    return programs


@pytest.mark.parametrize("role", BOTH)
def test_the_music_of_a_hold_waits_for_the_provider(call: Bench, role: Role) -> None:
    assert call.send(role, 1, 2, 3, source=MUSIC) == [SHOT] * 3
    assert call.send(role, 3, source=VOICE) == [UNSPEC]  # a late packet of the call
    call.learn(HOLD, 3)
    music = [REDIRECT if role is Role.BYPASS else UNSPEC]
    assert call.send(role, 4, source=MUSIC) == music
    assert call.counters()["held_back"] == 3
    hold, told = call.events()
    assert (hold.kind, told.kind, told.dropped) == (Kind.CHANGED, Kind.MUSIC, 3)
    assert 0 < told.lasted < 10e9
    # The next hold is of the next port, and works with its first packet.
    assert call.send(role, 1, source=OTHER) == music


@pytest.mark.parametrize("role", BOTH)
def test_a_port_that_the_provider_sends_to_is_the_call_s(call: Bench, role: Role) -> None:
    call.learn(f"{PUBLIC}:30000", 3)
    assert call.send(role, 1, 2, source=MUSIC) == [UNSPEC] * 2
    assert "held_back" not in call.counters()


@pytest.mark.parametrize("role", BOTH)
def test_a_provider_that_has_turned_lets_it_pass(call: Bench, role: Role) -> None:
    """Where the firewall's NAT moves ports, the two never match."""
    assert call.send(role, 1, source=MUSIC) == [SHOT]
    call.learn(f"{PUBLIC}:50000", 3)
    assert call.send(role, 2, source=MUSIC) == [UNSPEC]
    assert call.send(role, 3, source=VOICE) == [UNSPEC]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(("seconds", "verdict"), [(0.25, UNSPEC), (0.0, SHOT)])
def test_it_is_held_back_for_a_while_only(
    call: Bench, role: Role, seconds: float, verdict: int
) -> None:
    while True:  # again, if the machine has paused for as long as it is held back
        assert call.send(role, 1, source=MUSIC) == [SHOT]
        call.age_all(seconds)
        call.set_learned()
        [found] = call.send(role, 2, source=MUSIC)
        if verdict == UNSPEC or found == verdict:
            break
        call.clear()
        call.set_learned()
        call.learn(CALL, 1)
    assert found == verdict


def test_what_a_call_has_waited_is_not_told_of_its_hold(call: Bench) -> None:
    assert call.send(Role.BYPASS, 1, source=MUSIC) == [SHOT]
    call.age_all(0.25)
    call.set_learned()
    assert call.send(Role.BYPASS, 2, source=MUSIC) == [UNSPEC]
    call.learn(HOLD, 3)
    assert call.send(Role.BYPASS, 1, source=OTHER) == [REDIRECT]
    (music,) = [each for each in call.events() if each.kind == Kind.MUSIC]
    assert (music.dropped, music.lasted) == (0, 0)


def test_what_was_held_back_long_ago_is_told_no_more(call: Bench) -> None:
    assert call.send(Role.BYPASS, 1, source=MUSIC) == [SHOT]
    call.age_all(9)
    call.learn(CALL, 3)
    call.age_all(9)
    call.learn(HOLD, 4)
    assert call.send(Role.BYPASS, 1, source=OTHER) == [REDIRECT]
    (music,) = [each for each in call.events() if each.kind == Kind.MUSIC]
    assert (music.dropped, music.lasted) == (0, 0)


def test_two_streams_to_one_endpoint_both_go_on(call: Bench) -> None:
    """They take turns, and no packet of either is held back once both are known."""
    assert call.send(Role.BYPASS, 1, source=MUSIC) == [SHOT]
    call.age_all(0.25)
    call.set_learned()
    for number in range(2, 30):
        assert call.send(Role.BYPASS, number, source=MUSIC) == [UNSPEC]
        assert call.send(Role.BYPASS, number, source=VOICE) == [UNSPEC]
    call.age_all(1)
    call.set_learned()
    assert call.send(Role.BYPASS, 30, source=MUSIC) == [UNSPEC]
    assert call.counters()["held_back"] == 1


def test_another_ucm_with_the_same_port_is_another(benches: Benches) -> None:
    with benches(ucm=[UCM, "10.10.10.11"]) as programs:
        programs.set_learned()
        programs.learn(f"{PUBLIC}:50000", 1)
        programs.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:50000", source=MUSIC))
        assert programs.send(Role.BYPASS, 1, source=MUSIC) == [UNSPEC]
        assert programs.send(Role.BYPASS, 2, source="10.10.10.11:30000") == [SHOT]


NOT_HELD_BACK = [
    ("RTCP", b"\x80\xc8\0\6" + bytes(24)),
    ("what only looks like RTP", rtp(payload_type=72)),
]


@pytest.mark.parametrize(("what", "payload"), NOT_HELD_BACK)
@pytest.mark.parametrize("role", BOTH)
def test_only_rtp_is_held_back(call: Bench, role: Role, what: str, payload: bytes) -> None:
    packet = udp(MUSIC, PROVIDER, payload)
    assert call.run(role, packet)[0] == UNSPEC, what
    assert call.send(role, 1, source=MUSIC) == [SHOT], "it has not become the call's port"


@pytest.mark.parametrize("role", BOTH)
def test_nothing_waits_for_a_learn_that_is_silent(call: Bench, role: Role) -> None:
    call.set_learned(2)
    assert call.send(role, 1, source=MUSIC) == [UNSPEC]


def test_what_leaves_by_no_wan_is_not_ours(programs: Bench) -> None:
    """A branch behind a tunnel, which somebody pretends to be in a call."""
    programs.set_learned()
    inside = "10.10.10.77:21000"
    programs.set_peer(inside, PeerState(State.TWO, CALL, source=VOICE))
    assert programs.send(Role.BYPASS, 1, source=MUSIC, to=inside) == [UNSPEC]


@pytest.mark.parametrize("ports", [(50000, 50000, 50000, 50000), (50000, 9999, 9998, 50000)])
@pytest.mark.parametrize("role", BOTH)
def test_a_call_that_has_passed_unheard_goes_on(
    benches: Benches, role: Role, ports: tuple[int, ...]
) -> None:
    """Of a provider that is heard once in some seconds, wherever NAT moves ports to, or somebody
    forges it."""
    with benches(timeout="1s") as programs:
        programs.set_learned()
        assert programs.send(role, 1, source=VOICE) == [SHOT]
        programs.age_all(3.1)
        programs.set_learned()
        verdicts = programs.send(role, 2, source=VOICE)
        for number, port in enumerate(ports):
            programs.learn(f"{PUBLIC}:{port}", number)
            programs.age_all(0.3)  # since it has turned
            programs.set_learned()
            verdicts += programs.send(role, number + 3, source=VOICE)
            programs.age_all(2.5)
            programs.set_learned()
            verdicts += programs.send(role, number + 3, source=VOICE)
        assert SHOT not in verdicts


@pytest.mark.parametrize("role", BOTH)
def test_a_pause_forgets_no_port(benches: Benches, role: Role) -> None:
    """Comfort noise comes more seldom than --timeout."""
    with benches(timeout="1s") as programs:
        programs.set_learned()
        programs.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:50000", source=VOICE))
        for number in range(4):
            programs.age_all(1.5)
            programs.set_learned()
            programs.learn(f"{PUBLIC}:50000", number)
            assert programs.send(role, number, source=VOICE) == [UNSPEC]
        assert "held_back" not in programs.counters()


def test_new_ports_wait_together(programs: Bench) -> None:
    """Somebody who pretends to be UCM, or three streams of UCM's: no port waits for longer."""
    programs.set_peer(PROVIDER, PeerState(State.TWO, f"{PUBLIC}:50000", source=VOICE))
    verdicts: dict[str, list[int]] = {VOICE: [], MUSIC: [], OTHER: []}
    for number in range(100):
        programs.learn(f"{PUBLIC}:50000", number)  # it is heard, however long this takes
        for source, shown in verdicts.items():
            programs.set_learned()
            shown += programs.send(Role.BYPASS, number, source=source)
        programs.age_all(0.02)
    assert SHOT not in verdicts[VOICE]
    assert 1 <= verdicts[MUSIC].count(SHOT) <= 11
    assert verdicts[OTHER].count(SHOT) <= 11


@pytest.mark.parametrize("role", BOTH)
def test_the_port_of_a_hold_is_not_the_call_s(call: Bench, role: Role) -> None:
    """A second hold from the port of the first one."""
    call.learn(HOLD, 3)
    call.send(role, 1, 2, source=MUSIC)
    call.learn(f"{PUBLIC}:24600", 4)
    assert call.send(role, 1, source=f"{UCM}:24600") == [UNSPEC]
    call.age_all(0.5)
    call.set_learned()
    assert call.send(role, 3, source=MUSIC) == [SHOT]


@pytest.mark.parametrize("role", BOTH)
def test_what_is_held_back_takes_nothing_from_a_call_that_passed(
    benches: Benches, role: Role
) -> None:
    """It passed before it was heard, and does so at once in its next pause."""
    with benches(timeout="1s") as programs:
        programs.set_learned()
        assert programs.send(role, 1, source=VOICE) == [SHOT]
        programs.age_all(3.1)
        programs.set_learned()
        assert programs.send(role, 2, source=VOICE) == [UNSPEC]
        programs.learn(f"{PUBLIC}:50000", 1)
        programs.age_all(0.3)
        programs.set_learned()
        assert programs.send(role, 1, source=MUSIC) == [SHOT]
        programs.age_all(1)
        programs.set_learned()
        assert programs.send(role, 3, source=VOICE) == [UNSPEC]


@pytest.mark.parametrize("quality", [True, False])
@pytest.mark.parametrize("role", BOTH)
def test_a_late_packet_of_the_call_ends_no_hold(
    benches: Benches, role: Role, quality: bool
) -> None:
    """Two flows may go two ways: what was sent before the first packet to 4000 comes after it."""
    with benches(quality=quality) as call:
        music, paused = [UNSPEC], True
        while paused:
            begun = time.monotonic()
            call.clear()
            call.set_learned()
            call.learn(CALL, 65533, 65534)
            call.send(role, 1, 2, source=VOICE)
            call.learn(HOLD, 0)
            call.learn(CALL, 65535)
            music = call.send(role, 1, source=MUSIC)
            (peer,) = call.all_peers()
            paused = time.monotonic() - begun > 0.15
        assert peer.public == HOLD
        assert music == [REDIRECT if role is Role.BYPASS else UNSPEC]
        # Another stream's numbers say nothing of this one's.
        call.run(Role.LEARN, udp(PROVIDER, f"{PUBLIC}:24600", rtp(65535, ssrc=8)))
        assert call.all_peers()[0].public == f"{PUBLIC}:24600"
        call.age_all(0.25)
        call.run(Role.LEARN, udp(PROVIDER, CALL, rtp(65534, ssrc=8)))
        assert call.all_peers()[0].public == CALL, "it may have begun to count anew"


def test_another_wan_is_no_other_port(benches: Benches) -> None:
    """What a provider sends comes in by two WANs in turn, and the next hold is held back still."""
    with benches(wan=["wan", "lan"], lan=[]) as programs:
        for wan in (0, 1):
            programs.set_learned(wan=wan)
        programs.set_peer(PROVIDER, PeerState(State.TWO, CALL, source=VOICE))
        for number, interface in enumerate(("lan", "wan", "lan", "wan")):
            packet = udp(PROVIDER, CALL, rtp(number))
            programs.run(Role.LEARN, packet, interface)
        assert programs.send(Role.ENFORCE, 1, source=MUSIC) == [SHOT]
