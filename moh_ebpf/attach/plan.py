"""The settings met with this machine's interfaces: what is to be attached, and where."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyroute2 import IPRoute

from moh_ebpf import __version__
from moh_ebpf.attach import obstacles
from moh_ebpf.errors import UsageError
from moh_ebpf.kernel import interfaces, tc
from moh_ebpf.kernel.interfaces import Interface
from moh_ebpf.registry.record import Record
from moh_ebpf.registry.walk import Found
from moh_ebpf.settings import MOST_ADDRESSES, Settings


@dataclass(frozen=True)
class Plan:
    """Settings that have met the machine: the interfaces found, `settings.public` filled in."""

    settings: Settings
    wan: Sequence[Interface]
    lan: Sequence[Interface]


class NoAddressError(UsageError):
    """There is no public address, given or on a WAN."""


def make_plan(
    ipr: IPRoute,
    settings: Settings,
    attached_to: Collection[int] = frozenset(),
    links: Mapping[str, Any] | None = None,
) -> Plan:
    """The settings met with this namespace's interfaces. Raises UsageError if they do not fit,
    NoAddressError if a WAN's address is wanted and there is none (yet).

    Interfaces that we are `attached_to` may be down. `links` are those of
    interfaces.links_by_name(), asked for if they are not given.
    """
    links = links or interfaces.links_by_name(ipr)
    settings = interfaces.with_present_names(links, settings)
    if both := set(settings.wan) & set(settings.lan):
        raise UsageError(f"{min(both)} is given as --wan and as --lan, by two names that it has")
    wan = interfaces.named(ipr, links, "--wan", settings.wan, attached_to)
    lan = interfaces.named(ipr, links, "--lan", settings.lan, attached_to)
    # Routes name the bridge or bond, packets enter routing through it: a port's hooks miss them.
    for each in [*lan, *wan] if lan else []:
        if each.master:
            raise UsageError(
                f"{each.name} is a port of {each.master}, and routing sees {each.master} alone; "
                f"name {each.master} instead"
            )
    public = settings.public or tuple(
        dict.fromkeys(address for each in wan for address in each.addresses)
    )
    if len(public) > MOST_ADDRESSES:
        raise UsageError(
            f"--wan {', '.join(settings.wan)}: {len(public)} addresses are too many; "
            "name those that the provider sends to with --public"
        )
    if not public:
        raise NoAddressError(
            f"--wan {', '.join(settings.wan)}: there is no IPv4 address on it; "
            "give the one that the provider sends to with --public"
        )
    return Plan(replace(settings, public=public), wan, lan)


def make_record(ipr: IPRoute, plan: Plan, before: Found) -> Record:
    """What the attachment will leave of itself. Raises MohError if an interface cannot have both
    hooks."""
    hooks = tc.ingress_qdiscs(ipr)
    for obstacle in obstacles.without_egress(plan.wan, hooks):
        raise obstacle
    wan = tuple(each.index for each in plan.wan)
    lan = tuple(each.index for each in plan.lan)
    return Record(
        settings=plan.settings,
        version=__version__,
        wan=wan,
        lan=lan,
        clsact=made_by_us((*wan, *lan), hooks, before.clsact),
    )


def made_by_us(
    ifindexes: Collection[int], hooks: Mapping[int, str], before: Collection[int]
) -> tuple[int, ...]:
    """Those whose clsact is of our making: it was `before`, or it is not there yet."""
    return tuple(i for i in ifindexes if i not in hooks or i in before)
