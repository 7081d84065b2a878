"""What the checks look at, asked of the machine once. Nothing here changes anything.

What cannot be asked (no rights, no tool) stands in `unasked` with the reason; the checks that need
it say so. Parsing is in functions of text, for the tests.
"""

import ctypes
import fcntl
import importlib.util
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from moh_ebpf.attach import cautions, compiler, obstacles
from moh_ebpf.attach.cautions import Caution
from moh_ebpf.attach.obstacles import Taken
from moh_ebpf.attach.plan import Plan, make_plan, make_record
from moh_ebpf.calls.peers import Snapshot, Wait
from moh_ebpf.doctor import rules
from moh_ebpf.doctor.rules import Ruleset
from moh_ebpf.errors import MohError, UsageError
from moh_ebpf.kernel import interfaces, requirements, routes, tc
from moh_ebpf.kernel.interfaces import Interface, interface_name
from moh_ebpf.kernel.namespace import enter_new_namespace
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.kernel.routes import ANYWHERE
from moh_ebpf.kernel.tc import Batch
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.record import Place, Record, Role
from moh_ebpf.registry.walk import Found
from moh_ebpf.settings import Settings

# linux/capability.h. Those that attach and every command that reads need.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
_NUD_INCOMPLETE, _NUD_FAILED = 0x01, 0x20  # linux/neighbour.h
# The kernel asks for a neighbour's address once a second: who leaves a second request unanswered as
# well is not there.
_UNANSWERED_SECONDS = 1.5
ANY = IPv4Address("0.0.0.0")  # what a socket listens on that listens on all
_MOST_ASKED = 64  # addresses of each kind whose routes are looked up
_MOST_ENTRIES = 1_000_000  # conntrack's, read at most
_PATIENCE_SECONDS = 30

T = TypeVar("T")


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
class Entry:
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
    moved: Sequence[Entry] = ()  # UCM's, with another port outside
    anothers: Sequence[Entry] = ()  # other hosts', with a phantom port outside
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


