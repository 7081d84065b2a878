"""The settings: a TOML file and the command line's options, validated, before the kernel is asked.

A setting has one name everywhere: `--rtp-ports` on the command line is `rtp_ports` in the file
(`rtp-ports` is taken as well), in `status --json` and here.
"""

import itertools
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from moh_ebpf.errors import UsageError

# An LRU hash of this many peers takes about 6 GiB of kernel memory.
MOST_PEERS = 1 << 24
MOST_INTERFACES = 64
MOST_ADDRESSES = 256
MOST_PROVIDERS = 65536
MOST_SIP_PORTS = 16
TIMEOUT_SECONDS = (0.05, 3600.0)
LONGEST_PATIENCE_SECONDS = 3600.0
NEVER = "never"
# Of a config: many times what all that it may hold takes.
MOST_BYTES = 1 << 24

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


@dataclass(frozen=True)
class Settings:
    """What `attach` is told. `timeout`, `patience` and `rtcp_timeout` are in seconds; `patience`
    inf: never over; `rtcp_timeout` 0: RTCP says nothing; `public` empty: the WANs' own addresses;
    `sip_from` empty: any address; `provider` empty: any address that is not private, loopback,
    link-local or multicast."""

    wan: tuple[str, ...]
    ucm: tuple[IPv4Address, ...]
    lan: tuple[str, ...] = ()
    public: tuple[IPv4Address, ...] = ()
    port: int = 4000
    rtp_ports: PortRange = PortRange(16384, 32767)
    provider: tuple[IPv4Network, ...] = ()
    timeout: float = 1.0
    patience: float = 3.0
    rtcp_timeout: float = 15.0
    max_peers: int = 65536
    quality: bool = True
    flip_hold: bool = False
    sip_ports: tuple[int, ...] = (5060,)
    sip_from: tuple[IPv4Network, ...] = ()

    @property
    def phantom_ports(self) -> tuple[int, ...]:
        """RTP and RTCP of audio, then of video and of data, as far as `rtp_ports` leaves them
        (Cisco, System Configuration Guide, TCP and UDP port usage)."""
        ports = range(self.port, min(self.port + 5, 65535) + 1)
        return tuple(itertools.takewhile(lambda port: port not in self.rtp_ports, ports))

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON types, under the same names; `from_values` reads them back."""
        patience = NEVER if math.isinf(self.patience) else self.patience
        values = asdict(self) | {"rtp_ports": str(self.rtp_ports), "patience": patience}
        return {
            name: [each if isinstance(each, int) else str(each) for each in value]
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }

    def leaves_as(self) -> str:
        """In words: the source of hold music at the WAN."""
        sources = ", ".join(f"{address}:{self.port}" for address in self.public)
        return f"hold music leaves as {sources}"


def load_file(path: Path) -> Settings:
    """The settings of a service, which has a file alone, and reads it again and again.

    Raises UsageError if there is none, if it is a pipe or a device, which give what they have once
    and may keep a reader waiting, and as load_config and from_values do.
    """
    values = load_config(path, _open_file)
    if missing := [name for name in ("wan", "ucm") if not values.get(name)]:
        raise UsageError(
            f"{_in_file(path)}{' and '.join(missing)} {'are' if missing[1:] else 'is'} missing; "
            f"{_WRITE}"
        )
    return _settings(values, _in_file(path))


def _in_file(path: Path | str, more: str = "") -> str:
    return f"--config {path}{more}: "


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _open_file(path: str, flags: int) -> int:
    """As os.open, without waiting; no pipe, no device, no directory."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{_in_file(path)}it is no regular file, and run reads it at each reload")
    return descriptor


