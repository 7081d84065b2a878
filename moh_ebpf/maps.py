"""The maps, a row each: when there is one, what its layout is, and when an attach goes on with it.

tests/unit/test_maps.py compares them with the declarations in bpf/maps.c.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network

from moh_ebpf import layout
from moh_ebpf.counters import COUNTERS
from moh_ebpf.settings import Settings


@dataclass(frozen=True)
class Change:
    """From one attachment to the next. `same_wans`: each WAN keeps its index; `same_room`: the
    map of peers keeps its size."""

    old: Settings
    new: Settings
    same_wans: bool
    same_room: bool


# Endpoints that signalling may name at one time.
MOST_SIGNALLED = 16384


def _always(_: object) -> bool:
    return True


def _never(_: object) -> bool:
    return False


def _keeps_peers(change: Change) -> bool:
    return change.same_wans and change.same_room


@dataclass(frozen=True)
class MapRow:
    """`parts` are the formats and fields of its keys and values. `exists`: with these settings.
    `is_adopted`: the next programs go on with it. `prefixes`: what it is filled with, if nothing
    but the programs reads it then. `is_scratch`: it holds nothing from one packet to the next."""

    name: str
    parts: tuple[object, ...] = ()
    exists: Callable[[Settings], object] = _always
    is_adopted: Callable[[Change], bool] = _never
    prefixes: Callable[[Settings], tuple[IPv4Network, ...]] | None = None
    is_scratch: bool = False

    @property
    def layout(self) -> str:
        """Names the layout of its keys and values: a map of another is neither read nor shared."""
        return f"{zlib.crc32(repr(self.parts).encode()):08x}"


def _of_sip(name: str) -> MapRow:
    """What is known of SIP, which no command reads."""
    return MapRow(
        name,
        (layout.SIP.format,),
        exists=lambda settings: settings.flip_hold,
        is_adopted=_always,
    )


_PEER = (layout.PEER.format, layout.RTP.format, layout.PEER_FIELDS, layout.RTP_FIELDS)

ROWS = {
    each.name: each
    for each in (
        MapRow(
            "peers",
            (layout.ENDPOINT.format, layout.HEARD.format, *_PEER),
            is_adopted=_keeps_peers,
        ),
        MapRow("counters", tuple(COUNTERS), is_adopted=_always),
        MapRow("settings"),
        MapRow("events", (layout.EVENT.format, layout.EVENT_FIELDS), is_adopted=_always),
        MapRow(
            "waiting_for",
            (layout.ENDPOINT.format, layout.WAITING.format),
            is_adopted=lambda change: change.old.patience == change.new.patience,
        ),
        MapRow("others", (layout.ANOTHERS.format,), is_adopted=_always),
        MapRow(
            "wans",
            (layout.WAN.format, layout.WAN_FIELDS),
            is_adopted=lambda change: change.same_wans,
        ),
        MapRow(
            "reports",
            (layout.ENDPOINT.format, layout.REPORT.format),
            exists=lambda settings: settings.rtcp_timeout,
            is_adopted=_keeps_peers,
        ),
        MapRow(
            "signalled",
            (layout.ENDPOINT.format, layout.SIGNALLED.format, layout.SIGNALLED_FIELDS),
            exists=lambda settings: settings.signalling,
            is_adopted=_always,
        ),
        MapRow(
            "providers",
            exists=lambda settings: settings.provider,
            prefixes=lambda settings: settings.provider,
        ),
        MapRow(
            "sip_networks",
            exists=lambda settings: settings.flip_hold and settings.sip_from,
            prefixes=lambda settings: settings.sip_from,
        ),
        _of_sip("dialogs"),
        _of_sip("holding"),
        _of_sip("segments"),
        _of_sip("segments_back"),
        _of_sip("cut_lines"),
        _of_sip("cut_lines_back"),
        MapRow("unborn", is_scratch=True),
        MapRow("sip_text", exists=lambda settings: settings.flip_hold, is_scratch=True),
    )
}


def of(settings: Settings) -> list[MapRow]:
    """The maps that programs with these settings share, without scratch."""
    return [row for row in ROWS.values() if row.exists(settings) and not row.is_scratch]


def layouts(settings: Settings) -> dict[str, str]:
    """The layouts of those maps by their names, as an attachment's record has them."""
    return {row.name: row.layout for row in of(settings)}