class _Asking:
    """Asks, and keeps why something could not be asked."""

    def __init__(self) -> None:
        self.unasked: dict[str, MohError] = {}

    def ask(self, topic: str, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except subprocess.TimeoutExpired as error:
            self.unasked[topic] = MohError(f"{error.cmd[0]} does not end")
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            self.unasked[topic] = MohError(f"{where}{error.strerror or error}")
        except MohError as error:
            self.unasked[topic] = error
        except NetlinkError as error:
            self.unasked[topic] = MohError(str(error))
        return otherwise


def gather(choose: Callable[[Settings | None, bool], Settings], seconds: float) -> Facts:
    """Ask for everything; calls are looked at for so many seconds, where they can be.

    `choose` makes the settings of those that are attached (None where nothing is, or it cannot be
    known) and of whether another version is, and what it raises is raised.
    """
    asking = _Asking()
    with IPRoute() as ipr, ExitStack() as stack:
        found = asking.ask(
            "programs",
            lambda: stack.enter_context(walk.found(ipr)),
            Found({}, set(), None, None),
        )
        attached = _as_named_now(found.attached.record) if found.attached else None
        chosen = choose(attached, bool(found.filters) and found.attached is None)
        return _gather(ipr, asking, chosen, found, attached, seconds)


def _as_named_now(record: Record) -> Settings:
    """The settings of an attachment; interfaces can have been renamed since."""

    def names(indexes: Sequence[int], then: Sequence[str]) -> tuple[str, ...]:
        now = map(interface_name, indexes)
        return tuple(b if a == "(gone)" else a for a, b in zip(now, then, strict=True))

    settings = record.settings
    return replace(
        settings, wan=names(record.wan, settings.wan), lan=names(record.lan, settings.lan)
    )


def _gather(
    ipr: IPRoute,
    asking: _Asking,
    chosen: Settings,
    found: Found,
    attached: Settings | None,
    seconds: float,
) -> Facts:
    ask = asking.ask
    attached_to = {place.ifindex for place in found.filters}
    links = interfaces.links_by_name(ipr)
    chosen = interfaces.with_present_names(links, chosen)
    wan, lan, unfit = _interfaces(ipr, links, chosen, attached_to)
    if not wan or (chosen.lan and not lan):
        asking.unasked["usable"] = unfit[0]
    if not wan:
        asking.unasked |= {"hooks": unfit[0], "addresses": unfit[0]}
    names = [each.name for each in (*wan, *lan)]
    public = chosen.public or tuple(
        dict.fromkeys(address for each in wan for address in each.addresses)
    )
    settings = replace(chosen, public=public)
    before, after, waits, received = ask(
        "calls", lambda: _watch(ipr, found.attached, seconds), _Seen(None, None, [], {})
    )
    targets = _targets(settings, after)
    nowhere: dict[IPv4Address, str] = {}
    addresses = ask("addresses", lambda: _addresses(ipr), nowhere)
    gateways = _Gateways(ipr, {each.index: each.name for each in wan})
    nobody: list[Entry] = []
    entries = ask("conntrack", lambda: _conntrack(settings), nobody)
    modules = ask("modules", _modules, list[str]())
    anothers = [each for each in entries if not is_ucm(settings, each)]
    sources = dict.fromkeys(IPv4Address(each.source[0]) for each in anothers)
    asked = [*settings.ucm, *_each(targets), *list(sources)[:_MOST_ASKED]]
    facts = Facts(
        settings=settings,
        wan=wan,
        lan=lan,
        unfit=unfit,
        lacking_rights=_lacking_rights(),
        kernel_lacks=ask("kernel", requirements.lacking, None),
        bcc=_bcc(),
        headers=_has_headers(),
        without_carrier=ask("interfaces", lambda: _without_carrier(ipr, names), []),
        addresses=addresses,
        no_hooks=ask("hooks", lambda: _no_hooks(ipr, [*wan, *lan], wan), None),
        in_our_place=ask("hooks", lambda: list(obstacles.taken(ipr, _places(wan, lan))), []),
        sysctls=_sysctls(names),
        sockets=ask("sockets", _udp_sockets, []),
        modules=modules,
        offloading=ask("offload", lambda: [each for each in names if has_feature(each)], []),
        targets=targets,
        routes=ask("routes", lambda: _routes(ipr, asked), {}),
        back=ask("routes", lambda: _back(ipr, wan, targets, addresses), {}),
        failed=ask("neighbours", lambda: gateways.failed(targets), []),
        ruleset=ask("rules", lambda: ruleset(modules), Ruleset()),
        moved=[each for each in entries if is_ucm(settings, each)],
        anothers=anothers,
        others=ask("programs", lambda: _others(ipr, Plan(settings, wan, lan), found), []),
        attached=attached,
        missing=found.attached.missing if found.attached else [],
        other_version=bool(found.filters) and found.attached is None,
        before=before,
        after=after,
        waits=waits,
        received=received,
    )
    return replace(facts, unasked=asking.unasked)


def _each(targets: Iterable[Target]) -> list[IPv4Address]:
    return [each.address for each in targets]


# The machine


def _interfaces(
    ipr: IPRoute, links: Mapping[str, Any], settings: Settings, attached_to: Collection[int]
) -> tuple[list[Interface], list[Interface], list[MohError]]:
    """Those that can be used, and what is wrong with the others, each by itself."""
    wan: list[Interface] = []
    lan: list[Interface] = []
    unfit: list[MohError] = []
    for option, names, usable in (("--wan", settings.wan, wan), ("--lan", settings.lan, lan)):
        for name in names:
            try:
                usable += interfaces.named(ipr, links, option, [name], attached_to)
            except UsageError as error:
                unfit.append(error)
    if not unfit:
        try:
            make_plan(ipr, settings, attached_to, links)
        except UsageError as error:
            unfit.append(error)
    return wan, lan, unfit


def _without_carrier(ipr: IPRoute, names: Collection[str]) -> list[str]:
    return [
        link.get_attr("IFLA_IFNAME")
        for link in whole(ipr.get_links)
        if link.get_attr("IFLA_IFNAME") in names and link.get_attr("IFLA_CARRIER") == 0
    ]


def _addresses(ipr: IPRoute) -> dict[IPv4Address, str]:
    return {
        IPv4Address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")): (
            interface_name(message["index"])
        )
        for message in whole(lambda: ipr.get_addr(family=socket.AF_INET))
    }


def _lacking_rights() -> list[str]:
    """What we are not, or have not: root, and the capabilities that are effective."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return lacks
    return lacks + capabilities_lacking(status)


def capabilities_lacking(status: str) -> list[str]:
    """The capabilities that are not effective, by /proc/self/status."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    mask = int(effective[1], 16) if effective else -1
    return [name for name, bit in _CAPABILITIES.items() if not mask >> bit & 1]


def _bcc() -> str:
    """Is BCC's module there? Found without importing it, which takes long."""
    spec = importlib.util.find_spec("bcc")
    if spec is None:
        return "missing"
    folders = spec.submodule_search_locations or []
    return "there" if any(Path(each, "libbcc.py").exists() for each in folders) else "other"


def _has_headers() -> bool:
    try:
        compiler.uapi_headers()
    except MohError:
        return False
    return True


