"""`moh-ebpf events`: what happens on a firewall, as it happens."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf import layout
from moh_ebpf.calls.events import MUSIC_WITHIN_SECONDS, Event, Lost
from moh_ebpf.registry.reader import Left, Reader
from moh_ebpf.registry.ring import Ring
from moh_ebpf.registry.walk import attached_or_error
from tests.netns.test_metrics import get, samples
from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.flood import spoofed
from tests.support.service import CONFIG, service
from tests.support.waiting import PATIENCE_SECONDS, until
from tests.support.wire import on_one_cpu, udp

HOLD, CALL = f"{PUBLIC}:4000", f"{PUBLIC}:24576"
MUSIC = udp(f"{UCM}:24576", PROVIDER)


# Music that comes a second after its hold is none of the hold's: here it may be as late as the
# machine likes.
PATIENT = """
from moh_ebpf import cli
from moh_ebpf.calls import events
events.MUSIC_WITHIN_SECONDS = 60.0
cli.main()
"""


def talk(fw: Firewall) -> None:
    """RTP both ways, so that it is told of."""
    fw.wan.send(*[udp(PROVIDER, CALL)] * 2)
    fw.lan.send(MUSIC)


def put_on_hold(fw: Firewall) -> None:
    fw.wan.send(*[udp(PROVIDER, HOLD)] * 2)


class Events:
    """The program, and its lines as they come."""

    def __init__(self, fw: Firewall, directory: Path, *options: str, patient: bool = False) -> None:
        self._file = directory / f"events{len(list(directory.iterdir()))}"
        program = ["-c", PATIENT] if patient else ["-m", "moh_ebpf"]
        with self._file.open("w") as out, fw.namespace.entered():
            self.process = subprocess.Popen(
                [sys.executable, *program, "events", "--json", *options],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        whole = self._file.read_text().rpartition("\n")[0]
        return [json.loads(each) for each in whole.splitlines()]

    def names(self) -> list[str]:
        return [each["event"] for each in self.lines]

    def wait_for(self, *names: str) -> list[dict[str, Any]]:
        """Until these are its lines."""
        until(f"events are {names}, not {self.names()}", lambda: self.names() == [*names])
        return self.lines

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        assert self.process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
        return self.process.returncode


@contextmanager
def events(fw: Firewall, directory: Path, *options: str, patient: bool = False) -> Iterator[Events]:
    """Running, and reading already: an endpoint that expires tells so."""
    made = Events(fw, directory, *options, patient=patient)
    try:
        reads(fw, made.process)
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def reads(fw: Firewall, process: subprocess.Popen[str]) -> None:
    """Wait until it has the ring's pages, and sleeps: for events."""
    of = Path(f"/proc/{process.pid}")

    def sleeps() -> bool:
        return "bpf-map" in (of / "maps").read_text() and "State:\tS" in (of / "status").read_text()

    until("it reads", sleeps)


@contextmanager
def stopped(reader: Events) -> Iterator[None]:
    reader.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        reader.process.send_signal(signal.SIGCONT)


def test_what_happens_to_a_call(fw: Firewall, tmp_path: Path) -> None:
    """Two readers see all of it."""
    fw.attach("--timeout", "6s")  # in which each step comes, and its event
    with events(fw, tmp_path, patient=True) as one, events(fw, tmp_path, patient=True) as two:
        begun = time.time()
        talk(fw)
        fw.lan.send(MUSIC)
        one.wait_for("new")
        put_on_hold(fw)
        fw.lan.send(MUSIC)
        one.wait_for("new", "hold")
        talk(fw)
        seen = one.wait_for("new", "hold", "resume", "expired")
        assert two.wait_for("new", "hold", "resume", "expired") == [
            each | {"time": pytest.approx(each["time"], abs=0.01)} for each in seen
        ]
        assert one.end() == two.end() == 0
    new, hold, resume, expired = seen
    endpoint = {"address": "203.0.113.10", "port": 21000, "public_address": PUBLIC}
    assert all(each.items() >= endpoint.items() for each in seen)
    assert [(each["from"], each["to"], each["public_port"]) for each in seen] == [
        (None, "two", 24576), ("two", "moh", 4000), ("moh", "two", 24576), ("two", None, 24576),
    ]  # fmt: skip
    assert (hold["time_to_music"], hold["dropped_before"]) == (0, 0)
    # Since its first packet; it is told of when UCM has sent, too.
    assert hold["time"] - new["time"] - 0.01 < hold["lasted"] < hold["time"] - begun + 0.01
    assert expired["time"] == pytest.approx(resume["time"] + 6, abs=0.05)
    assert abs(time.time() - expired["time"]) < 60


