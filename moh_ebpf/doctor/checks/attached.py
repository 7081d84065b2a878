"""Checks of tc, and of what is attached."""

import math
from ipaddress import IPv4Address

from moh_ebpf.calls.peers import Wait
from moh_ebpf.counters import COUNTERS
from moh_ebpf.doctor.check import Findings, check
from moh_ebpf.doctor.facts import Facts
from moh_ebpf.doctor.findings import Level
from moh_ebpf.kernel.interfaces import interface_name
from moh_ebpf.layout import State
from moh_ebpf.parsers import TIMEOUT_SECONDS
from moh_ebpf.registry.record import Place, Role
from moh_ebpf.settings import Settings

# A pause this near to the timeout will be longer than it some day.
_NEAR = 0.8
# Comfort noise comes about once a second; below half of that, voice activity detection hurts.
_SHORT_TIMEOUT_SECONDS = 0.5
_SHORT_CONNTRACK_SECONDS = 10
# A call's first packets come before its endpoint's: so many a second are a stream's, not those,
# where we looked for long enough to tell.
_STREAM_PACKETS_PER_SECOND = 25
_LONG_ENOUGH = 0.1  # seconds


@check("other-programs", "nothing stands before ours", "programs")
def other_programs(facts: Facts) -> Findings:
    for each in facts.others:
        yield (
            Level.WARNING,
            each.what,
            each.evidence or "ip -d link show",
            each.remedy or each.see or "tc filter show, bpftool net",
        )


@check("attached", "all programs are where they belong", "programs")
def attached(facts: Facts) -> Findings:
    if facts.other_version:
        yield (
            Level.WARNING,
            "what is attached is of another version of moh-ebpf, which this one cannot read",
            "tc filter show: moh_learn, moh_enforce, moh_bypass at pref 4000",
            "moh-ebpf attach replaces it; moh-ebpf detach removes it",
        )
        return
    if facts.attached is None:
        yield (
            Level.NOTE,
            "nothing is attached",
            "no filter of ours on any interface of this network namespace",
            "moh-ebpf attach, or moh-ebpf run",
        )
        return
    for place in facts.missing:
        name = interface_name(place.ifindex)
        yield (
            Level.ERROR,
            f"{place.role} is missing on {name} {place.role.hook}",
            f"tc filter show dev {name} {place.role.hook}: no {place.role.program}",
            "moh-ebpf attach with the same settings puts it back; moh-ebpf run keeps it there",
        )
    now, wanted = facts.attached.to_json(), facts.settings.to_json()
    differ = [name for name in wanted if wanted[name] != now[name]]
    if differ:
        yield (
            Level.NOTE,
            f"other settings are attached than those looked at: {', '.join(differ)}",
            "; ".join(f"attached {name}: {_plain(now[name])}" for name in differ),
            "moh-ebpf attach with all of these settings takes them over",
        )


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _flip_remedy(facts: Facts) -> str:
    flipped = facts.total("sip_flipped")
    if not facts.settings.flip_hold:
        return "moh-ebpf attach … --flip-hold, or a SIP proxy (docs/kamailio.md)"
    if flipped:
        return f"--flip-hold has changed {flipped} holds: does the provider heed them?"
    lacks = "a port that --sip-ports lacks"
    if facts.settings.sip_from:
        lacks += ", or with a network that --sip-from lacks"
    return f"--flip-hold has seen no hold: is SIP encrypted, or on {lacks}?"


@check("learning", "learn sees what comes in", "programs", "calls")
def learning(facts: Facts) -> Findings:
    """On a WAN where learn sees nothing, UCM's RTP passes as if nothing were attached."""
    for wan in facts.after.wans if facts.after else ():
        if not wan.is_blind:
            continue
        last = "never" if wan.learn_age is None else f"{wan.learn_age:.0f} s ago"
        cause, remedy = _why_blind(facts, wan.interface)
        yield (
            Level.ERROR,
            f"learn sees nothing on {wan.interface}, so UCM's RTP passes as without moh_ebpf: "
            f"{cause}",
            f"the last packet to a public address was read there {last}; received by "
            f"{wan.interface} in {facts.seconds:.1f} s: {facts.received.get(wan.interface, 0)}",
            remedy,
        )