def _no_hooks(
    ipr: IPRoute, interfaces: Sequence[Interface], wan: Sequence[Interface]
) -> MohError | None:
    """Why an interface cannot have both hooks; None if it can, or has them."""
    kinds = tc.ingress_qdiscs(ipr)
    for obstacle in obstacles.without_egress(wan, kinds):
        return obstacle
    if any(each.index in kinds for each in interfaces):
        return None
    # As `attach --dry-run`: on the loopback interface of a namespace that goes with its thread.
    batch = Batch()
    batch.add_clsact(1)
    with ThreadPoolExecutor(max_workers=1) as elsewhere:
        errors = elsewhere.submit(_send_elsewhere, batch).result()
    return MohError(str(errors[0]), "modprobe sch_ingress cls_bpf") if errors else None


def _send_elsewhere(batch: Batch) -> list[MohError]:
    enter_new_namespace()
    return batch.send()


def _places(wan: Sequence[Interface], lan: Sequence[Interface]) -> list[Place]:
    """Where we would be."""
    at_wan = [Place(each.index, role) for each in wan for role in (Role.LEARN, Role.ENFORCE)]
    return at_wan + [Place(each.index, Role.BYPASS) for each in lan]


def _sysctls(names: Sequence[str]) -> dict[str, int]:
    wanted = ["net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter"]
    wanted += [f"net.ipv4.conf.{name}.{what}" for name in names
               for what in ("forwarding", "rp_filter")]  # fmt: skip
    wanted += [f"net.netfilter.nf_conntrack_{name}" for name in
               ("helper", "udp_timeout", "udp_timeout_stream")]  # fmt: skip
    found = {}
    for name in wanted:
        # An interface's name may have a dot: eth1.7.
        parts = re.fullmatch(r"(net\.ipv4\.conf)\.(.+)\.(\w+)", name)
        path = "/".join([parts[1].replace(".", "/"), parts[2], parts[3]]) if parts else (
            name.replace(".", "/"))  # fmt: skip
        with suppress(OSError, ValueError):
            found[name] = int(Path("/proc/sys", path).read_text(encoding="ascii"))
    return found


def _udp_sockets() -> list[str]:
    lines: list[str] = []
    for name in ("udp", "udp6"):
        with suppress(FileNotFoundError):  # a kernel without IPv6
            lines += Path("/proc/net", name).read_text(encoding="ascii").splitlines()[1:]
    return lines


def listening(line: str) -> tuple[IPv4Address, int] | None:
    """Where a line of /proc/net/udp or udp6 listens to IPv4, 0.0.0.0 for all addresses; None if it
    does not."""
    local, state = line.split()[1], line.split()[3]
    if state != "07":  # it has a far end
        return None
    digits, port = local.split(":")
    # Words of 32 bits, each as a number of this machine's.
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    address = IPv6Address(packed)
    by_ipv4 = ANY if address.is_unspecified else address.ipv4_mapped
    return (by_ipv4, int(port, 16)) if by_ipv4 else None


def _modules() -> list[str]:
    """The modules loaded; none on a kernel that has none."""
    try:
        text = Path("/proc/modules").read_text(encoding="ascii")
    except FileNotFoundError:
        return []
    return [line.split()[0] for line in text.splitlines()]


# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _FEATURES = 0x1B, 0x37, 0x3A, 4