def load_config(path: Path, opener: Callable[[str, int], int] | None = None) -> dict[str, Any]:
    """The settings of a TOML file, by name, each validated, for options to be put over them.

    Raises UsageError, which names the file, if it cannot be read, is no TOML, or has a key that is
    no setting or a value that is wrong.
    """
    where = _in_file(path)
    try:
        with open(path, "rb", opener=opener) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:  # /dev/zero would not end
            raise UsageError(f"{where}longer than {MOST_BYTES} bytes")
        values = tomllib.loads(text.decode())
    except FileNotFoundError as error:
        raise UsageError(f"{where}{error.strerror}; {_WRITE}") from error
    except OSError as error:
        raise UsageError(f"{where}{error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5,000 digits
        hint = '; text stands in quotes: wan = ["eth1"]' if "Invalid value" in str(error) else ""
        raise UsageError(f"{where}not valid TOML: {error}{hint}") from error
    named = {key.replace("-", "_"): value for key, value in values.items()}
    known = [field.name for field in fields(Settings)]
    for key in values:
        if key.replace("-", "_") not in known:
            raise UsageError(f"{where}there is no setting {key!r}; there are {', '.join(known)}")
    if len(named) < len(values):
        raise UsageError(f"{where}a setting is given twice, once with - and once with _")
    return _parsed(named, where)


def from_values(values: Mapping[str, Any]) -> Settings:
    """Settings from values: strings, numbers and lists as options give them, or as load_config.

    Raises UsageError at the first value that is wrong, with what would be right.
    """
    return _settings(_parsed(values), "")


def _settings(parsed: Mapping[str, Any], where: str) -> Settings:
    """From values that are right each by itself. Errors begin with `where` they stand."""
    for name in ("wan", "ucm"):
        if not parsed.get(name):
            raise UsageError(f"{where}--{name} is missing: {_MISSING[name]}")
    settings = Settings(**parsed)
    _check_together(settings, where)
    return settings


def from_both(config: Path | None, options: Mapping[str, Any]) -> Settings:
    """The settings of a file, if there is one, and of options over them. Raises UsageError."""
    over = given(options)
    if config is None:
        return _settings(over, "")
    names = ", ".join(map(_option, over))
    return _settings(load_config(config) | over, _in_file(config, names and f" with {names}"))


def _parsed(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Errors begin with `where` they stand. What is parsed already stays as it is."""
    return {
        name: _PARSERS[name](where + _option(name), value)
        for name, value in values.items()
        if value is not None
    }


_WRITE = 'write into it, as your interface and UCM are: wan = ["eth1"] and ucm = ["10.10.10.10"]'
_MISSING = {
    "wan": "name the interface towards the provider, for example --wan eth1",
    "ucm": "name the address of UCM's media, for example --ucm 10.10.10.10",
}


def _check_together(settings: Settings, where: str) -> None:
    if settings.flip_hold and not settings.sip_ports:
        raise UsageError(
            f"{where}--flip-hold with no --sip-ports: name one at least, 5060 in general"
        )
    if settings.port in settings.sip_ports:
        raise UsageError(f"{where}--sip-ports {settings.port}: that is the phantom port (--port)")
    both = set(settings.wan) & set(settings.lan)
    if both:
        raise UsageError(
            f"{where}{min(both)} is given as --wan and as --lan; "
            "the LAN is the interface UCM's packets come in by. "
            "With one interface alone, leave --lan out"
        )
    for port in (settings.port, settings.port + 1):
        if port in settings.rtp_ports:
            raise UsageError(
                f"{where}--port {settings.port}: the phantom ports (RTP {settings.port}, RTCP "
                f"{settings.port + 1}) must lie outside --rtp-ports {settings.rtp_ports}"
            )


def _items(value: Any) -> list[Any]:
    """A list setting's items: a list of them, or one; commas separate within a string."""
    values = value if isinstance(value, list | tuple) else [value]
    return [
        item
        for value in values
        for item in (re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else [value])
    ]


def _unique(
    option: str, value: Any, parse: Callable[[str, Any], Any], most: int
) -> tuple[Any, ...]:
    items = tuple(dict.fromkeys(parse(option, item) for item in _items(value)))
    if len(items) > most:
        raise UsageError(f"{option}: {len(items)} are too many, {most} is the most")
    return items


def _interface(option: str, value: Any) -> str:
    # The kernel's rule (dev_valid_name) is no '/', ':' or white space, and at most 15 bytes; an
    # altname may have 127.
    if not isinstance(value, str) or not re.fullmatch(r"[^\s/:]{1,127}", value):
        raise UsageError(f"{option}: {value!r} is no interface name; `ip link` lists them")
    return value


def _address(option: str, value: Any) -> IPv4Address:
    try:
        if not isinstance(value, str | IPv4Address):
            raise ValueError
        address = IPv4Address(value)
    except ValueError:
        raise UsageError(f"{option}: {value!r} is no IPv4 address, such as 198.51.100.2") from None
    if address.is_multicast or address.is_unspecified or int(address) == 0xFFFFFFFF:
        raise UsageError(f"{option}: {address} is no host's address")
    return address


def _network(option: str, value: Any) -> IPv4Network:
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


def _whole(option: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,20}", str(value), re.ASCII):
        raise UsageError(f"{option}: {value!r} is no whole number")
    if not low <= int(value) <= high:
        raise UsageError(f"{option}: {value} is out of range, {low} to {high}")
    return int(value)


def _port(option: str, value: Any) -> int:
    return _whole(option, value, 1, 65534)


def _port_range(option: str, value: Any) -> PortRange:
    match = re.fullmatch(r"(\d{1,5})\s*[-:]\s*(\d{1,5})", str(value).strip(), re.ASCII)
    if isinstance(value, bool) or not match:
        raise UsageError(f"{option}: {value!r} is no range of ports; write it as 16384-32767")
    low, high = (_whole(option, part, 1, 65535) for part in match.groups())
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


def _switch(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{option}: {value!r} is neither true nor false; write true or false")
    return value


def _timeout(option: str, value: Any) -> float:
    seconds = duration(option, value)
    low, high = TIMEOUT_SECONDS
    if not low <= seconds <= high:
        raise UsageError(f"{option}: {value} is out of range, 50ms to 60m")
    return seconds


def _patience(option: str, value: Any) -> float:
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


def _rtcp_timeout(option: str, value: Any) -> float:
    try:
        seconds = duration(option, value)
    except UsageError as error:
        raise UsageError(f"{error}; 0s turns it off") from None
    low, high = TIMEOUT_SECONDS
    if seconds and not low <= seconds <= high:
        raise UsageError(f"{option}: {value} is out of range, 50ms to 60m, or 0s: never")
    return seconds


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "wan": lambda option, value: _unique(option, value, _interface, MOST_INTERFACES),
    "lan": lambda option, value: _unique(option, value, _interface, MOST_INTERFACES),
    "ucm": lambda option, value: _unique(option, value, _address, MOST_ADDRESSES),
    "public": lambda option, value: _unique(option, value, _address, MOST_ADDRESSES),
    "provider": lambda option, value: _unique(option, value, _network, MOST_PROVIDERS),
    "port": _port,
    "rtp_ports": _port_range,
    "timeout": _timeout,
    "patience": _patience,
    "rtcp_timeout": _rtcp_timeout,
    "max_peers": lambda option, value: _whole(option, value, 1, MOST_PEERS),
    "quality": _switch,
    "flip_hold": _switch,
    "sip_ports": lambda option, value: _unique(option, value, _port, MOST_SIP_PORTS),
    "sip_from": lambda option, value: _unique(option, value, _network, MOST_PROVIDERS),
}


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, each validated: None and an empty list are not. Raises UsageError."""
    return _parsed({name: value for name, value in options.items() if _is_given(value)})


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, Iterable) and not value)
