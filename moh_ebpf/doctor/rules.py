"""Netfilter's rules as nft and iptables-save show them, and what they do with a kind of packets.

Pure. Both forms become the same `Rule`s. What a rule asks for is compared with a `Packets`, which
is not one packet but all that are alike (from the provider's networks, to UCM's RTP ports): some
of them may match and others not. What cannot be told is UNKNOWN, and nobody is to be warned of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Network

Range = tuple[int, int]  # both ends included
Value = Range | str

_NUMBERS = ("saddr", "daddr", "sport", "dport")
PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp"}
LAST_PORT = 65535


class Truth(IntEnum):
    """Does a rule match packets? SOME: some of them, for certain."""

    NO = 0
    UNKNOWN = 1
    SOME = 2
    YES = 3


@dataclass(frozen=True)
class Packets:
    """Packets that are alike: UDP that comes in by `iif` (and leaves by `oif`), its addresses and
    ports as ranges. `anybody`: where these addresses ("saddr", "daddr") are no more than all that
    is possible."""

    iif: str
    saddr: tuple[Range, ...]
    daddr: tuple[Range, ...]
    sport: tuple[Range, ...]
    dport: tuple[Range, ...]
    oif: str = ""
    state: str = "new"
    anybody: str = ""


@dataclass(frozen=True)
class Match:
    """What a rule asks for: one of `values` in a field; None where it is not known what."""

    field: str
    values: tuple[Value, ...] | None
    negated: bool = False


@dataclass(frozen=True)
class Rule:
    """One thing that a rule does (`action`, and its `target`: a chain, a helper), with `text` the
    rule as its tool prints it. For NAT, the `addresses` and `ports` given out, where it names any,
    and whether a port is given out at `random`. `removal`: the command that takes it away.
    """

    text: str
    matches: tuple[Match, ...] = ()
    action: str = ""
    target: str = ""
    addresses: tuple[Range, ...] = ()
    ports: Range | None = None
    random: bool = False
    removal: str = ""


@dataclass(frozen=True)
class Chain:
    """A chain; `hook` is empty where it is none of the kernel's, but called by others."""

    table: str  # as its tool writes it: "ip nat", "iptables-legacy -t nat"
    name: str
    hook: str = ""
    kind: str = ""
    policy: str = "accept"
    priority: int = 0
    rules: list[Rule] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.table} {self.name}"


@dataclass(frozen=True)
class Flowtable:
    """An nft flowtable; `hardware` has its flows forwarded by the interfaces themselves."""

    name: str
    devices: tuple[str, ...]
    hardware: bool


@dataclass(frozen=True)
class Ruleset:
    """All chains by table and name, flowtables, and the types of nft's helpers by name."""

    chains: Mapping[tuple[str, str], Chain] = field(default_factory=dict)
    flowtables: tuple[Flowtable, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict)

    def at(self, *hooks: str, kind: str = "") -> list[Chain]:
        """The chains at these hooks, of this kind (filter, nat) if one is named, as they follow."""
        found = (
            chain
            for chain in self.chains.values()
            if chain.hook in hooks and kind in ("", chain.kind)
        )
        return sorted(found, key=lambda each: each.priority)

    def rules(self) -> Iterator[tuple[Chain, Rule]]:
        """Every rule, and its chain."""
        for chain in self.chains.values():
            for rule in chain.rules:
                yield chain, rule


def merged(rulesets: Iterable[Ruleset]) -> Ruleset:
    """All of them as one."""
    chains: dict[tuple[str, str], Chain] = {}
    flowtables: list[Flowtable] = []
    helpers: dict[str, str] = {}
    for each in rulesets:
        chains |= each.chains
        flowtables += each.flowtables
        helpers |= each.helpers
    return Ruleset(chains, tuple(flowtables), helpers)


def matches(rule: Rule, packets: Packets) -> Truth:
    """Does the rule match these packets?

    Where nothing is known of the provider, a rule for some addresses tells nothing of its own,
    unless it is for UDP: then it is most likely for them.
    """
    truth = Truth.YES
    of_udp = any(each.field in ("protocol", "sport", "dport") for each in rule.matches)
    for each in rule.matches:
        one = _asks_for(each, packets)
        if one is Truth.SOME and each.field == packets.anybody and not of_udp:
            one = Truth.UNKNOWN
        truth = min(truth, one)
    return truth


