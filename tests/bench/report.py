"""docs/benchmarks.md, from the results of a run; its text is page.template's."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from tests.bench import contenders, native
from tests.bench.samples import Spread, own, percentile, spread
from tests.bench.signalling import MESSAGES_PER_SECOND

Results = dict[str, Any]

_TEMPLATE = Path(__file__).with_name("page.template")
ONE = "1"
LABELS: dict[str, str] = {
    each.name: each.label
    for each in (
        contenders.DROP,
        contenders.REDIRECT,
        contenders.MOH,
        contenders.MOH_NO_QUALITY,
        contenders.MOH_FLIP,
        contenders.MOH_READING,
        contenders.MOH_WAN,
        contenders.PLAIN,
        contenders.NFT_NETDEV,
        contenders.NFT_IP,
        contenders.MASQUERADE,
        *contenders.ARTICLE,
        contenders.QUEUE_C,
        contenders.QUEUE_PYTHON,
    )
}
_PACKETS_PER_SECOND = 50  # of a hold stream


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The first column is text, the others are numbers."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def _show(values: Spread, digits: int = 0) -> str:
    median, low, high = (f"{value:,.{digits}f}" for value in values)
    return f"{median} ({low} to {high})"


# What goals and tables are made of


def own_costs(results: Results, flows: str) -> dict[str, Spread]:
    """ns of each contender's own, by its name."""
    samples = results["forwarding"][flows]
    return {
        name: spread(own(values, samples["drop"]))
        for name, values in samples.items()
        if name != "drop"
    }


def peer_costs(results: Results, kind: str) -> dict[str, Spread]:
    """ns of moh_ebpf's own with so many peers; `kind` is `all` or `one`."""
    return {
        count: spread(own(values[kind], values[f"drop_{kind}"]))
        for count, values in results["peers"].items()
    }


def stream_costs(results: Results) -> dict[str, Spread]:
    """ns of a packet of 1,000 streams at their pace, by contender."""
    samples = results["streams"]["samples"]
    return {
        name: spread(own(values, samples["drop"]))
        for name, values in samples.items()
        if name != "drop"
    }


def share_of_a_core(ns: float) -> float:
    """Percent that a hold stream takes."""
    return ns * _PACKETS_PER_SECOND / 1e9 * 100


def path_costs(results: Results) -> dict[str, Spread]:
    """ns of each path over those of the empty program."""
    paths = results["programs"]["paths"]
    return {name: spread(own(each["ns"], each["empty"])) for name, each in paths.items()}


def seconds(results: Results, command: str, phase: str) -> Spread:
    return spread([each[phase] for each in results["commands"][command]])


# The goals


class Goal(NamedTuple):
    """What ought to be, the most that is allowed, and what was measured."""

    what: str
    most: float
    measured: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.measured <= self.most

    def row(self) -> list[str]:
        number = f"{self.measured:.2g}" if self.measured < 0.1 else f"{self.measured:.2f}"
        if self.unit == " ns":
            number = f"{self.measured:.0f}"
        holds = "yes" if self.holds else "**no**"
        return [self.what, f"≤ {self.most:g}{self.unit}", f"{number}{self.unit}", holds]


# The most that hold music may cost, as a multiple of the others'.
_RATIOS = {
    "redirect": 1.15,
    "plain": 0.65,
    "nft-netdev": 0.55,
    "nft-ip": 0.33,
    "iptables-nft": 0.25,
    "iptables-legacy": 0.25,
    "nfqueue-c": 0.05,
    "nfqueue-python": 0.05,
}
_MORE_THAN_EMPTY = {"not ours": 15, "TWO": 60, "rewritten": 200}


def goals(results: Results) -> list[Goal]:
    return [
        *_cost_goals(results),
        *_path_goals(results),
        *_peer_goals(results),
        Goal(
            "a hold stream's share of a core",
            0.005,
            share_of_a_core(stream_costs(results)["moh"].median),
            " %",
        ),
        Goal("attach", 1.0, seconds(results, "attach", "whole").median, " s"),
        Goal("attach, our own share", 0.3, seconds(results, "attach", "own").median, " s"),
        Goal("detach", 0.4, seconds(results, "detach", "whole").median, " s"),
        Goal(
            f"a snapshot of {results['many_peers']['peers']:,} peers",
            0.25,
            spread(results["many_peers"]["snapshot"]).median,
            " s",
        ),
        *_signalling_goals(results),
    ]


def _signalling_goals(results: Results) -> list[Goal]:
    read = results["signalling"]
    before, after = read["kib"]
    share = spread(_shares(read["rounds"])).median
    return [
        Goal("200 SIP messages a second, of a core", 5, share, " %"),
        Goal("SIP to the kernel, median", 5, spread(_late(read["rounds"])).median, " ms"),
        Goal(f"{read['dialogs']:,} dialogs", 32, (after - before) / 1024, " MiB"),
    ]