def _why_blind(facts: Facts, name: str) -> tuple[str, str]:
    """The cause, and what to try."""
    public = ", ".join(map(str, facts.settings.public))
    if any(_is_learn_on(place, name) for place in facts.missing):
        return "its program is gone", "see attached"
    if any(each.where == f"{name} ingress" for each in facts.others):
        return "another program runs before it", "see other-programs"
    if name in facts.without_carrier:
        return "the interface has no carrier", "see interfaces"
    if name in facts.offloading:
        return "the interface may forward by itself", "see hardware-flows"
    if facts.received.get(name):
        return (
            f"packets come in, and none of them is IPv4 to {public}",
            f"name the addresses that the provider sends to with --public; tcpdump -ni {name} udp",
        )
    return (
        "no packet comes in: from a provider that is silent while UCM is on hold, or from nobody",
        f"{_flip_remedy(facts)}; see wan-route and wan-neighbour; tcpdump -ni {name}",
    )


def _is_learn_on(place: Place, name: str) -> bool:
    return place.role is Role.LEARN and interface_name(place.ifindex) == name


@check("unheard", "UCM sends to nobody that is not heard", "programs", "calls")
def unheard(facts: Facts) -> Findings:
    """Endpoints that UCM sends to for longer than the patience: it passes, and is no hold music."""
    settings = facts.attached or facts.settings
    passing = [each for each in facts.waits if each.waited >= settings.patience]
    unlisted = [each for each in passing if not _is_listed(each, settings)]
    for waits, cause, remedy in (
        (
            unlisted,
            "--provider does not list them, so they are never learned",
            "list every network that UCM exchanges RTP with: --provider",
        ),
        (
            [each for each in passing if each not in unlisted],
            "no RTP comes in from them: they may wait to hear something first, or be on hold and "
            "told sendonly",
            f"{_flip_remedy(facts)}; see what comes in: tcpdump -ni "
            f"{facts.wan_names[0] if facts.wan else 'WAN'} udp and src host "
            f"{passing[0].address if passing else 'ADDRESS'}",
        ),
    ):
        if waits:
            longest = max(waits, key=lambda each: each.waited)
            yield (
                Level.WARNING,
                f"UCM's RTP passes to {len(waits)} endpoints that are not heard: {cause}",
                f"{longest.endpoint}: for {longest.waited:.0f} s, {longest.dropped} packets "
                f"dropped before; patience {settings.patience:g} s",
                remedy,
            )


def _is_listed(wait: Wait, settings: Settings) -> bool:
    address = IPv4Address(wait.address)
    return not settings.provider or any(address in each for each in settings.provider)


@check("unidentified", "UCM's RTP is not dropped", "programs", "calls")
def unidentified(facts: Facts) -> Findings:
    dropped, music = facts.grown("dropped_unidentified"), facts.grown("consumed")
    if not dropped:
        return
    port = facts.settings.port
    # A call's first packets come before its endpoint's, whether or not anybody was ever on hold.
    is_stream = dropped >= _STREAM_PACKETS_PER_SECOND * max(facts.seconds, _LONG_ENOUGH)
    never = not facts.total("learned_moh") and not facts.total("two_to_moh")
    evidence = (
        f"dropped_unidentified grew by {dropped} in {facts.seconds:.1f} s, consumed by {music}; "
        f"consumed in all {facts.total('consumed')}"
    )
    if is_stream and never:
        yield (
            Level.WARNING,
            f"UCM sends RTP, and no RTP has ever come in to port {port}: sendonly is probably not "
            "turned into sendrecv on the way to the provider",
            evidence,
            f"{_flip_remedy(facts)}; see what comes in: tcpdump -ni "
            f"{facts.wan_names[0] if facts.wan else 'WAN'} udp dst port {port}; --provider and "
            "--public must have what is sent from and to",
        )
    elif is_stream:
        yield (
            Level.WARNING,
            "UCM sends a stream or more to endpoints that send none",
            evidence,
            "moh-ebpf peers shows who sends; --provider must list all of the provider's networks",
        )
    else:
        yield (
            Level.NOTE,
            "some of UCM's RTP went to endpoints that were not known: a call's first packets, "
            "mostly",
            evidence,
            "if it goes on: moh-ebpf peers shows who sends",
        )


@check("silent", "whoever is on hold gets music", "programs", "calls")
def silent(facts: Facts) -> Findings:
    """Hold music that nobody sends: what attach cannot see is whether its settings are UCM's. Of
    those that go on sending; a call that has ended on hold stays for the timeout."""
    if not facts.before or not facts.after:
        return
    settings = facts.attached or facts.settings
    heard = {each.endpoint: each.in_packets for each in facts.before.peers}
    silent = [
        each
        for each in facts.after.peers
        if each.state is State.MOH
        and each.is_silent(settings.port)
        and each.in_packets > heard.get(each.endpoint, each.in_packets)
    ]
    if silent:
        longest = max(silent, key=lambda each: each.since)
        sent = "none ever" if longest.out_age is None else f"the last {longest.out_age:.0f} s ago"
        yield (
            Level.WARNING,
            f"{len(silent)} on hold get no music: UCM sends from an address that --ucm lacks, from "
            "a port outside --rtp-ports, by an interface that is no --lan, or not at all",
            f"{longest.endpoint}: on hold for {longest.since:.0f} s, packets to it: {sent}",
            f"tcpdump -ni {facts.lan_names[0] if facts.lan else 'any'} udp and dst host "
            f"{longest.address}; --rtp-ports is {settings.rtp_ports}",
        )