def _asks_for(match: Match, packets: Packets) -> Truth:
    if match.values is None:
        return Truth.UNKNOWN
    if match.field in _NUMBERS:
        wanted = [each for each in match.values if not isinstance(each, str)]
        truth = overlap(getattr(packets, match.field), wanted)
    else:
        had = {
            "iif": packets.iif,
            "oif": packets.oif,
            "protocol": "udp",
            "nfproto": "ipv4",
            "ethertype": "ip",
            "state": packets.state,
            "type": "unicast" if packets.oif else "local",
            "pkttype": "host",
            "status": "",
            "fragment": "no",  # conntrack has put them together before any chain
        }.get(match.field)
        if had is None:
            return Truth.UNKNOWN
        truth = Truth.YES if any(_is_name(each, had) for each in match.values) else Truth.NO
    if match.negated and truth in (Truth.YES, Truth.NO):
        return Truth.NO if truth is Truth.YES else Truth.YES
    return truth


def _is_name(wanted: Value, had: str) -> bool:
    if not isinstance(wanted, str):
        return False
    return had.startswith(wanted[:-1]) if wanted.endswith("*") else wanted == had


def overlap(had: Iterable[Range], wanted: Iterable[Range]) -> Truth:
    """Are all of these among the wanted ones, or some?"""
    wanted = _union(wanted)
    had = _union(had)
    both = sum(
        max(0, min(a_high, b_high) - max(a_low, b_low) + 1)
        for a_low, a_high in had
        for b_low, b_high in wanted
    )
    if not both:
        return Truth.NO
    return Truth.YES if both == sum(high - low + 1 for low, high in had) else Truth.SOME


def _union(ranges: Iterable[Range]) -> list[Range]:
    united: list[Range] = []
    for low, high in sorted(ranges):
        if united and low <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(high, united[-1][1]))
        else:
            united.append((low, high))
    return united


Reached = list[tuple[Truth, Rule]]
NAT = {"snat", "masquerade", "dnat", "redirect"}
# What a packet does not go on from. One that is not tracked makes no conntrack entry, whatever
# becomes of it.
_FINAL = NAT | {"accept", "drop", "notrack"}


@dataclass(frozen=True)
class Outcome:
    """Whether a chain lets such packets go on, and the rule or policy that does."""

    passes: Truth
    by: str
    is_policy: bool = False


def outcome(ruleset: Ruleset, chain: Chain, packets: Packets) -> Outcome:
    """What a chain at a hook does with these packets: its most certain accept."""
    found, ended = _walk(ruleset, chain, packets, Truth.YES, frozenset())
    accepts = [Outcome(truth, rule.text) for truth, rule in found if rule.action == "accept"]
    if not ended and chain.policy == "accept":
        accepts.append(Outcome(Truth.YES, f"{chain}: policy accept", is_policy=True))
    return max(accepts, key=lambda each: each.passes, default=Outcome(Truth.NO, ""))


def reached(ruleset: Ruleset, hook: str, packets: Packets) -> Reached:
    """The rules at a hook that some of these packets come to and may match."""
    return [
        each
        for chain in ruleset.at(hook)
        for each in _walk(ruleset, chain, packets, Truth.YES, frozenset())[0]
    ]


def nat(ruleset: Ruleset, hook: str, packets: Packets) -> Reached:
    """The rules at a hook that may give these packets another address or port.

    The first to do so is the last; an accept ends its own chain, and those after it are asked.
    """
    found: Reached = []
    for chain in ruleset.at(hook, kind="nat"):
        here, _ = _walk(ruleset, chain, packets, Truth.YES, frozenset())
        found += [(truth, rule) for truth, rule in here if rule.action in NAT]
        if any(truth is Truth.YES for truth, _ in found):
            break
    return found


def _walk(
    ruleset: Ruleset, chain: Chain, packets: Packets, so_far: Truth, above: frozenset[str]
) -> tuple[Reached, bool]:
    """The rules that packets come to and may match, and whether no packet goes on from here."""
    found: Reached = []
    for rule in chain.rules:
        truth = matches(rule, packets)
        if truth is Truth.NO:
            continue
        ended = truth is Truth.YES
        truth = min(truth, so_far)
        found.append((truth, rule))
        if rule.action in ("jump", "goto"):
            called = ruleset.chains.get((chain.table, rule.target))
            if called is None or str(called) in above:
                continue
            theirs, inside = _walk(ruleset, called, packets, truth, above | {str(chain)})
            found += theirs
            if ended and rule.action == "goto":
                return found, inside
            ended = ended and inside
        elif rule.action == "return":
            if ended:
                return found, False
            continue
        elif rule.action not in _FINAL:
            continue
        if ended:
            return found, True
    return found, False


def of_network(text: str) -> Range:
    """A network's or a host's addresses as numbers. Raises ValueError."""
    network = IPv4Network(text, strict=False)
    return int(network.network_address), int(network.broadcast_address)