def has_feature(interface: str, feature: str = "hw-tc-offload") -> bool:
    """Is this feature on, by the kernel's name for it (`ethtool -k`)? Raises OSError."""

    def ask(request: bytes, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(request, size)
        name = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(buffer))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, name)
        return buffer.raw

    (count,) = struct.unpack_from(
        "=I", ask(struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _FEATURES), 20), 16
    )
    strings = ask(struct.pack("=III", _GSTRINGS, _FEATURES, count), 12 + 32 * count)
    names = [strings[12 + 32 * n :][:32].rstrip(b"\0") for n in range(count)]
    if feature.encode() not in names:
        return False
    words = (count + 31) // 32
    features_now = ask(struct.pack("=II", _GFEATURES, words), 8 + 16 * words)
    index = names.index(feature.encode())
    (active,) = struct.unpack_from("=I", features_now, 8 + 16 * (index // 32) + 8)
    return bool(active >> index % 32 & 1)


# The way


def _targets(settings: Settings, after: Snapshot | None) -> list[Target]:
    """Who is live now, each network's first address, or any address at all."""
    live = [
        Target(IPv4Address(each.address), "", each.interface, IPv4Address(each.public_address))
        for each in (after.peers if after else [])
        if not each.expired
    ][:_MOST_ASKED]
    networks = [
        Target(each.network_address + (each.prefixlen < 31), str(each))
        for each in settings.provider[:_MOST_ASKED]
    ]
    return [*live, *networks] or [Target(ANYWHERE)]


def _route(ipr: IPRoute, address: IPv4Address, source: IPv4Address | None = None) -> Route | None:
    """The route there, from one of our addresses; None if there is none."""
    found = routes.route_to(ipr, address, source)
    if found is None:
        return None
    name = interface_name(found.get_attr("RTA_OIF") or 0)
    gateway = found.get_attr("RTA_GATEWAY")
    said = f"ip route get {address}{f' from {source}' if source else ''}: " + (
        f"via {gateway} dev {name}" if gateway else f"dev {name}"
    )
    return Route(name, gateway, said)


def _routes(ipr: IPRoute, addresses: Iterable[IPv4Address]) -> dict[IPv4Address, Route | None]:
    return {each: _route(ipr, each) for each in addresses}


def _back(
    ipr: IPRoute,
    wan: Sequence[Interface],
    targets: Sequence[Target],
    addresses: Mapping[IPv4Address, str],
) -> dict[tuple[IPv4Address, str], Route | None]:
    """The way that reverse path filtering would take from each WAN's address to each target, by
    target and WAN. A live endpoint's WAN is known; others might come in by any."""
    found = {}
    for target in targets:
        for each in wan:
            if target.heard_on not in ("", each.name):
                continue
            own = [address for address in each.addresses if address in addresses]
            source = target.public if target.public in addresses else next(iter(own), None)
            found[target.address, each.name] = _route(ipr, target.address, source)
    return found


class _Gateways:
    """The gateways of the WANs, and which do not answer."""

    def __init__(self, ipr: IPRoute, wan: Mapping[int, str]) -> None:
        self._ipr, self._wan = ipr, wan

    def failed(self, targets: Sequence[Target]) -> list[tuple[str, str, str]]:
        """Their addresses, interfaces and states; those of live endpoints without a gateway too.

        While somebody sends, a neighbour is FAILED for a moment only: the next packet makes it
        INCOMPLETE again, as one that is merely being asked for. Which, a second look tells.
        """
        next_hops = self._next_hops(targets)
        failed, asked_for = self._states(next_hops)
        silent = [(*each, "FAILED") for each in failed]
        if asked_for:
            time.sleep(_UNANSWERED_SECONDS)
            still = asked_for & set().union(*self._states(next_hops))
            silent += [(*each, f"INCOMPLETE for {_UNANSWERED_SECONDS:g} s") for each in still]
        return sorted(silent)

    def _next_hops(self, targets: Sequence[Target]) -> set[tuple[str, str]]:
        next_hops = {(str(each.address), each.heard_on) for each in targets if each.heard_on}
        for message in whole(lambda: self._ipr.get_routes(family=socket.AF_INET)):
            for hop in (message, *(message.get_attr("RTA_MULTIPATH") or ())):
                index = hop.get_attr("RTA_OIF") or _multipath_index(hop)
                name = self._wan.get(index, "")
                if name and hop.get_attr("RTA_GATEWAY"):
                    next_hops.add((hop.get_attr("RTA_GATEWAY"), name))
        return next_hops

    def _states(self, among: set[tuple[str, str]]) -> list[set[tuple[str, str]]]:
        """Those of them that are FAILED, and those that are INCOMPLETE, at one moment."""
        seen = whole(lambda: self._ipr.get_neighbours(family=socket.AF_INET))
        return [
            among
            & {
                (message.get_attr("NDA_DST"), self._wan.get(message["ifindex"], ""))
                for message in seen
                if message["state"] & state
            }
            for state in (_NUD_FAILED, _NUD_INCOMPLETE)
        ]


def _multipath_index(hop: Any) -> int:
    """The ifindex of one of several next hops (struct rtnexthop); 0 for a route's own message.

    pyroute2's messages have a get() of another meaning.
    """
    return int(hop["oif"]) if "oif" in hop else 0


# Netfilter


def _run(*command: str) -> str:
    """What a command prints. Raises OSError if it is not there, MohError if it fails."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_PATIENCE_SECONDS,
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()
        raise MohError(f"{' '.join(command)}: {why[0] if why else f'exit {done.returncode}'}")
    return done.stdout


def ruleset(modules: Collection[str] = ()) -> Ruleset:
    """The rules of nftables, iptables-nft and iptables-legacy together.

    Raises OSError or MohError where there may be rules that cannot be read.
    """
    found = []
    if shutil.which("nft"):
        objects = _nft_objects(_run("nft", "-j", "list", "ruleset"))
        theirs = rules.xt_tables(objects)
        if theirs and shutil.which("iptables-nft-save"):
            found.append(rules.from_iptables(_run("iptables-nft-save"), "iptables-nft"))
        else:
            theirs = set()
        text = _run("nft", "-a", "list", "ruleset")
        found.append(rules.from_nft(objects, text, theirs))
    elif "nf_tables" in modules or not modules:  # it may be built in
        raise MohError("nftables' rules cannot be read: nft is not in PATH (package nftables)")
    # Only where its tables are there already: asking for them would make them.
    tables = Path("/proc/net/ip_tables_names")
    with suppress(FileNotFoundError):
        if tables.read_text(encoding="ascii").strip():
            saved = _run("iptables-legacy-save")
            found.append(rules.from_iptables(saved, "iptables-legacy"))
    return rules.merged(found)


def _nft_objects(text: str) -> list[dict[str, Any]]:
    try:
        return list(json.loads(text)["nftables"])
    except (ValueError, KeyError, TypeError) as error:
        raise MohError(f"nft -j list ruleset: not understood: {error}") from error


def is_ucm(settings: Settings, one: Entry) -> bool:
    """Has UCM begun it?"""
    return one.source[0] in map(str, settings.ucm)


def _conntrack(settings: Settings) -> list[Entry]:
    """conntrack's entries that bear on UCM's ports, or the phantom's. Raises OSError, MohError."""
    try:
        with Path("/proc/net/nf_conntrack").open(encoding="ascii", errors="replace") as lines:
            return telling_entries(settings, lines)
    except FileNotFoundError:
        # Without the file, conntrack may not be in the kernel, or the file not configured.
        if shutil.which("conntrack"):
            said = _run("conntrack", "-L", "-p", "udp", "-f", "ipv4")
            return telling_entries(settings, said.splitlines())
        if Path("/proc/sys/net/netfilter/nf_conntrack_count").exists():
            raise MohError(
                "conntrack's entries cannot be read: conntrack is not in PATH (package conntrack)"
            ) from None
        return []


_ENTRY = re.compile(
    r"\budp\b.*?\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
    r".*?\bsrc=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)"
)


def entry(line: str) -> Entry | None:
    """An entry of conntrack's as /proc/net/nf_conntrack and `conntrack -L` have it, if of UDP."""
    found = _ENTRY.search(line)
    if not found:
        return None
    src, dst, sport, dport, back_src, back_dst, back_sport, back_dport = found.groups()
    return Entry(
        (src, int(sport)),
        (dst, int(dport)),
        (back_src, int(back_sport)),
        (back_dst, int(back_dport)),
        " ".join(line.split()),
    )


def telling_entries(settings: Settings, lines: Iterable[str]) -> list[Entry]:
    """Entries of UCM's RTP with another port than UCM's outside, and of other hosts with a phantom
    port there."""
    ucm, public = set(map(str, settings.ucm)), set(map(str, settings.public))
    phantom = settings.phantom_ports
    found = []
    for number, line in enumerate(lines):
        if number >= _MOST_ENTRIES:
            break
        one = entry(line) if "udp" in line else None
        if one is None or one.answer_to[0] not in public:
            continue
        port, outside = one.source[1], one.answer_to[1]
        is_moved = port in settings.rtp_ports and outside != port
        if is_moved if one.source[0] in ucm else outside in phantom:
            found.append(one)
    return found


# What is attached


class _Seen(NamedTuple):
    before: Snapshot | None
    after: Snapshot | None
    waits: list[Wait]
    received: dict[str, int]


def _watch(ipr: IPRoute, attached: Attached | None, seconds: float) -> _Seen:
    if attached is None:
        return _Seen(None, None, [], {})
    names = set(attached.wan_names().values())
    received = _received(ipr, names)
    before = attached.snapshot()
    time.sleep(seconds)
    after = attached.snapshot()
    grown = {name: n - received.get(name, n) for name, n in _received(ipr, names).items()}
    return _Seen(before, after, attached.waits(), grown)


def _received(ipr: IPRoute, names: Collection[str]) -> dict[str, int]:
    """How many packets these interfaces have received, by their drivers' counters."""
    return {
        link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_STATS64")["rx_packets"]
        for link in whole(ipr.get_links)
        if link.get_attr("IFLA_IFNAME") in names and link.get_attr("IFLA_STATS64")
    }


def _others(ipr: IPRoute, plan: Plan, found: Found) -> list[Caution]:
    return cautions.found(ipr, plan, make_record(ipr, plan, found))