@check("unnatted", "no RTP leaves with UCM's address", "programs", "calls")
def unnatted(facts: Facts) -> Findings:
    grown = facts.grown("passed_unnatted")
    if not grown:
        return
    # Without NAT, or from global addresses, it is how it ought to be.
    leaks = any(each.is_private for each in facts.settings.ucm) and facts.lan
    yield (
        Level.WARNING if leaks else Level.NOTE,
        "two-way RTP leaves a WAN with UCM's own address",
        f"passed_unnatted grew by {grown} in {facts.seconds:.1f} s",
        "no masquerade or SNAT rule matches it: nft list ruleset, iptables -t nat -S"
        if leaks
        else "right if the provider routes to UCM's addresses",
    )


@check("sip-split", "every SDP is in one packet", "programs", "calls")
def sip_split(facts: Facts) -> Findings:
    """SDP that is cut where the flip cannot follow: a hold is silent, or its end is not seen. Such
    messages need not be of a hold, so that old ones warn only if no hold was ever flipped."""
    split, grown = facts.total("sip_split"), facts.grown("sip_split")
    if not facts.attached or not facts.attached.flip_hold or not split:
        return
    fragments = facts.total("fragments")
    yield (
        Level.WARNING if grown or not facts.total("sip_flipped") else Level.NOTE,
        f"{split} SIP messages were left as they are, because the direction of their SDP may be "
        "where it cannot be read",
        f"counters: sip_split {split}, by {grown} in {facts.seconds:.1f} s; fragments {fragments}; "
        f"sip_flipped {facts.total('sip_flipped')}",
        "a long message over UDP is cut into IP fragments: use SIP over TCP on the trunk "
        "(docs/flip-hold.md, What is left alone)"
        if fragments
        else "see docs/flip-hold.md, What is left alone",
    )


@check("failures", "no packet was lost to a failure", "programs", "calls")
def failures(facts: Facts) -> Findings:
    for name, counter in COUNTERS.items():
        grown, total = facts.grown(name), facts.total(name)
        if counter.remedy and total:
            yield (
                Level.WARNING if grown else Level.NOTE,
                f"{name} grows" if grown else f"{name} grew, but not while we looked",
                f"{name}: {total}, by {grown} in {facts.seconds:.1f} s",
                counter.remedy,
            )


@check("pauses", "pauses are shorter than the timeout", "programs", "calls")
def pauses(facts: Facts) -> Findings:
    timeout = (facts.attached or facts.settings).timeout
    gaps = {each.endpoint: each.longest_gap for each in (facts.after.peers if facts.after else [])}
    endpoint = max(gaps, key=lambda each: gaps[each], default="")
    if endpoint and gaps[endpoint] >= _NEAR * timeout:
        longest = gaps[endpoint]
        wanted = min(math.ceil(1.5 * longest), int(TIMEOUT_SECONDS[1]))
        yield (
            Level.WARNING,
            "an endpoint pauses about as long as the timeout, or longer: it is forgotten in the "
            "middle of a call",
            f"{endpoint}: longest gap {longest:.2f} s, timeout {timeout:g} s",
            f"--timeout {wanted}s, beside all the other settings that attach is given, or in the "
            "config",
        )


@check("timeouts", "the timeouts are long enough")
def timeouts(facts: Facts) -> Findings:
    timeout = facts.settings.timeout
    if timeout < _SHORT_TIMEOUT_SECONDS:
        yield (
            Level.NOTE,
            "the timeout is short: with voice activity detection, the far end pauses for a second",
            f"timeout = {timeout:g} s",
            "--timeout 1s",
        )
    for name in ("udp_timeout", "udp_timeout_stream"):
        setting = f"net.netfilter.nf_conntrack_{name}"
        seconds = facts.sysctls.get(setting)
        if seconds is not None and seconds < _SHORT_CONNTRACK_SECONDS:
            yield (
                Level.WARNING,
                "conntrack forgets two-way calls within a pause, and may give them another port",
                f"{setting} = {seconds}",
                f"sysctl -w {setting}={30 if name == 'udp_timeout' else 120}",
            )
