"""All facts, asked for once. Nothing here changes anything.

What cannot be asked (no rights, no tool) stands in `unasked` with the reason; the checks that need
it say so.
"""

import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from typing import NamedTuple, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from moh_ebpf.attach import cautions, obstacles
from moh_ebpf.attach.cautions import Caution
from moh_ebpf.attach.plan import Plan, make_record
from moh_ebpf.calls.peers import Snapshot, Wait
from moh_ebpf.doctor.ask import machine, netfilter, routes
from moh_ebpf.doctor.ask.routes import MOST_ASKED, Gateways
from moh_ebpf.doctor.facts import Connection, Facts, is_ucm
from moh_ebpf.doctor.rules import Ruleset
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import interfaces, requirements
from moh_ebpf.kernel.interfaces import Interface, interface_name
from moh_ebpf.kernel.netlink import whole
from moh_ebpf.registry import walk
from moh_ebpf.registry.attached import Attached
from moh_ebpf.registry.record import Place, Record, Role
from moh_ebpf.registry.walk import Found
from moh_ebpf.settings import Settings

T = TypeVar("T")


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
    wan, lan, unfit = machine.usable_interfaces(ipr, links, chosen, attached_to)
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
    targets = routes.targets_of(settings, after)
    nowhere: dict[IPv4Address, str] = {}
    addresses = ask("addresses", lambda: machine.local_addresses(ipr), nowhere)
    gateways = Gateways(ipr, {each.index: each.name for each in wan})
    nobody: list[Connection] = []
    entries = ask("conntrack", lambda: netfilter.connections(settings), nobody)
    modules = ask("modules", machine.loaded_modules, list[str]())
    anothers = [each for each in entries if not is_ucm(settings, each)]
    sources = dict.fromkeys(IPv4Address(each.source[0]) for each in anothers)
    asked = [*settings.ucm, *routes.addresses_of(targets), *list(sources)[:MOST_ASKED]]
    facts = Facts(
        settings=settings,
        wan=wan,
        lan=lan,
        unfit=unfit,
        lacking_rights=machine.lacking_rights(),
        kernel_lacks=ask("kernel", requirements.lacking, None),
        bcc=machine.which_bcc(),
        headers=machine.has_headers(),
        without_carrier=ask("interfaces", lambda: machine.without_carrier(ipr, names), []),
        addresses=addresses,
        no_hooks=ask("hooks", lambda: machine.why_no_hooks(ipr, [*wan, *lan], wan), None),
        in_our_place=ask("hooks", lambda: list(obstacles.taken(ipr, _places(wan, lan))), []),
        sysctls=machine.sysctls_of(names),
        sockets=ask("sockets", machine.udp_sockets, []),
        modules=modules,
        offloading=ask(
            "offload", lambda: [each for each in names if machine.has_feature(each)], []
        ),
        targets=targets,
        routes=ask("routes", lambda: routes.routes_to(ipr, asked), {}),
        back=ask("routes", lambda: routes.routes_back(ipr, wan, targets, addresses), {}),
        failed=ask("neighbours", lambda: gateways.failed(targets), []),
        ruleset=ask("rules", lambda: netfilter.ruleset(modules), Ruleset()),
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


def _places(wan: Sequence[Interface], lan: Sequence[Interface]) -> list[Place]:
    """Where we would be."""
    at_wan = [Place(each.index, role) for each in wan for role in (Role.LEARN, Role.ENFORCE)]
    return at_wan + [Place(each.index, Role.BYPASS) for each in lan]


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
