"""From what was seen to settings, each with its evidence. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from moh_ebpf import settings
from moh_ebpf.calls.signalled import is_global
from moh_ebpf.discover.habits import Habits, habits
from moh_ebpf.discover.picture import Picture
from moh_ebpf.discover.ports import sip_ports
from moh_ebpf.discover.seen import Flow, Sighting, Traffic
from moh_ebpf.parsers import PortRange
from moh_ebpf.settings import DEFAULTS

# Other devices' RTP, beside UCM's own (Cisco, TCP and UDP port usage): ISR G3 and ASR.
_WIDE_PORTS = PortRange(8000, 48200)
_MOST_NAMED = 4  # of a list that is told


@dataclass(frozen=True)
class Line:
    """A setting's value, and why. Not `is_needed`: the default will do, or nobody knows; it is
    shown as a comment. `value` None: there is nothing to propose."""

    setting: str
    value: Any
    because: tuple[str, ...]
    is_needed: bool = True


@dataclass(frozen=True)
class Proposal:
    """`streams`: with the provider, each way. `unseen`: what could not be seen, and how it can
    be."""

    lines: tuple[Line, ...]
    habits: Habits
    streams: int
    seconds: float
    unseen: tuple[str, ...]
    not_counted: dict[str, int] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The settings that there must be, and that are not among the lines."""
        there = {each.setting for each in self.lines if each.is_needed and each.value is not None}
        return [name for name in ("wan", "ucm") if name not in there]

    def to_json(self) -> dict[str, Any]:
        """`settings` as the config has them; `evidence` of each, also of those that are not
        needed."""
        needed = [each for each in self.lines if each.is_needed and each.value is not None]
        return {
            "seconds": round(self.seconds, 1),
            "streams": self.streams,
            "settings": {each.setting: each.value for each in needed},
            "evidence": [asdict(each) for each in self.lines],
            "habits": self.habits.to_json(),
            "unseen": list(self.unseen),
            "not_counted": self.not_counted,
        }


def propose(seen: Sighting) -> Proposal:
    """Settings for the firewall on which this was seen."""
    picture = Picture(seen)
    ucm = _Ucm(picture)
    found = habits(picture)
    spoken = sip_ports(seen.flows)
    lines = [
        _wan(picture),
        _lan(picture),
        ucm.line(),
        *_public(picture),
        *_port(picture),
        *ucm.ports(),
        *_provider(picture),
        *_sip_ports(spoken),
        *_for_habits(found, has_sip=bool(spoken) and not _is_hidden(picture)),
    ]
    return Proposal(
        tuple(lines),
        found,
        len(picture.to_provider) + len(picture.from_provider) + len(picture.from_here),
        seen.seconds,
        tuple(_unseen(picture, found, lines)),
        dict(seen.not_counted),
    )


def _names(picture: Picture, indexes: Iterable[int]) -> list[str]:
    return [picture.host.names.get(each, f"(interface {each})") for each in indexes]


def _list(values: Iterable[object]) -> str:
    """The first of them."""
    texts = list(dict.fromkeys(map(str, values)))
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _wan(picture: Picture) -> Line:
    because = []
    for index, name in zip(picture.wans, _names(picture, picture.wans), strict=True):
        flows = [each for each in picture.from_provider if each.interface == index]
        sources = _list(each.source.address for each in flows)
        if flows:
            because.append(
                f"RTP of the provider comes in by {name}: {_streams(flows)} of {sources}"
            )
        else:
            because.append(f"the routes to {_list(picture.provider_ends)} lead by {name}")
        if index == picture.host.default:
            because.append(f"the default route leads by {name}")
    value = _names(picture, picture.wans) or None
    return Line("wan", value, tuple(because) or ("no RTP to or from a provider was seen",))


def _streams(flows: Sequence[Flow]) -> str:
    return _count(len(flows), "stream")