def test_time_to_music(fw: Firewall, tmp_path: Path) -> None:
    """As the packets' own times have it: those that were dropped before, and how long it took."""
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path, patient=True) as reader:
        begun = time.monotonic()
        fw.lan.send(*[MUSIC] * 7)
        put_on_hold(fw)
        fw.lan.send(*[MUSIC] * 2)
        took = time.monotonic() - begun
        assert len(fw.wan.sent()) == 2
        hold = reader.wait_for("new", "hold")[1]
    assert hold["dropped_before"] == 7
    assert 0 < hold["time_to_music"] <= took
    assert hold["from"] is None


def test_a_hold_without_music(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        put_on_hold(fw)
        hold = reader.wait_for("new", "hold")[1]
    assert (hold["time_to_music"], hold["dropped_before"]) == (None, None)


def test_evicted(fw: Firewall, tmp_path: Path) -> None:
    """By the CPU that has learned it: one that takes from another's list does so last of all."""
    fw.attach("--timeout", "8s", "--max-peers", "64")
    with events(fw, tmp_path) as reader, on_one_cpu():
        talk(fw)
        reader.wait_for("new")
        for frame in spoofed(fw.wan, 3000):
            fw.wan.send_frame(frame)
        until(
            "it is evicted",
            lambda: (
                ("evicted", "203.0.113.10")
                in [(each["event"], each.get("address")) for each in reader.lines]
            ),
        )


def test_what_is_missed_is_counted(fw: Firewall, tmp_path: Path) -> None:
    """A reader that is stopped while another goes on: of each event it tells, or that it has missed
    it; and the one that goes on sees all."""
    fw.attach("--timeout", "60s")
    count = 20_000
    with events(fw, tmp_path) as slow, events(fw, tmp_path) as fast:
        with stopped(slow):
            for number, frame in enumerate(spoofed(fw.wan, count, packets=2)):
                fw.wan.send_frame(frame)
                if number % 1000 == 999:
                    until("the other one reads", partial(has_told, fast, number // 2 - 500))
        until("both have all", lambda: {sum(told(slow)), sum(told(fast))} == {learned(fw)})
        assert told(slow)[1] > 0
        assert told(fast)[1] == 0
        assert unwritten(fw) == 0


def test_what_no_reader_made_room_for_is_counted(fw: Firewall, tmp_path: Path) -> None:
    """The only reader is stopped until the kernel cannot write any more."""
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        with stopped(reader):
            for frame in spoofed(fw.wan, 10_000, packets=2):
                fw.wan.send_frame(frame)
        until("it has all", lambda: sum(told(reader)) == learned(fw))
        assert told(reader)[1] == unwritten(fw) > 0
        # It reads on: there is room again, and nothing is counted twice.
        talk(fw)
        until("it tells of one more", lambda: reader.names()[-1] == "new")
        assert told(reader)[1] == unwritten(fw)


def test_one_that_joins_a_call_knows_its_rtp_alone(fw: Firewall, tmp_path: Path) -> None:
    """RTCP has no events, so it does not end either. The reader starts within the timeout."""
    fw.attach("--timeout", "10s", "--rtcp-timeout", "0s")
    address, port = PROVIDER.split(":")
    rtcp = udp(f"{address}:{int(port) + 1}", f"{PUBLIC}:24601", b"\x80\xc8\0\6" + bytes(24))
    fw.wan.send(rtcp)
    talk(fw)
    with events(fw, tmp_path) as joined:
        (end,) = joined.wait_for("expired")  # RTCP's would have come before
    assert end["port"] == int(port)


def told(reader: Events) -> tuple[int, int]:
    """How many new endpoints it has told of, or missed: the events here are no others."""
    lines = reader.lines
    lost = sum(each["count"] for each in lines if each["event"] == "lost")
    return sum(each["event"] == "new" for each in lines), lost


def has_told(reader: Events, new: int) -> bool:
    return told(reader)[0] >= new


def learned(fw: Firewall) -> int:
    return counters(fw)["learned_moh"]


def unwritten(fw: Firewall) -> int:
    return counters(fw)["events_unread"]


def counters(fw: Firewall) -> dict[str, int]:
    return json.loads(fw.moh("status", "--json").stdout)["counters"]


def test_over_a_replacement(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        talk(fw)
        reader.wait_for("new")
        fw.attach("--timeout", "60s", "--max-peers", "1000")
        put_on_hold(fw)
        fw.lan.send(MUSIC)
        reader.wait_for("new", "hold")


def test_detached_meanwhile(fw: Firewall, tmp_path: Path) -> None:
    fw.attach()
    with events(fw, tmp_path) as reader:
        fw.moh("detach")
        error = reader.process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert reader.process.returncode == 3
    assert "detached meanwhile" in error


def test_detached_and_attached_while_it_does_not_look(fw: Firewall, tmp_path: Path) -> None:
    """It tells to the last of what there was, and all that the new programs have told."""
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        with stopped(reader):
            talk(fw)
            fw.moh("detach")
            fw.attach("--timeout", "60s")
            put_on_hold(fw)
            fw.lan.send(MUSIC)
        seen = reader.wait_for("new", "new", "hold")
        assert [each["public_port"] for each in seen] == [24576, 4000, 4000]


def test_detached_while_it_does_not_look(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        with stopped(reader):
            put_on_hold(fw)
            fw.moh("detach")
        assert "detached meanwhile" in reader.process.communicate(timeout=PATIENCE_SECONDS)[1]
        assert reader.names() == ["new", "hold"]  # which no music can follow


def test_history_has_all_that_is_in_the_ring(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    for frame in spoofed(fw.wan, 4000, packets=2):
        fw.wan.send_frame(frame)
    shown = fw.moh("events", "--history", "--for", "3s", "--json").stdout
    assert shown.count('"new"') == learned(fw)


def test_one_that_is_live_over_a_replacement(fw: Firewall) -> None:
    """With another map of peers: in the old one, which nobody writes to any more, it is silent.

    The reader, which does not look whether it was replaced, has to find that out by itself before
    it tells an end. The timeout is longer than who talks may be held up.
    """
    seconds, ended, names = 4.0, threading.Event(), list[str]()
    fw.attach("--timeout", f"{seconds:g}s")

    def goes_on() -> None:
        while not ended.wait(0.02):
            talk(fw)

    def names_are(*wanted: str, wait: float = 0.0) -> bool:
        names.extend(each.event for each in reader.read(wait) if isinstance(each, Event))
        return names == [*wanted]

    with fw.namespace.entered(), Reader(checks=False) as reader, ThreadPoolExecutor() as pool:
        talking = pool.submit(goes_on)
        try:
            until("it is told of", lambda: names_are("new"))
            for count in (1000, 2000):
                fw.attach("--timeout", f"{seconds:g}s", "--max-peers", str(count))
                replaced = time.monotonic()
                while time.monotonic() < replaced + seconds + 1:
                    assert names_are("new", wait=0.1)
        finally:
            ended.set()
        talking.result()
        until("it ends", lambda: names_are("new", "expired"))


def test_the_end_of_a_call_that_began_before_the_ring_did(fw: Firewall, tmp_path: Path) -> None:
    """Of which the history has nothing any more. Nor has it what nobody made room for: lost."""
    fw.attach("--timeout", "12s")  # a reader starts and ends meanwhile
    talk(fw)
    for frame in spoofed(fw.wan, 3000, packets=2):
        fw.wan.send_frame(frame)
    with events(fw, tmp_path):  # makes room: the call's event is before that
        pass
    for frame in spoofed(fw.wan, 6000, packets=2):
        fw.wan.send_frame(frame)
    talk(fw)
    with events(fw, tmp_path, "--history") as reader:
        until(
            "its end is told",
            lambda: [each for each in reader.lines if each.get("address") == "203.0.113.10"],
        )
        mine = [each for each in reader.lines if each.get("address") == "203.0.113.10"]
        assert [each["event"] for each in mine] == ["expired"]
        lost = [each["count"] for each in reader.lines if each["event"] == "lost"]
        assert lost == [unwritten(fw)]


def test_interfaces_have_their_present_names(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        fw.namespace.run("ip", "link", "set", "wan", "name", "ppp7")
        fw.moh("attach", "--wan", "ppp7", "--lan", "lan", "--ucm", UCM, "--timeout", "60s")
        talk(fw)
        assert reader.wait_for("new")[0]["interface"] == "ppp7"


def test_nothing_attached(fw: Firewall) -> None:
    done = fw.moh("events", check=False)
    assert done.returncode == 3
    assert "not attached" in done.stderr


def test_a_reader_that_was_killed_leaves_nothing(fw: Firewall, tmp_path: Path) -> None:
    fw.attach("--timeout", "60s")
    with events(fw, tmp_path) as reader:
        reader.process.kill()
        reader.process.wait()
    for frame in spoofed(fw.wan, 10_000, packets=2):
        fw.wan.send_frame(frame)
    with events(fw, tmp_path) as reader:
        talk(fw)
        reader.wait_for("new")


def test_history(fw: Firewall, tmp_path: Path) -> None:
    """What is in the ring, before what comes."""
    fw.attach("--timeout", "60s")
    talk(fw)
    put_on_hold(fw)
    fw.lan.send(MUSIC)
    with events(fw, tmp_path, "--history") as reader:
        reader.wait_for("new", "hold")


def test_for_so_long_and_as_lines(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    talk(fw)
    shown = fw.moh("events", "--history", "--for", "100ms").stdout
    assert f"new     {PROVIDER}  TWO at {CALL}" in shown


def test_nobody_reads_any_more(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    talk(fw)
    command = f"{sys.executable} -m moh_ebpf events --history | head -n1"
    put_on_hold(fw)
    done = fw.namespace.run("bash", "-c", f"set -o pipefail; {command}", check=False)
    assert "new" in done.stdout
    assert done.stderr == ""


def test_the_service_logs_them_and_counts_them(fw: Firewall, tmp_path: Path) -> None:
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")
    config = CONFIG + 'timeout = "60s"\n' if "timeout" not in CONFIG else CONFIG
    with service(fw.namespace, tmp_path, config, "--metrics", "9477") as run:
        run.wait_for_word("READY")
        slow, quick = 0, False
        while not quick:  # music that comes a second after its hold is none of the hold's
            begun = time.monotonic()
            fw.lan.send(MUSIC)
            put_on_hold(fw)
            fw.lan.send(MUSIC)
            quick = time.monotonic() - begun < MUSIC_WITHIN_SECONDS
            slow += not quick
            run.wait_for_line(f"hold {PROVIDER}")
            talk(fw)
            run.wait_for_line(f"resume {PROVIDER}")
        found = samples(get(fw, "http://127.0.0.1:9477/metrics"))
        assert 1 <= found["moh_ebpf_time_to_music_seconds_count",] <= 1 + slow
        within = found["moh_ebpf_time_to_music_seconds_bucket", "10.0"]
        assert within == found["moh_ebpf_time_to_music_seconds_count",]
        assert found["moh_ebpf_hold_seconds_count",] == 1 + slow
        assert found["moh_ebpf_events_total", "hold"] == 1 + slow
        assert run.stop() == 0


def test_the_service_tells_of_all_since_it_attached(fw: Firewall, tmp_path: Path) -> None:
    """Its own attach, what it puts back; adopted, it does not tell again what was before."""
    fw.namespace.run("nft", "insert", "rule", "ip", "filter", "input", "iifname", "lo", "accept")

    def counted(name: str) -> float:
        found = samples(get(fw, "http://127.0.0.1:9477/metrics"))
        return found.get(("moh_ebpf_events_total", name), 0)

    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run:
        run.wait_for_word("READY")
        talk(fw)
        run.wait_for_line(f"new {PROVIDER}")
        fw.moh("detach")
        run.wait_for_line("put back (nothing was attached)")
        # The peers are there as before.
        put_on_hold(fw)
        run.wait_for_line(f"hold {PROVIDER}")
        assert (counted("new"), counted("hold")) == (1, 1)
        assert run.stop(signal.SIGUSR1) == 0
    with service(fw.namespace, tmp_path, CONFIG, "--metrics", "9477") as run:
        run.wait_for_word("READY")
        talk(fw)
        run.wait_for_line(f"resume {PROVIDER}")
        assert (counted("new"), counted("resume")) == (0, 1)
        assert run.stop() == 0


def test_a_reader_goes_on_where_another_left(fw: Firewall) -> None:
    """Such as the service's, when its programs were detached and put back."""
    fw.attach("--timeout", "60s")

    def told(reader: Reader, number: int) -> list[str]:
        """So many events, and those that come with them."""
        found: list[str] = []

        def are_there() -> bool:
            if len(found) >= number:
                return True
            for each in reader.read(0.2):
                assert isinstance(each, Event), each
                found.append(each.event)
            return False

        until(f"{number} events", are_there)
        return found

    with fw.namespace.entered():
        talk(fw)
        with Reader(history=True) as first:
            assert told(first, 1) == ["new"]
            left = first.left
        put_on_hold(fw)
        with Reader(history=True, after=left) as next_one:
            assert told(next_one, 1) == ["hold"]
        for after in (None, Left(left.ring + 1, left.at)):
            with Reader(history=True, after=after) as anew:
                assert told(anew, 2) == ["new", "hold"]


def read_more(reader: Reader, told: list[Event | Lost]) -> bool:
    """Add what has happened; is there anything by now?"""
    told += reader.read(0.2)
    return bool(told)


def test_a_reader_that_joins_knows_nobody_that_is_not_told_of(fw: Firewall) -> None:
    """One packet may be noise: its end is no news, either."""
    seconds = 2.0
    fw.attach("--timeout", f"{seconds:g}s")

    def ends_told() -> list[tuple[str, str | None]] | None:
        """None: a pause of the machine's, and both had ended before they could be known."""
        sent = time.monotonic()
        fw.wan.send(udp("203.0.113.77:20000", CALL))
        talk(fw)
        told: list[Event | Lost] = []
        with Reader() as reader:
            told += reader.read()
            if time.monotonic() - sent >= seconds:
                return None
            until("the end of the call is told", partial(read_more, reader, told))
            read_more(reader, told)  # what else was due
        return [(each.event, each.address) for each in told if isinstance(each, Event)]

    with fw.namespace.entered():
        told = until("a reader joins in time", ends_told)
    assert told == [("expired", PROVIDER.split(":")[0])]


def test_a_flood_does_not_fill_the_log(fw: Firewall, tmp_path: Path) -> None:
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        for frame in spoofed(fw.wan, 20_000, packets=2):
            fw.wan.send_frame(frame)
        run.wait_for_line("more events in a second")
        assert run.stop() == 0


def test_records_are_all_of_one_size(fw: Firewall) -> None:
    """The reader's own check, against the ring that the kernel has made."""
    fw.attach("--timeout", "60s")
    with fw.namespace.entered(), attached_or_error() as attached:
        ring = Ring(attached.maps.opened["events"])
        talk(fw)
        put_on_hold(fw)
        records, missed = ring.read()
        assert (len(records), missed) == (2, 0)
        assert ring.written() == 2 * (8 + layout.EVENT.size)
        ring.close()
