"""The audio of a session description (RFC 8866), read for where it is to be sent.

Of an offer or an answer alone: which of the two it is, and whether it counts, dialogs know.
"""

import re
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address
from typing import NamedTuple

_MOST_LINES = 2000
_MOST_MEDIA = 32
_AUDIO = {
    *(b"RTP/AVP", b"RTP/AVPF", b"RTP/SAVP", b"RTP/SAVPF"),
    *(b"UDP/TLS/RTP/SAVP", b"UDP/TLS/RTP/SAVPF"),
}


class Direction(StrEnum):
    """What its sender does (RFC 3264, 5.1)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"


_DIRECTIONS = {each.encode(): each for each in Direction}
# The lines that are read; most of a description are others.
_READ = re.compile(rb"^(?:([cm])=([^\r\n]*)|a=(" + b"|".join(_DIRECTIONS) + rb")[ \t]*)\r*$", re.M)


class Audio(NamedTuple):
    """Where it is sent to, and its direction. `address` is None where nothing can be sent to it: no
    IPv4 address, a name, 0.0.0.0 (RFC 3264, 8.4), multicast."""

    address: IPv4Address | None
    port: int
    direction: Direction


def audio(description: bytes) -> list[Audio | None]:
    """For each medium of a session description, in order, its audio; None: it is none, or is
    refused. An answer has the offer's media in the same order (RFC 3264, 6).

    Raises ValueError: it is not such a description, or says two things at once.
    """
    if not description.startswith(b"v=0") or description.count(b"\n") >= _MOST_LINES:
        raise ValueError("no session description")
    session, *media = _sections(description)
    address, direction = session.said()
    return [_audio(each, address, direction) for each in media[: _MOST_MEDIA - 1]]


class _Section(NamedTuple):
    """Of a medium, whose m= it has, or of the session: connection addresses, and directions."""

    medium: bytes
    places: set[bytes]
    directions: set[bytes]

    def said(self) -> tuple[bytes | None, bytes | None]:
        """The one of each. Raises ValueError if there are several."""
        if len(self.places) > 1 or len(self.directions) > 1:
            raise ValueError("it says two things at once")
        return next(iter(self.places), None), next(iter(self.directions), None)


def _sections(description: bytes) -> list[_Section]:
    """The session's, then those of each medium."""
    sections = [_Section(b"", set(), set())]
    for kind, value, direction in _READ.findall(description):
        if kind == b"m":
            sections.append(_Section(value, set(), set()))
        elif kind:
            sections[-1].places.add(value)
        else:
            sections[-1].directions.add(direction)
    return sections


def _audio(section: _Section, address: bytes | None, direction: bytes | None) -> Audio | None:
    """Of a medium; the session's address and direction hold where it has none."""
    medium = section.medium.split()
    if len(medium) < 4 or medium[0] != b"audio" or medium[2].upper() not in _AUDIO:
        return None
    port = _port(medium[1])
    if not port:
        return None  # refused
    own_address, own_direction = section.said()
    place = own_address or address
    if place is None:
        raise ValueError("it has no address")
    return Audio(_usable(place), port, _DIRECTIONS[own_direction or direction or b"sendrecv"])


def _port(text: bytes) -> int:
    """Of `port` or `port/number of ports`, the first. Raises ValueError."""
    digits, slash, number = text.partition(b"/")
    if not digits.isdigit() or (slash and not number.isdigit()):
        raise ValueError("its port is none")
    port = int(digits[:6])
    if port > 65535:
        raise ValueError("its port is none")
    return port


@lru_cache(1024)
def _usable(place: bytes) -> IPv4Address | None:
    words = place.split()
    if len(words) != 3 or words[:2] != [b"IN", b"IP4"]:
        return None
    try:
        # A TTL belongs to a multicast address alone.
        address = IPv4Address(words[2].decode("ascii"))
    except ValueError:
        return None
    return None if address.is_multicast or address.is_unspecified else address
