"""What somebody removes is put back by `run` at once, with the very programs: nothing is compiled,
peers, counters and events go on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from moh_ebpf.attach import attachment
from moh_ebpf.attach.attachment import FREED_WITHIN_SECONDS
from moh_ebpf.attach.held import Held
from moh_ebpf.errors import MohError
from moh_ebpf.kernel.tc import Hook
from moh_ebpf.registry import walk
from moh_ebpf.registry.record import Record
from tests.netns.test_service import (
    HOLD,
    MUSIC,
    hears_music,
    program_ids,
    reload,
    state,
    status,
)
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.foreign import counter
from tests.support.kernels import is_loaded
from tests.support.service import CONFIG, Service, held_up, service
from tests.support.waiting import until
from tests.support.wire import flow, udp

INTERVAL_SECONDS = 0.02
CALL = "203.0.113.20:7000"  # the provider's end of a two-way call
CALLER = f"{UCM}:24600"
# Peers are forgotten as by default: without learn, there is no music after a second.
PROMPT = CONFIG.replace('"60s"', '"1s"')

REMOVALS = {
    "learn": "tc filter del dev wan ingress pref 4000",
    "enforce": "tc filter del dev wan egress pref 4000",
    "bypass": "tc filter del dev lan ingress pref 4000",
    "clsact": "tc qdisc del dev wan clsact",
    "all": "moh-ebpf detach",
    "all-by-tc": "tc qdisc del dev wan clsact\nqdisc del dev lan clsact",
}


def remove(fw: Firewall, command: str) -> None:
    """Several lines of tc are one process, which leaves nobody time between them."""
    if command == "moh-ebpf detach":
        fw.moh("detach")
    else:
        fw.namespace.run("tc", "-batch", "-", input=command.removeprefix("tc ") + "\n")


class Calls:
    """A hold and a two-way call, a packet each way each 20 ms: UCM's packets so far."""

    def __init__(self, fw: Firewall) -> None:
        self._fw = fw
        self._rounds = 0
        self._stop = threading.Event()
        self._heard = [udp(PROVIDER, HOLD), udp(CALL, f"{PUBLIC}:24600")]
        self._played = [udp(MUSIC, PROVIDER), udp(CALLER, CALL)]
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self) -> None:
        wan, lan = self._fw.wan, self._fw.lan
        while not self._stop.wait(INTERVAL_SECONDS):
            wan.send(*self._heard)
            lan.send(*self._played)
            self._rounds += 1

    @property
    def rounds(self) -> int:
        return self._rounds

    def after(self, rounds: int) -> None:
        """Wait until so many more are played."""
        end = self._rounds + rounds
        until("the calls go on", lambda: self._rounds >= end)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def heard_at_the_provider(fw: Firewall) -> dict[tuple[str, str], int]:
    flows = [flow(each) for each in fw.wan.sent()]
    return {each: flows.count(each) for each in set(flows)}


@contextmanager
def running(fw: Firewall, tmp_path: Path, config: str = PROMPT) -> Iterator[Service]:
    """A service that has attached, and cannot compile again: there is another module named bcc."""
    modules = tmp_path / "modules"
    modules.mkdir(exist_ok=True)
    with service(fw.namespace, tmp_path, config, PYTHONPATH=str(modules)) as run:
        run.wait_for_word("READY")
        run.wait_for_line("hold music leaves")
        (modules / "bcc.py").write_text("raise ImportError('not here')\n")
        try:
            yield run
        finally:
            (modules / "bcc.py").unlink()


@pytest.mark.parametrize("removal", REMOVALS)
def test_music_is_back_before_anything_could_be_compiled(
    fw: Firewall, tmp_path: Path, removal: str
) -> None:
    begun = time.monotonic()
    with running(fw, tmp_path) as run, closing(Calls(fw)) as calls:
        compiling = time.monotonic() - begun
        calls.after(20)
        ids = program_ids(fw)
        removed = time.monotonic()
        remove(fw, REMOVALS[removal])
        run.wait_for_line("put back (")
        missing = time.monotonic() - removed
        calls.after(100)
        calls.close()
        played, there = calls.rounds, heard_at_the_provider(fw)
        assert missing < compiling / 2
        assert played - missing / INTERVAL_SECONDS - 2 <= there[HOLD, PROVIDER] <= played
        assert played - missing / INTERVAL_SECONDS - 2 <= there[f"{PUBLIC}:24600", CALL] <= played
        assert program_ids(fw) == ids
        assert not status(fw)["missing"]
        assert run.stop() == 0
        run.wait_for_line("stopped; detached")
        # One ring of events, read once.
        assert sum(f"hold {PROVIDER}" in line for line in run.lines) == 1
        assert not any("error" in line or "warning" in line for line in run.lines)
        assert not any(map(is_loaded, ids))


