"""What the checks look at: asked before, pure data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from moh_ebpf.attach.cautions import Caution
from moh_ebpf.attach.obstacles import Taken
from moh_ebpf.calls.peers import Snapshot, Wait
from moh_ebpf.doctor.rules import Ruleset
from moh_ebpf.errors import MohError
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.registry.record import Place
from moh_ebpf.settings import Settings


@dataclass(frozen=True)
class Route:
    """Where packets to an address go. `said`: the same, as a line."""

    interface: str
    gateway: str | None
    said: str


@dataclass(frozen=True)
class Target:
    """An address of the provider's. `heard_on` a WAN, if it is an endpoint that is live, with its
    public address; `network` is the --provider it stands for."""

    address: IPv4Address
    network: str = ""
    heard_on: str = ""
    public: IPv4Address | None = None


@dataclass(frozen=True)
class Connection:
    """A UDP entry of conntrack's: who began it, to whom, and how the answer comes back."""

    source: tuple[str, int]
    destination: tuple[str, int]
    answer_from: tuple[str, int]
    answer_to: tuple[str, int]
    line: str


@dataclass(frozen=True)
class Facts:
    """What the checks look at. `settings.public` is filled in where it is known.

    `unasked`: what could not be asked → why. `before` and `after` are two snapshots; None where
    nothing is attached.
    """

    settings: Settings
    wan: Sequence[Interface] = ()
    lan: Sequence[Interface] = ()
    unasked: Mapping[str, MohError] = field(default_factory=dict)
    # The machine
    lacking_rights: Sequence[str] = ()
    kernel_lacks: str | None = None
    bcc: str = "there"  # or "missing", "other"
    headers: bool = True
    unfit: Sequence[MohError] = ()  # what is wrong with an interface or its addresses
    without_carrier: Collection[str] = ()
    addresses: Mapping[IPv4Address, str] = field(default_factory=dict)  # here, by interface
    no_hooks: MohError | None = None  # why clsact cannot be had
    in_our_place: Sequence[Taken] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    sockets: Sequence[str] = ()  # lines of /proc/net/udp and udp6
    modules: Collection[str] = ()
    offloading: Collection[str] = ()  # interfaces with hw-tc-offload on
    # The way
    targets: Sequence[Target] = ()
    routes: Mapping[IPv4Address, Route | None] = field(default_factory=dict)
    back: Mapping[tuple[IPv4Address, str], Route | None] = field(default_factory=dict)
    # Gateways that do not answer, their interfaces and states.
    failed: Sequence[tuple[str, str, str]] = ()
    # Netfilter
    ruleset: Ruleset = field(default_factory=Ruleset)
    moved: Sequence[Connection] = ()  # UCM's, with another port outside
    anothers: Sequence[Connection] = ()  # other hosts', with a phantom port outside
    # What is attached
    others: Sequence[Caution] = ()  # what attach would point out
    attached: Settings | None = None
    missing: Sequence[Place] = ()
    other_version: bool = False
    before: Snapshot | None = None
    after: Snapshot | None = None
    waits: Sequence[Wait] = ()  # endpoints that UCM sends to and that are not heard
    received: Mapping[str, int] = field(default_factory=dict)  # packets by WAN, while we looked

    @property
    def seconds(self) -> float:
        """How long we really looked: on a busy machine, longer than was asked for."""
        return self.after.time - self.before.time if self.before and self.after else 0.0

    def grown(self, counter: str) -> int:
        """What a counter has grown by while we looked; 0 where nothing is attached."""
        if not self.before or not self.after:
            return 0
        return max(0, self.after.counters[counter] - self.before.counters[counter])

    def total(self, counter: str) -> int:
        """A counter, since attach."""
        return self.after.counters[counter] if self.after else 0

    @property
    def wan_names(self) -> list[str]:
        """The WANs that can be used."""
        return [each.name for each in self.wan]

    @property
    def lan_names(self) -> list[str]:
        """The LANs that can be used."""
        return [each.name for each in self.lan]


def is_ucm(settings: Settings, one: Connection) -> bool:
    """Has UCM begun it?"""
    return one.source[0] in map(str, settings.ucm)
