"""`moh-ebpf run`: attached by the config, and kept so whatever happens to interfaces."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf.kernel import lock
from moh_ebpf.kernel.tc import Hook
from tests.support.firewall import GATEWAY, PROVIDER, PUBLIC, UCM, Firewall
from tests.support.flood import Streams, playing
from tests.support.foreign import counter
from tests.support.service import CONFIG, Service, held_up, service
from tests.support.waiting import until
from tests.support.wire import Tun, Wire, flow, udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"


def do(fw: Firewall, command: str) -> None:
    fw.namespace.run(*command.split())


def state(fw: Firewall) -> str:
    return fw.namespace.tc_state("lan", "wan")


def status(fw: Firewall) -> dict[str, Any]:
    return json.loads(fw.moh("status", "--json", check=False).stdout)


def program_ids(fw: Firewall) -> list[int]:
    return [program["id"] for program in status(fw)["programs"]]


def hears_music(fw: Firewall, public: str = PUBLIC, wire: Wire | Tun | None = None) -> bool:
    """Does a hold now get its music from this public address?"""
    wire = wire or fw.wan
    wire.send(udp(PROVIDER, f"{public}:4000"))
    wire.sent()
    fw.lan.send(udp(MUSIC, PROVIDER))
    return [flow(each) for each in wire.sent()] == [(f"{public}:4000", PROVIDER)]


@contextmanager
def stream(fw: Firewall) -> Iterator[None]:
    """A held call meanwhile, a packet each way each millisecond, of which none may be lost."""
    fw.wan.sent()
    with playing(Streams(fw, [PROVIDER])) as rounds:
        yield
    sent = rounds()
    assert sent > 50
    assert [flow(each) for each in fw.wan.sent()] == [(HOLD, PROVIDER)] * sent


def test_attached_while_it_runs(fw: Firewall, tmp_path: Path) -> None:
    before = state(fw)
    with service(fw.namespace, tmp_path, CONFIG) as run:
        assert run.wait_for_word("READY") == "1"
        line = run.wait_for_line("attached (nothing was attached)")
        assert "wan wan, lan lan" in line
        assert HOLD in line
        assert hears_music(fw)
        assert run.stop() == 0
        assert run.wait_for_word("STOPPING") == "1"
        run.wait_for_line("stopped; detached")
    assert state(fw) == before


def test_keep_leaves_it_attached(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG, "--keep") as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        assert run.stop(signal.SIGINT) == 0
    assert program_ids(fw) == ids
    assert hears_music(fw)


def test_a_restart_leaves_it_attached(fw: Firewall, tmp_path: Path) -> None:
    """SIGUSR1 is the unit's RestartKillSignal."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        assert run.stop(signal.SIGUSR1) == 0
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_line("what is attached already is right, and stays")
        assert program_ids(fw) == ids
        assert hears_music(fw)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_stopped_while_it_starts(fw: Firewall, tmp_path: Path, number: signal.Signals) -> None:
    """Over what a killed one has left. Signals wait until they can be answered."""
    before = state(fw)
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        run.stop(signal.SIGKILL)
    with service(fw.namespace, tmp_path, CONFIG) as run:
        until("its signals wait, or are answered", lambda: _heeds_signals(run.process.pid))
        assert run.stop(number) == 0
        run.wait_for_line("stopped; ")
    assert (state(fw) == before) is (number != signal.SIGUSR1)