def test_what_it_adopts_after_a_kill_it_can_put_back(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        run.stop(signal.SIGKILL)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "bcc.py").write_text("raise ImportError('not here')\n")
    with service(fw.namespace, tmp_path, CONFIG, PYTHONPATH=str(modules)) as run:
        run.wait_for_line("what is attached already is right, and stays")
        run.wait_for_word("READY")
        fw.moh("detach")
        run.wait_for_line("put back (nothing was attached)")
        assert program_ids(fw) == ids
        assert hears_music(fw)


def test_a_removal_some_time_after_another_is_put_back_at_once(
    fw: Firewall, tmp_path: Path
) -> None:
    """More often than every five seconds, it is not."""
    with running(fw, tmp_path) as run:
        ids = program_ids(fw)
        took = []
        for _ in range(3):
            remove(fw, REMOVALS["learn"])
            removed = time.monotonic()
            run.wait_for_line("put back (somebody had removed learn on wan)")
            took.append(time.monotonic() - removed)
        assert took[0] < min(took[1:])
        threading.Event().wait(5)
        remove(fw, REMOVALS["learn"])
        removed = time.monotonic()
        run.wait_for_line("put back (somebody had removed learn on wan)")
        assert time.monotonic() - removed < min(took[1:])
        assert program_ids(fw) == ids


def test_replaced_programs_are_let_go_of(fw: Firewall, tmp_path: Path) -> None:
    """By a reload, by hand, by another run of attach for what has changed."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        reload(run, tmp_path, CONFIG.replace("60s", "61s"))
        until("they are freed", lambda: not any(map(is_loaded, ids)))
        ids = program_ids(fw)
        fw.attach("--timeout", "7s")
        run.wait_for_line("attached (somebody had attached other settings)")
        until("they are freed", lambda: not any(map(is_loaded, ids)))
        ids = program_ids(fw)
        fw.namespace.run(*["ip", "addr", "add", "192.0.2.9/24", "dev", "wan"])
        run.wait_for_line("addresses have changed")
        until("they are freed", lambda: not any(map(is_loaded, ids)))
        # The new ones are held: they come back.
        ids = program_ids(fw)
        remove(fw, REMOVALS["clsact"])
        run.wait_for_line("put back (somebody had removed learn on wan, enforce on wan)")
        assert program_ids(fw) == ids


def test_detach_beside_a_service_does_not_wait_for_it(fw: Firewall, tmp_path: Path) -> None:
    """Stopped (SIGSTOP), it holds the programs all the while."""
    with running(fw, tmp_path) as run:
        ids = program_ids(fw)
        run.send(signal.SIGSTOP)
        took = []
        for _ in range(2):  # the second time, there is nothing to detach
            begun = time.monotonic()
            fw.moh("detach")
            took.append(time.monotonic() - begun)
        assert all(map(is_loaded, ids))
        assert took[0] < took[1] + FREED_WITHIN_SECONDS / 2
        run.send(signal.SIGCONT)
        run.wait_for_line("put back (nothing was attached)")


def detached_by_hand(fw: Firewall, run: Service) -> None:
    """Without the service, which has been killed: by what the map says."""
    run.stop(signal.SIGKILL)
    fw.moh("detach")


def test_a_qdisc_that_was_somebodys_own_and_is_made_anew_is_ours(
    fw: Firewall, tmp_path: Path
) -> None:
    before = state(fw)
    fw.namespace.run("tc", "qdisc", "add", "dev", "wan", "clsact")
    with running(fw, tmp_path) as run:
        remove(fw, REMOVALS["clsact"])
        run.wait_for_line("put back (somebody had removed learn on wan, enforce on wan)")
        detached_by_hand(fw, run)
    assert state(fw) == before


def test_a_qdisc_that_was_ours_and_is_somebodys_now_stays(fw: Firewall, tmp_path: Path) -> None:
    with running(fw, tmp_path) as run:
        remove(fw, "qdisc del dev wan clsact\nqdisc add dev wan clsact")
        run.wait_for_line("put back (somebody had removed learn on wan, enforce on wan)")
        detached_by_hand(fw, run)
    assert "clsact" in fw.namespace.tc_state("wan")
    assert "moh_" not in state(fw)
    assert "clsact" not in fw.namespace.tc_state("lan")


def test_qdiscs_of_ours_are_remembered_where_no_filter_is_left(
    fw: Firewall, tmp_path: Path
) -> None:
    before = state(fw)
    with running(fw, tmp_path) as run:
        places = ("wan ingress", "wan egress", "lan ingress")
        remove(fw, "\n".join(f"filter del dev {place} pref 4000" for place in places))
        run.wait_for_line("put back (nothing was attached)")
        detached_by_hand(fw, run)
    assert state(fw) == before


def test_an_interface_made_anew_in_a_moment_gets_new_programs(fw: Firewall, tmp_path: Path) -> None:
    """Under its old name, index and address: it may be of another kind."""
    make = "link add wan2 index 77 type veth\naddr add 192.0.2.2/32 dev wan2\nlink set wan2 up\n"
    fw.namespace.run("ip", "-batch", "-", input=make)
    config = CONFIG.replace('["wan"]', '["wan", "wan2"]')
    with service(fw.namespace, tmp_path, config) as run:
        run.wait_for_word("READY")
        run.wait_for_line("attached (nothing was attached)")
        ids = program_ids(fw)
        fw.namespace.run("ip", "-batch", "-", input=f"link del wan2\n{make}")
        run.wait_for_line("attached (somebody had removed learn on wan2, enforce on wan2)")
        assert not set(program_ids(fw)) & set(ids)


def test_another_command_at_work_is_waited_for_elsewhere(fw: Firewall, tmp_path: Path) -> None:
    """By attach, so that signals are answered."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        with fw.namespace.locked():
            remove(fw, REMOVALS["learn"])
            until("attach waits", lambda: held_up(run))
        run.wait_for_line("attached (somebody had removed learn on wan)")