def _lan(picture: Picture) -> Line:
    names = _names(picture, picture.lans)
    because = []
    for index, name in zip(picture.lans, names, strict=True):
        flows = [each for each in picture.to_provider if each.interface == index]
        if flows:
            because.append(f"RTP to the provider comes in by {name}: {_streams(flows)}")
        if any(each.interface == index for each in picture.described):
            because.append(f"UCM's SIP, with its hold, comes in by {name}")
    if not names and picture.from_here:
        because.append("the RTP to the provider begins on this machine, so there is no LAN")
    return Line("lan", names or None, tuple(because) or ("no RTP came in for the provider",))


class _Ucm:
    """The addresses of UCM's media."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        sources = picture.to_provider or picture.from_here
        self._all = Counter(each.source.address for each in sources)
        # Behind static NAT, UCM names the public address, from which it does not send.
        described = Counter(
            each.end.address
            for each in picture.described
            if each.end.address in self._all or not picture.is_own(each.end.address)
        )
        music = Counter(each.source.address for each in picture.music)
        self._described, self._music = described, music
        self.addresses: list[IPv4Address] = sorted({*described, *music}) or sorted(self._all)

    def line(self) -> Line:
        because = []
        for address, count in self._described.items():
            marked = any(
                each.is_marked for each in self._picture.described if each.end.address == address
            )
            mark = ", marked X-cisco-media" if marked else ""
            because.append(
                f"{address} is named with port {self._picture.phantom_port} in "
                f"{_count(count, 'description')}{mark}"
            )
        for address, count in self._music.items():
            because.append(
                f"{address} sends {_count(count, 'stream')} of music, to endpoints that are on hold"
            )
        if not because and self.addresses:
            because.append(
                f"{_list(self.addresses)} send RTP to the provider; no hold was seen, so phones "
                "may be among them: leave those out"
            )
        others = sorted(set(self._all) - set(self.addresses))
        if others:
            because.append(
                f"not seen with music: {_list(others)}; add those that are UCM's (MOH servers, "
                "annunciators, MTPs)"
            )
        value = [str(each) for each in self.addresses] or None
        return Line("ucm", value, tuple(because) or ("nobody inside sent RTP to the provider",))

    def ports(self) -> Iterable[Line]:
        """The range of its RTP, where that is another than the default."""
        sources = self._picture.to_provider or self._picture.from_here
        ports = [each.source.port for each in sources if each.source.address in self.addresses]
        if not ports:
            return
        low, high = min(ports), max(ports)
        default: PortRange = DEFAULTS["rtp_ports"]
        seen = f"UCM's RTP came from ports {low} to {high}"
        if low in default and high in default:
            yield Line("rtp_ports", str(default), (f"{seen}, within the default",), False)
        elif low in _WIDE_PORTS and high in _WIDE_PORTS:
            yield Line("rtp_ports", str(_WIDE_PORTS), (f"{seen}, as of an ISR or ASR",))
        else:
            bounds = (
                max(low // 1000 * 1000, self._picture.phantom_port + 6),
                min(high + 1000, 65535),
            )
            yield Line("rtp_ports", str(PortRange(*bounds)), (seen,))


def _public(picture: Picture) -> Iterable[Line]:
    found = Counter(each.destination.address for each in picture.from_provider)
    if not found:
        return
    seen = f"the provider sends to {_list(found)}"
    elsewhere = [each for each in found if picture.host.own.get(each) not in picture.wans]
    value = [str(each) for each in sorted(found)]
    if elsewhere:
        yield Line("public", value, (f"{seen}, which is no address of the WAN's",))
    else:
        yield Line("public", value, (f"{seen}: the WAN's own, which is the default",), False)


def _port(picture: Picture) -> Iterable[Line]:
    port = picture.phantom_port
    if port != DEFAULTS["port"]:
        yield Line("port", port, (f"UCM's holds name port {port}",))


def _provider(picture: Picture) -> Iterable[Line]:
    media = {each.source.address for each in picture.from_provider}
    media |= {each.address for each in picture.provider_ends}
    if not media:
        return
    value = [str(each) for each in collapse_addresses(IPv4Network(each) for each in media)]
    talking = {each.destination.address for each in picture.to_provider + picture.from_here}
    private = sorted(each for each in media & talking if not is_global(each))
    if private:
        why = f"{_list(private)}: private addresses may be learned only where they are named"
        yield Line("provider", value, (why, "ask the provider for its networks"))
    else:
        why = "seen so far. Set it to all that the provider names, or to nothing"
        yield Line("provider", value, (why,), False)


def _sip_ports(spoken: set[int]) -> Iterable[Line]:
    if not spoken:
        return
    value, default = sorted(spoken), set(DEFAULTS["sip_ports"])
    is_needed = not spoken <= default
    more = ("which is the default",) if not is_needed else ()
    why = ", ".join((f"SIP is spoken on port {_list(value)}", *more))
    yield Line("sip_ports", value, (why,), is_needed)


def _is_hidden(picture: Picture) -> bool:
    """Does the provider speak TLS, and no SIP that can be read?"""
    return not picture.sip_of_provider and bool(_with_tls(picture))


def _with_tls(picture: Picture) -> list[Flow]:
    ports = {each + 1 for each in DEFAULTS["sip_ports"]}
    return [
        each
        for each in picture.flows
        if each.traffic is Traffic.TLS and {each.source.port, each.destination.port} & ports
    ]


def _for_habits(found: Habits, *, has_sip: bool) -> Iterable[Line]:
    silent = f"the provider fell silent in {found.silent_on_hold} of {_count(found.holds, 'hold')}"
    if found.silent_on_hold:
        if has_sip:
            yield Line("flip_hold", True, (f"{silent}: told sendrecv, it goes on",))
        else:
            why = f"{silent}; its SIP is encrypted, so a proxy has to turn sendonly into sendrecv"
            yield Line("flip_hold", False, (why,), False)
    elif found.send_on_hold:
        why = f"not needed: the provider sent on in {found.send_on_hold} of {found.holds} holds"
        yield Line("flip_hold", False, (why,), False)
    if found.pause and not has_sip and not found.send_rtcp:
        longest = min(max(2, round(found.longest_pause * 1.5 + 0.5)), 3600)
        why = (
            f"{_count(found.pause, 'endpoint')} paused, up to {found.longest_pause:.1f} s, without "
            "RTCP and without SIP that can be read"
        )
        yield Line("timeout", f"{longest}s", (why,))
    if found.speak_second > found.speak_first and not has_sip:
        why = (
            f"{found.speak_second} of {found.speak_second + found.speak_first} endpoints spoke "
            "only after they were spoken to, and no SIP says who they are"
        )
        yield Line("patience", "500ms", (why,))


def _unseen(picture: Picture, found: Habits, lines: Iterable[Line]) -> Iterable[str]:
    if not picture.to_provider and not picture.from_here and not picture.from_provider:
        yield "no call with the provider: make one while it listens"
    elif not found.holds:
        yield (
            "no hold: put a call on hold while it listens. What the provider does then, whether "
            "--flip-hold is needed, and which addresses send music is not known"
        )
    if not any(each.traffic is Traffic.SIP for each in picture.flows):
        yield "no SIP that can be read, on any port"
    tls = _with_tls(picture)
    if tls:
        yield f"what is in TLS, with {_list(each.destination for each in tls)}"
    gone = [
        index
        for index in dict.fromkeys(each.interface for each in picture.flows)
        if index not in picture.host.names
    ]
    if gone:
        yield f"the name of {_count(len(gone), 'interface')} that came and went"
    if len(picture.lans) > 1:
        yield "which LAN is UCM's alone: RTP to the provider came in by more than one"


def settings_of(proposal: Proposal) -> settings.Settings:
    """Those of the proposal, validated. Raises UsageError."""
    return settings.from_values(proposal.to_json()["settings"])