def _cost_goals(results: Results) -> list[Goal]:
    costs = own_costs(results, ONE)
    return [
        Goal(f"hold music, over {LABELS[name]}", most, costs["moh"].median / costs[name].median)
        for name, most in _RATIOS.items()
        if name in costs
    ]


def _path_goals(results: Results) -> list[Goal]:
    costs = path_costs(results)
    kinds = {name: each["kind"] for name, each in results["programs"]["paths"].items()}
    return [
        Goal(
            f"{kind}: the costliest path over an empty program",
            most,
            max(costs[name].median for name in costs if kinds[name] == kind),
            " ns",
        )
        for kind, most in _MORE_THAN_EMPTY.items()
    ]


def _peer_goals(results: Results) -> list[Goal]:
    """The costliest over what one peer costs."""
    found = []
    for kind, what in (("one", "music to one of them"), ("all", "music to all in turn")):
        costs = [each.median for name, each in peer_costs(results, kind).items() if name != "full"]
        most = max(map(int, (name for name in results["peers"] if name != "full")))
        found.append(Goal(f"1 to {most:,} peers, {what}", 1.1, max(costs) / costs[0]))
    return found


# The page


def page(results: Results) -> str:
    machine, flood = results["machine"], results["flood"]
    paths = results["programs"]["paths"].values()
    template = Template(_TEMPLATE.read_text())
    return template.substitute(
        **{name: machine[name] for name in ("date", "cpu", "cores", "kernel", "system")},
        virtual=", a virtual machine" if machine["hypervisor"] else "",
        load=f"{machine['load_before']:.1f}",
        mitigations=machine["mitigations"],
        versions=", ".join(f"{name} {each}" for name, each in machine["versions"].items()),
        rounds=len(results["forwarding"][ONE]["drop"]),
        goals=table(["goal", "at most", "measured", "holds"], [g.row() for g in goals(results)]),
        forwarding=_forwarding(results),
        drop=_show(spread(results["forwarding"][ONE]["drop"])),
        burst=native.BURST,
        streams=f"{results['streams']['streams']:,}",
        streams_table=_streams(results),
        peers=_peers(results),
        latency=_latency(results),
        programs=table(
            ["program: path", "ns more"],
            [[name, _show(cost)] for name, cost in path_costs(results).items()],
        ),
        empty=_show(spread([ns for each in paths for ns in each["empty"]])),
        instructions=_instructions(results),
        flood=_flood(results),
        flood_packets=f"{flood['packets']:,}",
        new_calls=flood["new_calls"],
        commands=_commands(results),
        many_peers=f"{results['many_peers']['peers']:,}",
        with_many_peers=_with_many_peers(results),
        signalling=_signalling(results),
        processes=results["memory"]["processes"],
        maps=table(
            ["map", "bytes"],
            [[name, f"{size:,}"] for name, size in results["memory"]["maps"].items()],
        ),
    )


def _by_cost(costs: dict[str, Spread]) -> list[tuple[str, Spread]]:
    return sorted(costs.items(), key=lambda item: item[1].median)


def _forwarding(results: Results) -> str:
    by_flows = {flows: own_costs(results, flows) for flows in results["forwarding"]}
    costs = by_flows[ONE]
    rows = [
        [
            LABELS[name],
            *(_show(each[name]) for each in by_flows.values()),
            f"{cost.median - costs['plain'].median:+,.0f}",
            f"{costs['moh'].median / cost.median:.2f}",
            f"{1e6 / cost.median:,.0f}",
        ]
        for name, cost in _by_cost(costs)
    ]
    streams = [f"ns, {int(flows):,} stream{'s' * (flows != ONE)}" for flows in by_flows]
    heads = ["hold music by", *streams, "over plain", "moh_ebpf / this", "thousand packets/s"]
    return table(heads, rows)


def _streams(results: Results) -> str:
    rows = [
        [
            LABELS[name],
            _show(cost),
            f"{share_of_a_core(cost.median):.4f}",
            f"{100 / share_of_a_core(cost.median):,.0f}",
            f"{spread(results['streams']['lost'][name]).median:.1f}",
        ]
        for name, cost in _by_cost(stream_costs(results))
    ]
    heads = [
        "hold music by", "ns a packet", "% of a core, one stream", "streams a core carries",
        "lost, %",
    ]  # fmt: skip
    return table(heads, rows)


