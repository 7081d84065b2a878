"""The lines of `watch` beside a firewall at work: nothing is counted twice, nothing is lost."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.firewall import PROVIDER, PUBLIC, UCM, Firewall
from tests.support.wire import udp

HOLD = f"{PUBLIC}:4000"
MUSIC = f"{UCM}:24576"


@contextmanager
def watching(fw: Firewall) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "moh_ebpf", "watch", "--interval", "200ms"]
    with subprocess.Popen(
        ["ip", "netns", "exec", fw.namespace.name, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str], most: int = 50) -> Iterator[dict[str, float]]:
    """The next intervals' values by name."""
    assert process.stdout
    for _ in range(most):
        words = process.stdout.readline().split()[1:]
        yield {name: float(value) for name, value in (word.split("=") for word in words)}


def count_until(process: subprocess.Popen[str], name: str, count: int) -> Counter[str]:
    """All counters' growth, up to the interval by which one has grown so far."""
    grown: Counter[str] = Counter()
    for line in lines(process):
        grown.update(line)
        if grown[name] >= count:
            return grown
    raise AssertionError(f"{name} went to {grown[name]}, not to {count}: {grown}")


def test_every_packet_is_in_one_interval_also_when_the_set_is_replaced(fw: Firewall) -> None:
    fw.attach("--timeout", "60s")
    with watching(fw) as process:
        assert next(lines(process))["moh"] == 0
        fw.wan.send(*[udp(PROVIDER, HOLD)] * 23)
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 20, udp(MUSIC, "203.0.113.99:9999"))
        grown = count_until(process, "dropped_unidentified", 1)
        assert (grown["consumed"], grown["rewritten"], grown["learned_moh"]) == (23, 20, 1)

        fw.attach("--timeout", "60s", "--max-peers", "1000")
        fw.lan.send(*[udp(MUSIC, PROVIDER)] * 5)
        grown = count_until(process, "rewritten", 5)
        assert (grown["rewritten"], grown["dropped_unidentified"]) == (5, 0)
        assert next(lines(process))["moh"] == 1


def test_a_program_that_was_taken_away_is_missed(fw: Firewall) -> None:
    fw.attach()
    with watching(fw) as process:
        assert next(lines(process))["missing"] == 0
        fw.namespace.run("tc", "filter", "del", "dev", "lan", "ingress")
        assert any(line["missing"] == 1 for line in lines(process))
