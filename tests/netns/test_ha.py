"""Two firewalls with keepalived: hold music goes on at the new master (docs/ha.md)."""

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.ha.failover import CASES, PROVIDER_PORT, By, Case, Seen, Site, changes, site
from tests.ha.page import BEGIN, END
from tests.ha.pair import PAGE
from tests.support.firewall import PUBLIC, UCM
from tests.support.hosts import udp_socket
from tests.support.sip import PROVIDER_SIP, Dialog, description
from tests.support.waiting import until
from tests.support.wire import rtp

HOLD = {f"{PUBLIC}:4000"}
# The new master learns from an inbound packet; one of UCM's may come before it.
LEARNING = 1

Changes = dict[str, dict[Case, Seen]]


@pytest.fixture(scope="module", params=["attach", "virtual MACs, run"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    if not shutil.which("keepalived"):
        pytest.skip("keepalived is not installed: scripts/setup --dev")
    directory = tmp_path_factory.mktemp("ha")
    with site(directory, virtual_macs=request.param != "attach") as made:
        yield made


@pytest.fixture(scope="module")
def seen(made: Site) -> Changes:
    """The changes of master, one after the other, with all calls in progress."""
    return dict(changes(made))


def the(change: dict[Case, Seen], hold: bool, by: By) -> Seen:
    """The call of this kind; if there are two, the one that nobody pauses in."""
    case = min(
        (case for case in CASES if (case.hold, case.by) == (hold, by)), key=lambda case: case.pauses
    )
    return change[case]


def test_hold_music_resumes_from_the_phantom_port_and_from_nowhere_else(seen: Changes) -> None:
    for what, change in seen.items():
        music = the(change, True, By.MOH)
        assert (music.before, music.after, music.next_hold) == (HOLD, HOLD, HOLD), what


def test_hold_music_loses_no_more_than_a_call_that_conntrack_carries(seen: Changes) -> None:
    for what, change in seen.items():
        music, call = the(change, True, By.MOH), the(change, False, By.NAT)
        assert call.inbound is not None
        assert music.outbound <= max(call.outbound, call.inbound) + LEARNING, what


def test_the_master_that_falls_silent_is_missed(seen: Changes) -> None:
    """Else nothing would have been shown."""
    (change, *_) = seen.values()
    assert all(
        each.outbound > 0 and each.inbound != 0 for case, each in change.items() if not case.pauses
    )


@pytest.mark.parametrize("by", [By.MOH, By.NAT, By.DNAT])
def test_a_call_keeps_its_port_with_an_input_chain_that_drops(seen: Changes, by: By) -> None:
    for what, change in seen.items():
        call = the(change, False, by)
        assert call.before == call.after == {f"{PUBLIC}:{call.port}"}, what


def test_a_call_gets_another_port_with_an_input_chain_that_accepts(seen: Changes) -> None:
    """The phone is silent as the master changes, so inbound RTP is first at the new one."""
    (change, *_) = seen.values()
    call = the(change, False, By.OPEN_INPUT)
    assert call.before == {f"{PUBLIC}:{call.port}"}
    (after,) = call.after
    assert after not in call.before


def test_a_silent_phone_hears_nothing_before_it_speaks_unless_there_is_dnat(seen: Changes) -> None:
    (change, *_) = seen.values()
    lost = {case.by: each.inbound or 0 for case, each in change.items() if case.pauses}
    speaking = the(change, False, By.NAT).inbound or 0
    assert lost[By.DNAT] <= speaking + LEARNING < lost[By.NAT]


def test_a_silent_endpoint_is_known_by_its_next_offer_at_the_new_master(
    made: Site, seen: Changes
) -> None:
    """Of a call that began at the old one, and is on hold: UCM refreshes its session. `attach`
    alone reads nothing."""
    master, dialog = made.pair.b, Dialog()
    endpoint = (PROVIDER_SIP, PROVIDER_PORT + 1000)
    assert master.is_master()
    with (
        udp_socket(made.pair.lan, (UCM, 5060)) as ucm,
        udp_socket(made.pair.wan, (PROVIDER_SIP, 5060)) as provider,
        udp_socket(made.pair.wan, endpoint) as listening,
        udp_socket(made.pair.lan, (UCM, 30002)) as playing,
    ):
        dialog.cseq += 10  # what went before, the old master has heard
        ucm.sendto(
            dialog.ask("INVITE", description(f"{UCM}:4000", "sendonly")), (PROVIDER_SIP, 5060)
        )
        _, back = provider.recvfrom(4096)
        provider.sendto(dialog.answer(description(":".join(map(str, endpoint)))), back)
        ucm.recv(4096)

        def known() -> list[tuple[str, str, str]]:
            found = json.loads(master.place.moh("peers", "--json").stdout)
            return [
                (each["state"], each["identified"], each["call_id"])
                for each in found
                if (each["address"], each["port"]) == endpoint
            ]

        if made.has_run:
            until("the hold is known", known)
            assert known() == [("moh", "signalling", dialog.call_id)]
            playing.sendto(rtp(1), endpoint)
            assert listening.recvfrom(4096)[1] == (PUBLIC, 4000)
        else:
            assert known() == []


def test_nat_alone_sends_hold_music_from_ucms_port(seen: Changes) -> None:
    for what, change in seen.items():
        music = the(change, True, By.NAT)
        assert music.before == music.after == {f"{PUBLIC}:{music.port}"}, what
        assert music.next_hold == {f"{PUBLIC}:{music.next_port}"}, what


@pytest.mark.parametrize("made", ["attach"], indirect=True)
def test_the_articles_rules_play_the_hold_that_failed_over_and_not_the_next(seen: Changes) -> None:
    (change, *_) = seen.values()
    music = the(change, True, By.ARTICLE)
    assert (music.before, music.after, music.next_hold) == (HOLD, HOLD, set())


def test_the_page_has_a_table_of_these_calls() -> None:
    table = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    for case in CASES:
        assert f"| {case.name} |" in table, "run scripts/ha"
