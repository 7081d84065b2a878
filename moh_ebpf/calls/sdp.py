"""The audio of a session description (RFC 8866), read for where it is to be sent.

Of an offer or an answer alone: which of the two it is, and whether it counts, dialogs know.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Address
from typing import NamedTuple

_MOST_LINES = 2000
_MOST_MEDIA = 32
_AUDIO = {
    *(b"RTP/AVP", b"RTP/AVPF", b"RTP/SAVP", b"RTP/SAVPF"),
    *(b"UDP/TLS/RTP/SAVP", b"UDP/TLS/RTP/SAVPF"),
}

# The lines that are read: connections, media, and directions (RFC 3264, 5.1).
_READ = re.compile(
    rb"^(?:[cm]=[^\n]*|[^\S\n]*a=(?:sendrecv|sendonly|recvonly|inactive)[^\S\n]*$)", re.M
)
_LONGEST_ADDRESS = len("255.255.255.255")


class Audio(NamedTuple):
    """Where it is sent to. `address` is None where nothing can be sent to it: no IPv4 address, a
    name, 0.0.0.0 (RFC 3264, 8.4), multicast."""

    address: IPv4Address | None
    port: int


def audio(description: bytes) -> list[Audio | None]:
    """For each medium of a session description, in order, its audio; None: it is none, or is
    refused. An answer has the offer's media in the same order (RFC 3264, 6).

    Raises ValueError: it is not such a description, or says two things at once.
    """
    if not description.startswith(b"v=0") or description.count(b"\n") >= _MOST_LINES:
        raise ValueError("no session description")
    session, *media = _sections(description)
    place = session.place()
    return [_audio(each, place) for each in media[: _MOST_MEDIA - 1]]


class _Section(NamedTuple):
    """Of a medium, whose m= it has, or of the session: its c= and directions, as they stand
    there."""

    medium: bytes
    places: set[bytes]
    directions: set[bytes]

    def place(self) -> bytes | None:
        """The one that there is, if any. Raises ValueError if it says two of one kind."""
        if len(self.places) > 1 or len(self.directions) > 1:
            raise ValueError("it says two things at once")
        return next(iter(self.places), None)


def _sections(description: bytes) -> list[_Section]:
    """The session's, then those of each medium."""
    sections = [_Section(b"", set(), set())]
    for line in _READ.findall(description):
        if line.startswith(b"m="):
            sections.append(_Section(line, set(), set()))
        elif line.startswith(b"c="):
            sections[-1].places.add(line.rstrip(b"\r"))
        else:
            sections[-1].directions.add(line.strip())
    return sections


def _audio(section: _Section, session: bytes | None) -> Audio | None:
    """Of a medium; the session's connection holds where it has none."""
    medium = section.medium.split()
    if len(medium) < 4 or medium[0] != b"m=audio" or medium[2].upper() not in _AUDIO:
        return None
    port = _port(medium[1])
    if not port:
        return None  # refused
    place = section.place() or session
    if place is None:
        raise ValueError("it has no address")
    return Audio(_usable(place), port)


def _port(text: bytes) -> int:
    """Of `port` or `port/number of ports`, the first. Raises ValueError."""
    digits, slash, number = text.partition(b"/")
    if not digits.isdigit() or (slash and not number.isdigit()):
        raise ValueError("its port is none")
    port = int(digits[:6])
    if port > 65535:
        raise ValueError("its port is none")
    return port


def _usable(line: bytes) -> IPv4Address | None:
    words = line[2:].split()
    if len(words) != 3 or words[:2] != [b"IN", b"IP4"] or len(words[2]) > _LONGEST_ADDRESS:
        return None
    return _address(words[2])


@lru_cache(1024)
def _address(text: bytes) -> IPv4Address | None:
    try:
        # A TTL belongs to a multicast address alone.
        address = IPv4Address(text.decode("ascii"))
    except ValueError:
        return None
    return None if address.is_multicast or address.is_unspecified else address
