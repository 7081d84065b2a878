"""Values of settings as options and TOML give them: parsed, or refused with what would be right.

A parser takes the setting as the user knows it (`--port`), for its errors, and the value: a string,
a number, a list of them. What is parsed already it returns as it is. All raise UsageError.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from moh_ebpf.errors import UsageError

Parser = Callable[[str, Any], Any]

TIMEOUT_SECONDS = (0.05, 3600.0)
LONGEST_PATIENCE_SECONDS = 3600.0
NEVER = "never"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}


@dataclass(frozen=True)
class PortRange:
    """UDP ports from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"

    def __contains__(self, port: int) -> bool:
        return self.low <= port <= self.high


def _items(value: Any) -> list[Any]:
    """A list setting's items: a list of them, or one; commas separate within a string."""
    values = value if isinstance(value, list | tuple) else [value]
    return [
        item
        for value in values
        for item in (re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else [value])
    ]


def list_of(parse: Parser, most: int) -> Parser:
    """A parser of at most so many different items, in their order."""

    def parsed(option: str, value: Any) -> tuple[Any, ...]:
        items = tuple(dict.fromkeys(parse(option, item) for item in _items(value)))
        if len(items) > most:
            raise UsageError(f"{option}: {len(items)} are too many, {most} is the most")
        return items

    return parsed


def interface(option: str, value: Any) -> str:
    # The kernel's rule (dev_valid_name) is no '/', ':' or white space, and at most 15 bytes; an
    # altname may have 127.
    if not isinstance(value, str) or not re.fullmatch(r"[^\s/:]{1,127}", value):
        raise UsageError(f"{option}: {value!r} is no interface name; `ip link` lists them")
    return value


def address(option: str, value: Any) -> IPv4Address:
    try:
        if not isinstance(value, str | IPv4Address):
            raise ValueError
        address = IPv4Address(value)
    except ValueError:
        raise UsageError(f"{option}: {value!r} is no IPv4 address, such as 198.51.100.2") from None
    if address.is_multicast or address.is_unspecified or int(address) == 0xFFFFFFFF:
        raise UsageError(f"{option}: {address} is no host's address")
    return address


def network(option: str, value: Any) -> IPv4Network:
    try:
        if not isinstance(value, str | IPv4Network):
            raise ValueError
        network = IPv4Network(value, strict=False)
    except ValueError:
        raise UsageError(
            f"{option}: {value!r} is no IPv4 prefix; write it as 203.0.113.0/24"
        ) from None
    try:
        return IPv4Network(value)
    except ValueError:
        raise UsageError(f"{option}: {value!r} has host bits set; write it as {network}") from None


def whole(low: int, high: int) -> Parser:
    """A parser of whole numbers from `low` to `high`."""

    def parsed(option: str, value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,20}", str(value), re.ASCII):
            raise UsageError(f"{option}: {value!r} is no whole number")
        if not low <= int(value) <= high:
            raise UsageError(f"{option}: {value} is out of range, {low} to {high}")
        return int(value)

    return parsed


# The phantom port has RTCP's above it.
port = whole(1, 65534)


def port_range(option: str, value: Any) -> PortRange:
    match = re.fullmatch(r"(\d{1,5})\s*[-:]\s*(\d{1,5})", str(value).strip(), re.ASCII)
    if isinstance(value, bool) or not match:
        raise UsageError(f"{option}: {value!r} is no range of ports; write it as 16384-32767")
    low, high = (whole(1, 65535)(option, part) for part in match.groups())
    if low > high:
        raise UsageError(f"{option}: {value!r} ends before it begins; write it as {high}-{low}")
    return PortRange(low, high)


def duration(option: str, value: Any) -> float:
    """Seconds from `1s`, `500ms`, `1.5s`, `1m` or a bare number of seconds. Raises UsageError."""
    if isinstance(value, float) and 0 <= value < math.inf:
        return value  # as text it may have an exponent
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|)", str(value).strip(), re.ASCII)
    if isinstance(value, bool) or not match:
        raise UsageError(f"{option}: {value!r} is no duration; write it as 1s, 500ms, 1.5s or 1m")
    return float(match[1]) * _UNITS[match[2]]


def switch(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{option}: {value!r} is neither true nor false; write true or false")
    return value


def timeout(option: str, value: Any) -> float:
    seconds = duration(option, value)
    low, high = TIMEOUT_SECONDS
    if not low <= seconds <= high:
        raise UsageError(f"{option}: {value} is out of range, 50ms to 60m")
    return seconds


def patience(option: str, value: Any) -> float:
    if value in (NEVER, math.inf):
        return math.inf
    try:
        seconds = duration(option, value)
    except UsageError:
        raise UsageError(
            f"{option}: {value!r} is no duration; write it as 3s or 500ms, or as never"
        ) from None
    if seconds > LONGEST_PATIENCE_SECONDS:
        raise UsageError(f"{option}: {value} is out of range, 0s to 60m, or never")
    return seconds


def rtcp_timeout(option: str, value: Any) -> float:
    try:
        seconds = duration(option, value)
    except UsageError as error:
        raise UsageError(f"{error}; 0s turns it off") from None
    low, high = TIMEOUT_SECONDS
    if seconds and not low <= seconds <= high:
        raise UsageError(f"{option}: {value} is out of range, 50ms to 60m, or 0s: never")
    return seconds
