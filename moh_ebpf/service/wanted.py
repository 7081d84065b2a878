"""What should be attached now, and how what is attached differs from it."""

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from pyroute2 import IPRoute

from moh_ebpf.attach import attachment
from moh_ebpf.attach.plan import NoAddressError, make_plan, make_record
from moh_ebpf.errors import MohError
from moh_ebpf.kernel import interfaces
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.registry.record import Record
from moh_ebpf.registry.walk import Found
from moh_ebpf.settings import Settings


class Wanted(NamedTuple):
    """The settings to attach with, None if none can be; the `record` they come to; the `reason` to
    attach, empty if that is what is attached; and what is missing, empty if nothing is."""

    settings: Settings | None
    record: Record | None = None
    reason: str = ""
    waits_for: str = ""

    @property
    def has_news(self) -> bool:
        return bool(self.reason or self.waits_for)


def is_same(one: Record, other: Record) -> bool:
    return (one.wan, one.lan, one.settings) == (other.wan, other.lan, other.settings)


def interfaces_of(settings: Settings) -> set[str]:
    return {*settings.wan, *settings.lan}


def find_wanted(
    ipr: IPRoute, settings: Settings, found: Found, at_start: bool, needed: Collection[str]
) -> Wanted:
    """What is to be attached. A WAN that cannot be attached to, a port of a bridge by now for
    instance, shall not keep the others from it: it is waited for. Raises MohError if it is the only
    one, or one of the `needed`, or if the LAN is unfit."""
    try:
        return _wanted_of_all(ipr, settings, found, at_start)
    except MohError:
        unfit = _unfit(ipr, settings, found, at_start)
        fit = tuple(name for name in settings.wan if name not in unfit)
        if not fit or not unfit or unfit.keys() & needed:
            raise
    wanted = _wanted_of_all(ipr, replace(settings, wan=fit), found, at_start)
    reasons = [wanted.waits_for, *unfit.values()]
    return wanted._replace(waits_for="; ".join(filter(None, reasons)))


def _unfit(ipr: IPRoute, settings: Settings, found: Found, at_start: bool) -> dict[str, str]:
    """The WANs that cannot be attached to, and why not."""
    unfit = {}
    for name in settings.wan:
        try:
            _wanted_of_all(ipr, replace(settings, wan=(name,)), found, at_start)
        except MohError as error:
            unfit[name] = str(error)
    return unfit


def _wanted_of_all(ipr: IPRoute, settings: Settings, found: Found, at_start: bool) -> Wanted:
    if found.filters and not found.attached and not at_start:
        return Wanted(None, waits_for="a restart: another version's programs are attached")
    attached_to = {place.ifindex for place in found.filters}
    links = interfaces.links_by_name(ipr)
    there = interfaces.usable(links, interfaces_of(settings), attached_to)
    wan = tuple(name for name in settings.wan if name in there)
    lan = tuple(name for name in settings.lan if name in there)
    absent = ", ".join(name for name in (*settings.wan, *settings.lan) if name not in there)
    if not wan or bool(lan) != bool(settings.lan):
        return Wanted(None, waits_for=absent)
    present = replace(settings, wan=wan, lan=lan)
    try:
        plan = make_plan(ipr, present, attached_to, links)
    except NoAddressError:
        return Wanted(None, waits_for=f"an IPv4 address on {' or '.join(wan)}")
    record = make_record(ipr, plan, found)
    attachment.refuse_foreign(ipr, record)
    return Wanted(present, record, _difference(found, record, at_start), absent)


def _difference(found: Found, record: Record, at_start: bool) -> str:
    """Why what is found must be replaced to be as the record has it; empty if it need not.

    The version counts at the start alone: if another one has been installed since, `attach` is of
    that, and we would never agree.
    """
    attached = found.attached
    if not found.filters:
        return "nothing was attached"
    if attached is None or (at_start and attached.record.version != record.version):
        return "it was another version"
    if (attached.record.wan, attached.record.lan) != (record.wan, record.lan):
        return "interfaces have changed"
    if attached.record.settings.public != record.settings.public:
        return "addresses have changed"
    if attached.missing:
        lost = [f"{each.role} on {interface_name(each.ifindex)}" for each in attached.missing]
        return f"somebody had removed {', '.join(lost)}"
    if attached.record.settings != record.settings:
        return "settings have changed"
    return ""