@contextmanager
def holding(fw: Firewall) -> Iterator[Held]:
    """What is attached, held as `run` holds it, with this thread in the namespace."""
    with ExitStack() as stack:
        stack.enter_context(fw.namespace.entered())
        with IPRoute() as ipr, walk.found(ipr) as found:
            assert found.attached
            yield stack.enter_context(closing(Held(found.attached)))


def test_a_foreign_filter_in_our_place_is_not_touched(fw: Firewall) -> None:
    fw.attach()
    with holding(fw) as held:
        remove(fw, REMOVALS["clsact"])
        with counter(fw, "wan", Hook.INGRESS, 4000):
            before = state(fw)
            with pytest.raises(MohError, match="somebody else's at priority 4000"):
                attachment.put_back(held, print)
            assert state(fw) == before


def test_programs_that_were_attached_meanwhile_stay(fw: Firewall) -> None:
    fw.attach()
    with holding(fw) as held:
        fw.attach("--timeout", "7s")
        remove(fw, REMOVALS["learn"])
        before = state(fw)
        with pytest.raises(MohError, match="other programs"):
            attachment.put_back(held, print)
        assert state(fw) == before


def test_all_of_it_is_put_back_or_nothing(fw: Firewall) -> None:
    """The LAN's hooks are a shared block: the WAN's filters are in when bypass fails."""
    fw.namespace.run(*["tc", "qdisc", "add", "dev", "wan", "clsact"])
    fw.attach()
    with holding(fw) as held:
        remove(fw, REMOVALS["all-by-tc"] + "\nqdisc add dev lan ingress_block 7 clsact")
        before, record = state(fw), held.record
        with pytest.raises(MohError, match="moh_bypass on lan ingress"):
            attachment.put_back(held, print)
        assert state(fw) == before
        assert held.record == record
        remove(fw, "qdisc del dev lan clsact")
        attachment.put_back(held, print)
        assert len(program_ids(fw)) == 3


def test_a_record_without_room_for_a_qdisc_is_left_as_it_is(
    fw: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version has made its map: attach must replace it."""
    fw.namespace.run("tc", "qdisc", "add", "dev", "wan", "clsact")
    fw.attach()
    with holding(fw) as held:
        remove(fw, REMOVALS["clsact"])
        before = state(fw)
        monkeypatch.setattr(Record, "to_bytes", lambda _: b"x" * 4096)
        with pytest.raises(MohError, match="no room"):
            attachment.put_back(held, print)
        assert state(fw) == before


def test_descriptors_of_programs_are_not_passed_on(fw: Firewall) -> None:
    fw.attach()
    with holding(fw) as held:
        assert not any(map(os.get_inheritable, held.programs.values()))
