"""A new source port of UCM's to an endpoint in a call: held back, until it is known what it is."""

import pytest

from moh_ebpf.layout import Kind, State
from moh_ebpf.registry import Role
from tests.packets.bench import REDIRECT, SHOT, UNSPEC, Bench, PeerState, bench
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
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


def test_what_a_call_has_waited_is_none_of_its_hold_s(call: Bench) -> None:
    assert call.send(Role.BYPASS, 1, source=MUSIC) == [SHOT]
    call.age_all(0.25)
    call.set_learned()
    assert call.send(Role.BYPASS, 2, source=MUSIC) == [UNSPEC]
    call.learn(HOLD, 3)
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
    assert call.counters()["held_back"] == 1


def test_another_ucm_with_the_same_port_is_another(shared_firewall: Firewall) -> None:
    with bench(shared_firewall, ucm=[UCM, "10.10.10.11"]) as programs:
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
