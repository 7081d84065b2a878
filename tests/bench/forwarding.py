"""What a packet of hold music costs in each firewall: alone, among peers, at its pace, in a flood.

Samples are ns of CPU time a packet, the generator's and the sink's with it. All contenders of a
measurement take turns, so that what changes on the machine meanwhile changes for all of them.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypedDict

from tests.bench import contenders, native
from tests.bench.contenders import DROP, MOH, PLAYED, Running, all_running, running
from tests.bench.effort import Effort
from tests.support.wire import udp

Samples = dict[str, list[float]]
Tell = Callable[[str], None]

# One packet of each stream every 20 ms, in this many bursts: G.711's pace.
_STREAM_PACKETS_PER_SECOND = 50
_BURSTS_PER_SECOND = 1000


def _count(each: Running, effort: Effort) -> int:
    return effort.packets_in_user_space if each.contender.in_user_space else effort.packets


def by_contender(runs: list[Running], effort: Effort, tell: Tell) -> dict[str, Samples]:
    """For each number of streams: the samples of each contender."""
    found: dict[str, Samples] = {}
    for flows in effort.flows:
        samples = found[str(flows)] = {each.contender.name: [] for each in runs}
        for number in range(effort.rounds):
            tell(f"forwarding, {flows} streams, round {number + 1} of {effort.rounds}")
            for each in runs:
                each.learn(flows)
                samples[each.contender.name].append(each.ns(flows, _count(each, effort)))
    return found


def at_their_pace(runs: list[Running], effort: Effort, tell: Tell) -> dict[str, Any]:
    """1,000 held calls of 50 packets/s: caches are cold for each burst, next hops are asked for."""
    rate = effort.streams * _STREAM_PACKETS_PER_SECOND
    count = round(rate * effort.stream_seconds)
    samples: Samples = {each.contender.name: [] for each in runs}
    lost: Samples = {each.contender.name: [] for each in runs}
    for number in range(effort.rounds):
        tell(f"{effort.streams} streams at their pace, round {number + 1} of {effort.rounds}")
        for each in runs:
            each.learn(effort.streams)
            ns, percent = each.at_pace(effort.streams, count, **_pace(rate))
            samples[each.contender.name].append(ns)
            lost[each.contender.name].append(percent)
    return {"streams": effort.streams, "samples": samples, "lost": lost}


class _Pace(TypedDict):
    burst: int
    pause: int


def _pace(rate: int) -> _Pace:
    """So many packets a second, a burst a millisecond, or one packet where they are fewer."""
    burst = max(1, rate // _BURSTS_PER_SECOND)
    return {"burst": burst, "pause": 1_000_000_000 * burst // rate}


def among_peers(effort: Effort, tell: Tell) -> dict[str, Any]:
    """moh_ebpf with so many live peers: hold music to all of them in turn, and to one of them.

    `full` is a map that was filled past its size, and hold music to as many as fit easily.
    """
    sizes = {str(count): count for count in effort.peers}
    with ExitStack() as stack:
        drop = stack.enter_context(running(DROP))
        made = {name: stack.enter_context(running(MOH)) for name in [*sizes, "full"]}
        made["full"].hear(200_000, 200_000, first="11.0.0.1:20000")
        sizes["full"] = min(1000, max(effort.peers))
        found: dict[str, Any] = {
            name: {"all": [], "drop_all": [], "one": [], "drop_one": []} for name in sizes
        }
        for number in range(effort.rounds):
            tell(f"among peers, round {number + 1} of {effort.rounds}")
            for name, count in sizes.items():
                made[name].learn(count)
                packets = max(effort.packets, 2 * count)
                found[name]["all"].append(made[name].ns(count, packets))
                found[name]["drop_all"].append(drop.ns(count, packets))
                found[name]["one"].append(made[name].ns(1, effort.packets))
                found[name]["drop_one"].append(drop.ns(1, effort.packets))
    return found


def _drop_at_wan() -> contenders.Contender:
    return contenders.Contender(
        "drop",
        DROP.label,
        contenders.UCM_ENDPOINT,  # the flood comes by the other side
        lambda: contenders.bare("drop", "wan"),
        learns=False,
    )


def _moh_with_providers() -> contenders.Contender:
    listed = ("--lan", "lan", "--provider", "203.0.0.0/16")
    return contenders.Contender(
        "moh-provider",
        "moh_ebpf, --provider",
        MOH.source,
        lambda: contenders.moh(*listed),
    )


def flood(effort: Effort, tell: Tell) -> dict[str, Any]:
    """Spoofed sources, each new: what one packet costs, and which new calls come through after.

    The flood is as long as it takes to fill a set of 65,536 several times over.
    """
    chosen = [_drop_at_wan(), MOH, _moh_with_providers(), contenders.NFT_IP]
    chosen += contenders.usable_article()[:1]
    found: dict[str, Any] = {each.name: {"ns": [], "calls": []} for each in chosen}
    new_calls = 100
    with all_running(chosen) as runs:
        for number in range(effort.rounds):
            tell(f"flood, round {number + 1} of {effort.rounds}")
            for each in runs:
                first = f"{11 + number % 80}.0.0.1:20000"
                sent = each.hear(effort.flood, effort.flood, first)
                found[each.contender.name]["ns"].append(sent.ns)
                calls = f"203.0.{100 + number % 100}.1:20000"
                found[each.contender.name]["calls"].append(_come_through(each, calls, new_calls))
    return {"packets": effort.flood, "new_calls": new_calls, "found": found}


def _come_through(each: Running, first: str, count: int) -> int:
    """New calls are put on hold; how many hear the music's first packet."""
    each.hear(count, count, first)
    packet = udp(contenders.UCM_ENDPOINT, first)
    return native.send(each.fw.lan, each.fw.wan, packet, flows=count, count=count).arrived


# What is under load is one stream; this one is beside it, at an address of its own.
_PROBED = "203.0.250.1:20000"
_PROBE_INTERVAL_NS = 1_000_000


def latency(runs: list[Running], effort: Effort, tell: Tell) -> dict[str, Any]:
    """ns that a packet is under way while 1,000 other streams are played on the same core."""
    probed = [each for each in runs if each.contender.source]
    found: dict[str, Any] = {each.contender.name: [] for each in probed}
    for number in range(effort.rounds):
        tell(f"latency, round {number + 1} of {effort.rounds}")
        for each in probed:
            each.learn(effort.streams)
            if each.contender.learns:
                each.hear(1, 1, _PROBED)
            with _load(each, effort):
                found[each.contender.name].append(_probe(each, effort.probes))
    return {"streams": effort.streams, "samples": found}


@contextmanager
def _load(each: Running, effort: Effort) -> Iterator[None]:
    """Other streams at their pace, until the probes are through."""
    rate = effort.streams * _STREAM_PACKETS_PER_SECOND
    seconds = effort.probes * _PROBE_INTERVAL_NS / 1e9 * 20 + 5
    process = native.start(
        each.fw.lan,
        each.fw.wan,
        PLAYED,
        flows=effort.streams,
        count=round(rate * seconds),
        **_pace(rate),
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _probe(each: Running, count: int) -> list[int]:
    wire = each.fw.lan
    packet = bytes(wire.frame(udp(contenders.UCM_ENDPOINT, _PROBED)))
    command = native.pinned(
        native.program("latency"), wire.end, each.fw.wan.end, count, _PROBE_INTERVAL_NS
    )
    done = subprocess.run(
        native.in_namespace(wire.outside, *command),
        input=packet,
        capture_output=True,
        timeout=600,
        check=True,
    )
    return [int(line) for line in done.stdout.split()]