def _peers(results: Results) -> str:
    one, in_turn = peer_costs(results, "one"), peer_costs(results, "all")
    rows = [
        [count if count == "full" else f"{int(count):,}", _show(one[count]), _show(in_turn[count])]
        for count in one
    ]
    return table(["live peers", "ns, music to one of them", "ns, to all of them in turn"], rows)


def _latency(results: Results) -> str:
    heads = ["hold music by", "median, µs", "99 %, µs", "99.9 %, µs", "jitter, µs", "lost, %"]
    samples = results["latency"]["samples"]
    return table(heads, [[LABELS[name], *_under_way(samples[name])] for name in samples])


def _under_way(rounds: list[list[float]]) -> list[str]:
    """Percentiles, jitter and loss of one contender; -1 is a packet that did not come."""
    probes = [ns for samples in rounds for ns in samples]
    arrived = [ns for ns in probes if ns >= 0] or [math.nan]
    steps = [abs(after - before) for before, after in itertools.pairwise(arrived)]
    times = [*(percentile(arrived, p) for p in (50, 99, 99.9)), sum(steps) / max(1, len(steps))]
    lost = 100 * sum(ns < 0 for ns in probes) / len(probes)
    return [f"{ns / 1000:,.1f}" for ns in times] + [f"{lost:.2f}"]


def _instructions(results: Results) -> str:
    keys = ("instructions", "verified", "machine_code_bytes")
    rows = [
        [role, *(f"{each[key]:,}" for key in keys)]
        for role, each in results["programs"]["instructions"].items()
    ]
    return table(["program", "instructions", "verified", "bytes of machine code"], rows)


def _flood(results: Results) -> str:
    found, calls = results["flood"]["found"], results["flood"]["new_calls"]
    labels = LABELS | {"moh": "moh_ebpf", "moh-provider": "moh_ebpf, kept out by `--provider`"}
    rows = [
        [
            labels[name],
            _show(spread(own(each["ns"], found["drop"]["ns"]))),
            f"{100 * sum(each['calls']) / (calls * len(each['calls'])):.0f}",
        ]
        for name, each in found.items()
        if name != "drop"
    ]
    return table(["flooded", "ns a spoofed packet", "new calls with music, %"], rows)


def _commands(results: Results) -> str:
    phases = ("whole", "start", "compile", "load", "own")
    rows = [
        [name, *(_show(seconds(results, name, phase), 2) for phase in phases)]
        for name in results["commands"]
    ]
    heads = ["seconds", "in all", "Python's start", "BCC's compile", "kernel's verifier", "our own"]
    return table(heads, rows)


def _with_many_peers(results: Results) -> str:
    many = results["many_peers"]
    shown, watched = many["peers --json"], many["watch"]
    rows = [
        ("reading and decoding a snapshot", spread(many["snapshot"]), ""),
        ("`peers --json`, all of it", spread([e["whole"] for e in shown]), _mebibytes(shown)),
        (
            "`watch`, CPU for each second",
            spread([e["cpu"] / e["whole"] for e in watched]),
            _mebibytes(watched),
        ),
    ]
    heads = ["", "seconds", "memory, MiB"]
    return table(heads, [[what, _show(time, 2), memory] for what, time, memory in rows])


def _signalling(results: Results) -> str:
    read = results["signalling"]
    rounds, (before, after) = read["rounds"], read["kib"]
    late, woken = _late(rounds), [1e6 * each["woken"] for each in rounds]
    rows = [
        (
            "CPU for a message, µs",
            _show(spread([1e6 * each["cpu"] / each["messages"] for each in rounds]), 0),
        ),
        ("the same of a Python process that is only woken, µs", _show(spread(woken), 0)),
        (
            f"CPU at {MESSAGES_PER_SECOND} messages a second, % of a core",
            _show(spread(_shares(rounds)), 1),
        ),
        ("from the last message of a hold to the kernel, ms", _show(spread(late), 1)),
        ("the same, 99 % of them, ms", f"{percentile(late, 99):.1f}"),
        ("memory of the reader, MiB", f"{before / 1024:.0f}"),
        (f"memory of {read['dialogs']:,} dialogs, MiB", f"{(after - before) / 1024:.1f}"),
    ]
    return table(["reading SIP", ""], rows)


def _shares(rounds: list[dict[str, Any]]) -> list[float]:
    """Per cent of a core at the pace."""
    return [100 * MESSAGES_PER_SECOND * each["cpu"] / each["messages"] for each in rounds]


def _late(rounds: list[dict[str, Any]]) -> list[float]:
    return [late for each in rounds for late in each["late_ms"]]


def _mebibytes(finished: list[dict[str, float]]) -> str:
    return f"{spread([each['max_rss'] for each in finished]).median / 1024:.0f}"