def _heeds_signals(pid: int) -> bool:
    """All of them from the same moment on; SIGTERM tells, for Python catches SIGINT at once."""
    said = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"Sig(?:Blk|Cgt):\s*(\w+)", said)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def test_status_text_counts_the_calls(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        assert run.wait_for_word("STATUS") == "0 on hold, 0 two-way"
        run.stop(signal.SIGKILL)
    talking = [f"203.0.113.{n}:21000" for n in range(11, 14)]
    heard = [udp(PROVIDER, HOLD), *[udp(each, f"{PUBLIC}:24576") for each in talking]]
    fw.wan.send(*heard * 2)
    fw.lan.send(*[udp(f"{UCM}:24576", each) for each in talking])
    with service(fw.namespace, tmp_path, CONFIG) as run:
        assert run.wait_for_word("STATUS") == "1 on hold, 3 two-way"


def test_watchdog_is_fed_as_often_as_it_asks(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG, WATCHDOG_USEC="200000") as run:
        run.wait_for_word("READY")
        assert [run.wait_for_word("WATCHDOG") for _ in range(5)] == ["1"] * 5


def test_adopts_after_a_kill_without_a_gap(fw: Firewall, tmp_path: Path) -> None:
    """The very programs stay, and so does each packet of a stream that plays meanwhile."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        fw.wan.send(udp(PROVIDER, HOLD))
        with stream(fw):
            run.stop(signal.SIGKILL)
            with service(fw.namespace, tmp_path, CONFIG) as again:
                again.wait_for_word("READY")
                again.wait_for_line("what is attached already is right, and stays")
                assert program_ids(fw) == ids
                again.stop(signal.SIGKILL)


def test_restores_what_somebody_removes(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        do(fw, "tc filter del dev lan ingress pref 4000")
        run.wait_for_line("somebody had removed bypass on lan")
        assert hears_music(fw)
        do(fw, "tc qdisc del dev wan clsact")
        run.wait_for_line("somebody had removed learn on wan, enforce on wan")
        assert hears_music(fw)
        assert f"moh-ebpf run (process {run.process.pid})" in fw.moh("detach").stderr
        run.wait_for_line("nothing was attached")
        assert hears_music(fw)


def test_there_is_one_service_in_a_namespace(fw: Firewall, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        with service(fw.namespace, second, CONFIG.replace("60s", "61s")) as other:
            assert f"process {run.process.pid}" in other.wait_for_line("there already")
            assert other.process.wait(20) == 1
        assert program_ids(fw) == ids
        with fw.namespace.entered():  # more often than a socket that accepts nobody would bear
            assert {lock.running_service() for _ in range(300)} == {run.process.pid}


def test_nobody_without_root_can_keep_it_from_running(fw: Firewall, tmp_path: Path) -> None:
    taken = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0moh-ebpf run'); "
    taken += "s.listen(); print(flush=True); time.sleep(60)"
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", taken]
    with fw.namespace.entered():
        squatter = subprocess.Popen(nobody, stdout=subprocess.PIPE)
    try:
        assert squatter.stdout
        assert squatter.stdout.readline()
        with service(fw.namespace, tmp_path, CONFIG) as run:
            run.wait_for_line("ignored")
            assert run.wait_for_word("READY") == "1"
            assert hears_music(fw)
            run.stop()
    finally:
        squatter.kill()
        squatter.communicate()


def test_leaves_the_filters_of_others_alone(fw: Firewall, tmp_path: Path) -> None:
    with counter(fw, "wan", Hook.EGRESS, 9000):
        before = state(fw)
        with service(fw.namespace, tmp_path, CONFIG) as run:
            run.wait_for_word("READY")
            do(fw, "tc filter del dev wan egress pref 4000")
            run.wait_for_line("somebody had removed enforce on wan")
            run.stop()
        assert state(fw) == before


def test_interface_that_comes_back_is_attached_again(fw: Firewall, tmp_path: Path) -> None:
    """As PPPoE does it: ppp0 is gone with its filters, and another one has its name and address."""
    config = CONFIG.replace('["wan"]', '["ppp0"]')
    ppp = fw.add_tun("ppp0", "198.51.100.77/32")
    do(fw, "ip route replace default dev ppp0")
    with service(fw.namespace, tmp_path, config) as run:
        run.wait_for_line("198.51.100.77:4000")
        assert hears_music(fw, "198.51.100.77", ppp)
        ppp.close()
        assert "ppp0" in run.wait_for_line("waiting for")
        ppp = fw.add_tun("ppp0", "198.51.100.78/32")
        do(fw, "ip route replace default dev ppp0")
        run.wait_for_line("198.51.100.78:4000")
        assert hears_music(fw, "198.51.100.78", ppp)


def test_one_uplink_goes_the_other_plays_on(fw: Firewall, tmp_path: Path) -> None:
    config = CONFIG.replace('["wan"]', '["wan", "wan2"]')
    fw.add_tun("wan2", "192.0.2.2/32")
    with service(fw.namespace, tmp_path, config) as run:
        run.wait_for_word("READY")
        fw.wan.send(udp(PROVIDER, HOLD))
        with stream(fw):
            do(fw, "ip link del wan2")
            run.wait_for_line("interfaces have changed")
            fw.add_tun("wan2", "192.0.2.3/32")
            run.wait_for_line("192.0.2.3:4000")
        run.stop()


def test_one_uplink_is_unfit_the_other_plays_on(fw: Firewall, tmp_path: Path) -> None:
    """It has somebody's ingress qdisc by now, which has no place for enforce."""
    config = CONFIG.replace('["wan"]', '["wan", "wan2"]')
    fw.add_tun("wan2", "192.0.2.2/32")
    with service(fw.namespace, tmp_path, config) as run:
        run.wait_for_word("READY")
        do(fw, "tc qdisc del dev wan2 clsact")
        run.wait_for_line("somebody had removed learn on wan2")
        fw.namespace.run("sh", "-c", "tc qdisc del dev wan2 clsact; tc qdisc add dev wan2 ingress")
        run.wait_for_line("waiting for wan2: it has an ingress qdisc")
        run.wait_for_line("attached (interfaces have changed): wan wan,")
        do(fw, "tc filter del dev wan ingress pref 4000")
        run.wait_for_line("somebody had removed learn on wan")
        assert hears_music(fw)
        do(fw, "tc qdisc del dev wan2 ingress")
        run.wait_for_line("192.0.2.2:4000")
        assert not status(fw)["missing"]


def test_a_new_uplink_that_is_unfit_is_refused(fw: Firewall, tmp_path: Path) -> None:
    fw.add_tun("wan2", "192.0.2.2/32")
    do(fw, "tc qdisc add dev wan2 ingress")
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        reload(run, tmp_path, CONFIG.replace('["wan"]', '["wan", "wan2"]'))
        run.wait_for_line("the old one stays in force: wan2: it has an ingress qdisc")
        assert program_ids(fw) == ids


def test_an_address_that_comes_and_goes_is_news_each_time(fw: Firewall, tmp_path: Path) -> None:
    """However often: nobody waits for long to be heard on it."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        for number in range(41):
            verb = "del" if number % 2 else "add"
            do(fw, f"ip addr {verb} 192.0.2.50/27 dev wan")
            threading.Event().wait(0.3)  # that is its pace
        until("it is followed", lambda: "192.0.2.50" in status(fw)["settings"]["public"])
        assert run.stop() == 0
        run.wait_for_line("stopped; detached")
        assert not [line for line in run.lines if "again and again" in line]


def test_address_of_the_wan_is_followed(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        do(fw, "ip addr add 192.0.2.9/24 dev wan")
        run.wait_for_line("addresses have changed")
        assert hears_music(fw, "192.0.2.9")
        fw.namespace.run(*f"ip addr del {PUBLIC}/24 dev wan".split())
        assert HOLD not in run.wait_for_line("addresses have changed")


def test_down_and_up_again_needs_nothing(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        ids = program_ids(fw)
        for way in ("down", "up"):
            fw.namespace.run("ip", "link", "set", "wan", way)
        fw.namespace.run("ip", "route", "replace", "default", "via", GATEWAY)
        fw.add_neighbour(GATEWAY, fw.wan)
        do(fw, "tc filter del dev lan ingress pref 4000")
        run.wait_for_line("somebody had removed bypass on lan")
        assert not any("waiting" in line or "changed" in line for line in run.lines)
        assert program_ids(fw) == ids
        assert hears_music(fw)


def test_starts_before_its_interfaces(fw: Firewall, tmp_path: Path) -> None:
    config = CONFIG.replace('["wan"]', '["ppp0"]')
    with service(fw.namespace, tmp_path, config) as run:
        run.wait_for_line("waiting for ppp0")
        assert run.wait_for_word("READY") == "1"
        ppp = fw.add_tun("ppp0", "198.51.100.77/32")
        do(fw, "ip route replace default dev ppp0")
        run.wait_for_line("198.51.100.77:4000")
        assert hears_music(fw, "198.51.100.77", ppp)


def reload(run: Service, tmp_path: Path, config: str) -> None:
    (tmp_path / "moh-ebpf.toml").write_text(config)
    run.send(signal.SIGHUP)
    assert run.wait_for_word("RELOADING") == "1"
    assert run.wait_for_word("READY") == "1"


def test_reload_replaces_without_a_gap(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        fw.wan.send(udp(PROVIDER, HOLD))
        with stream(fw):
            reload(run, tmp_path, CONFIG.replace("60s", "61s"))
            run.wait_for_line("config reloaded (settings have changed)")
            reload(run, tmp_path, CONFIG.replace("60s", "61s"))
            run.wait_for_line("config reloaded: nothing to change")
        assert status(fw)["settings"]["timeout"] == 61


BAD_CONFIGS = [
    ("wan = [", "not valid TOML"),
    (CONFIG + "colour = 1\n", "no setting 'colour'"),
    (CONFIG.replace(UCM, "10.10.10.300"), "no IPv4 address"),
    (CONFIG.replace('["wan"]', '["wna"]'), "no such interface"),
    (CONFIG + "max_peers = 99999999\n", "out of range"),
    (CONFIG + f"max_peers = {'9' * 5000}\n", "not valid TOML"),
    (CONFIG + f"x = {'[' * 5000}\n", "not valid TOML"),
    (CONFIG.replace('["wan"]', '["bare"]'), "an IPv4 address on bare"),
    (CONFIG.replace('["wan"]', '["port"]'), "name bridge instead"),
]


def test_bad_configs_change_nothing(fw: Firewall, tmp_path: Path) -> None:
    do(fw, "ip link add bare type veth peer name port")
    do(fw, "ip link add bridge type bridge")
    do(fw, "ip link set port master bridge up")
    do(fw, "ip link set bare up")
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        before = status(fw)
        for config, says in BAD_CONFIGS:
            reload(run, tmp_path, config)
            assert says in run.wait_for_line("config not reloaded, the old one stays in force")
        assert status(fw) == before
        # The old one is in force indeed: it is what is restored.
        do(fw, "tc filter del dev lan ingress pref 4000")
        run.wait_for_line("somebody had removed bypass on lan")
        assert status(fw)["settings"] == before["settings"]


def test_a_config_that_is_no_file_is_refused(fw: Firewall, tmp_path: Path) -> None:
    """A pipe, which would keep it waiting; at a reload and at the start."""
    file = tmp_path / "moh-ebpf.toml"
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        file.unlink()
        os.mkfifo(file)
        run.send(signal.SIGHUP)
        assert f"{file}: it is no regular file" in run.wait_for_line("config not reloaded")
        assert run.stop() == 0
    done = fw.moh("run", "--config", str(file), check=False)
    assert (done.returncode, "no regular file" in done.stderr) == (2, True)
    file.unlink()
    done = fw.moh("run", "--config", str(file), check=False)
    assert done.returncode == 2
    assert re.search(rf"{file}: No such file.*wan = .*ucm = ", done.stderr)


def test_many_signals_are_as_one_and_the_last_counts(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        do(fw, "tc filter del dev lan ingress pref 4000")
        for _ in range(3000):
            run.send(signal.SIGHUP)
        assert run.stop() == 0
        run.wait_for_line("stopped; detached")
        assert len(run.lines) < 100
        assert not any("Exception" in line for line in run.lines)


def test_a_manager_that_does_not_read_cannot_stop_it(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG, WATCHDOG_USEC="40000") as run:
        run.wait_for_word("READY")
        fill(tmp_path / "notify")
        do(fw, "tc filter del dev lan ingress pref 4000")
        run.wait_for_line("somebody had removed bypass on lan")
        assert run.stop() == 0
    assert status(fw)["attached"] is False


def fill(address: Path) -> None:
    """Words until there is no room for another."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.connect(str(address))
        with suppress(BlockingIOError):
            while True:
                line.send(b"EXTEND_TIMEOUT_USEC=1")


def test_a_log_that_nobody_reads_cannot_stop_it(fw: Firewall, tmp_path: Path) -> None:
    """A full pipe for stderr, from before its first line to its end."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb") as pipe:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"." * 4096)
        os.set_blocking(writer, True)
        with service(
            fw.namespace, tmp_path, CONFIG, stderr=pipe.fileno(), WATCHDOG_USEC="1000000"
        ) as run:
            assert run.wait_for_word("READY") == "1"
            ids = program_ids(fw)
            do(fw, "tc filter del dev lan ingress pref 4000")
            until("it is restored", lambda: not status(fw)["missing"])
            assert program_ids(fw) == ids
            reload(run, tmp_path, "wan = [")
            reload(run, tmp_path, CONFIG.replace("60s", "61s"))
            assert status(fw)["settings"]["timeout"] == 61
            assert run.wait_for_word("WATCHDOG") == "1"
            assert run.stop() == 0
    assert status(fw)["attached"] is False


def test_stopped_while_attach_waits_for_another_command(fw: Firewall, tmp_path: Path) -> None:
    """Whoever holds the namespace's lock holds up attach, and not the answer to a signal."""
    with fw.namespace.locked(), service(fw.namespace, tmp_path, CONFIG, "--keep") as run:
        until("attach waits", lambda: held_up(run))
        assert run.stop() == 0
        run.wait_for_line("stopped; what is attached stays")
    assert status(fw)["attached"] is False


def test_an_attach_that_takes_long_is_waited_for(fw: Firewall, tmp_path: Path) -> None:
    with ExitStack() as locked:
        locked.enter_context(fw.namespace.locked())
        with service(fw.namespace, tmp_path, CONFIG, WATCHDOG_USEC="60000000") as run:
            assert [run.wait_for_word("WATCHDOG") for _ in range(2)] == ["1", "1"]
            locked.close()
            assert run.wait_for_word("READY") == "1"
            run.wait_for_line("attached (nothing was attached)")
            run.stop()


def test_attach_by_hand_is_told_of_the_service(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        done = fw.moh("attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM)
        assert f"moh-ebpf run (process {run.process.pid}) will put its own" in done.stderr
        run.wait_for_line("attached (somebody had attached other settings): wan wan, lan lan")
        assert status(fw)["settings"]["timeout"] == 60


def test_a_bad_config_at_the_start_is_an_error(fw: Firewall, tmp_path: Path) -> None:
    before = state(fw)
    with service(fw.namespace, tmp_path, CONFIG + "colour = 1\n") as run:
        assert "no setting 'colour'" in run.wait_for_line("moh-ebpf: ")
        assert run.process.wait(20) == 2
    assert state(fw) == before


def test_against_somebody_who_insists_it_is_patient(fw: Firewall, tmp_path: Path) -> None:
    """Each repair undone at once: they come ever more seldom, and the service stays as it is."""
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        for _ in range(2):
            do(fw, "tc filter del dev lan ingress pref 4000")
            run.wait_for_line("somebody had removed bypass on lan")
        do(fw, "tc filter del dev lan ingress pref 4000")
        do(fw, "ip addr add 192.0.2.8/32 dev lan")
        assert run.no_more_lines()
        assert run.stop() == 0


def test_at_rest_it_holds_no_compiler_and_sleeps(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG, NOTIFY_SOCKET="") as run:
        run.wait_for_line("attached (nothing was attached)")
        process = Path(f"/proc/{run.process.pid}")
        until("it sleeps", lambda: "poll" in (process / "wchan").read_text())
        settled = until("nothing wakes it", lambda: unchanged(process / "status"))
        assert "voluntary_ctxt_switches" in settled
        (resident,) = re.findall(r"VmRSS:\s*(\d+) kB", settled)
        assert int(resident) < 64 * 1024
        mapped = (process / "maps").read_text()
        assert "libbpf" in mapped
        assert not any(name in mapped for name in ("libbcc", "LLVM", "clang"))


def unchanged(file: Path) -> str:
    """The text, if it is the same a while later: what our own attach has changed is looked at once
    more before that."""
    text = file.read_text()
    threading.Event().wait(1.5)
    return text if text == file.read_text() else ""
