"""The audio of a session description (RFC 8866), read for where it is to be sent.

Of an offer or an answer alone: which of the two it is, and whether it counts, dialogs know.
"""

from enum import StrEnum
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


_DIRECTIONS = {f"a={each}".encode(): each for each in Direction}


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
    lines = [each.rstrip(b"\r") for each in description.split(b"\n")]
    if len(lines) > _MOST_LINES or not lines[0].startswith(b"v=0"):
        raise ValueError("no session description")
    sections = _sections(lines)
    address, direction = _of_section(sections[0])
    return [_audio(section, address, direction) for section in sections[1:_MOST_MEDIA]]


def _audio(
    section: list[bytes], address: bytes | None, direction: Direction | None
) -> Audio | None:
    """Of a medium; the session's address and direction hold where it has none."""
    first, *rest = section
    media = first.split()
    if len(media) < 4 or media[0] != b"m=audio" or media[2].upper() not in _AUDIO:
        return None
    port = _port(media[1])
    if not port:
        return None  # refused
    own_address, own_direction = _of_section(rest)
    place = own_address or address
    if place is None:
        raise ValueError("it has no address")
    return Audio(_usable(place), port, own_direction or direction or Direction.SENDRECV)


def _sections(lines: list[bytes]) -> list[list[bytes]]:
    """The session's lines, then those of each medium, which begin with its m=."""
    sections: list[list[bytes]] = [[]]
    for line in lines:
        if line.startswith(b"m="):
            sections.append([])
        sections[-1].append(line)
    return sections


def _of_section(lines: list[bytes]) -> tuple[bytes | None, Direction | None]:
    """Its connection address as it stands there, and its direction. Raises ValueError if there are
    several of one."""
    places = {line for line in lines if line.startswith(b"c=")}
    directions = {_DIRECTIONS[line.strip()] for line in lines if line.strip() in _DIRECTIONS}
    if len(places) > 1 or len(directions) > 1:
        raise ValueError("it says two things at once")
    return (places.pop() if places else None), (directions.pop() if directions else None)


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
    if len(words) != 3 or words[:2] != [b"IN", b"IP4"]:
        return None
    try:
        # A TTL belongs to a multicast address alone.
        address = IPv4Address(words[2].decode("ascii"))
    except ValueError:
        return None
    return None if address.is_multicast or address.is_unspecified else address
