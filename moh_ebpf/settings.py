"""The settings: a TOML file and the command line's options, validated, before the kernel is asked.

A setting has one name everywhere: `--rtp-ports` on the command line is `rtp_ports` in the file
(`rtp-ports` is taken as well), in `status --json` and here.
"""

import itertools
import math
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from moh_ebpf import parsers
from moh_ebpf.errors import UsageError
from moh_ebpf.parsers import Parser, PortRange, list_of

# An LRU hash of this many peers takes about 6 GiB of kernel memory.
MOST_PEERS = 1 << 24
MOST_INTERFACES = 64
MOST_ADDRESSES = 256
MOST_PROVIDERS = 65536
MOST_SIP_PORTS = 16
# Of a config: many times what all that it may hold takes.
MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Setting:
    """What a setting is besides its name, type and default. `unset` says what holds without it
    where that is no value, `shown` what status shows then, if that is another word."""

    parse: Parser
    metavar: str
    help: str
    unset: str = ""
    shown: str = ""

    @property
    def is_list(self) -> bool:
        return self.metavar.endswith("…")

    @property
    def is_switch(self) -> bool:
        return not self.metavar


def _setting(
    parse: Parser, metavar: str, help: str, *, default: Any = MISSING, unset: str = "",
    shown: str = "",
) -> Any:  # fmt: skip
    return field(default=default, metadata={"row": Setting(parse, metavar, help, unset, shown)})


@dataclass(frozen=True)
class Settings:
    """What `attach` is told, a row each: options, manual pages, the TOML reader and status read it.

    `timeout`, `patience` and `rtcp_timeout` are in seconds; `patience` inf: never over;
    `rtcp_timeout` 0: RTCP says nothing; `public` empty: the WANs' own addresses; `sip_from` empty:
    any address; `provider` empty: any address that is not private, loopback, link-local or
    multicast.
    """

    # fmt: off
    wan: tuple[str, ...] = _setting(
        list_of(parsers.interface, MOST_INTERFACES), "IF…", "Interfaces towards the provider.")
    ucm: tuple[IPv4Address, ...] = _setting(
        list_of(parsers.address, MOST_ADDRESSES), "ADDR…", "Addresses of UCM's media.")
    lan: tuple[str, ...] = _setting(
        list_of(parsers.interface, MOST_INTERFACES), "IF…", "Interfaces UCM's packets come in by.",
        default=(), shown="none")
    public: tuple[IPv4Address, ...] = _setting(
        list_of(parsers.address, MOST_ADDRESSES), "ADDR…", "Addresses the provider sends to.",
        default=(), unset="those of the WANs")
    port: int = _setting(
        parsers.port, "PORT", "The phantom port, the first of six.", default=4000)
    rtp_ports: PortRange = _setting(
        parsers.port_range, "LOW-HIGH", "UCM's RTP source ports.", default=PortRange(16384, 32767))
    provider: tuple[IPv4Network, ...] = _setting(
        list_of(parsers.network, MOST_PROVIDERS), "CIDR…", "Networks that may be learned.",
        default=(), unset="any global address")
    timeout: float = _setting(
        parsers.timeout, "DURATION", "When a silent endpoint is forgotten.", default=1.0)
    patience: float = _setting(
        parsers.patience, "DURATION",
        "How long UCM's RTP is held back from an endpoint not heard, or never.", default=3.0)
    rtcp_timeout: float = _setting(
        parsers.rtcp_timeout, "DURATION",
        "How long a silent endpoint stays known after its last RTCP; 0s: never.", default=15.0)
    max_peers: int = _setting(
        parsers.whole(1, MOST_PEERS), "N", "The most endpoints remembered.", default=65536)
    quality: bool = _setting(
        parsers.switch, "", "Keep loss and jitter of each stream.", default=True)
    flip_hold: bool = _setting(
        parsers.switch, "", "Turn the sendonly of a hold into sendrecv.", default=False)
    signalling: bool = _setting(
        parsers.switch, "", "Let run read SIP, which says who is in which call.", default=True)
    sip_ports: tuple[int, ...] = _setting(
        list_of(parsers.port, MOST_SIP_PORTS), "PORT…", "Ports of SIP.", default=(5060,))
    sip_from: tuple[IPv4Network, ...] = _setting(
        list_of(parsers.network, MOST_PROVIDERS), "CIDR…",
        "Networks SIP comes from.", default=(), unset="any", shown="anywhere")
    show_numbers: bool = _setting(
        parsers.switch, "", "Keep the numbers of caller and called, for all who may read calls.",
        default=False)
    # fmt: on

    @property
    def phantom_ports(self) -> tuple[int, ...]:
        """RTP and RTCP of audio, then of video and of data, as far as `rtp_ports` leaves them
        (Cisco, System Configuration Guide, TCP and UDP port usage)."""
        ports = range(self.port, min(self.port + 5, 65535) + 1)
        return tuple(itertools.takewhile(lambda port: port not in self.rtp_ports, ports))

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON types, under the same names; `from_values` reads them back."""
        patience = parsers.NEVER if math.isinf(self.patience) else self.patience
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


# By the settings' names.
ROWS: dict[str, Setting] = {each.name: each.metadata["row"] for each in fields(Settings)}
DEFAULTS: dict[str, Any] = {
    each.name: each.default for each in fields(Settings) if each.default is not MISSING
}


def text(name: str, value: Any) -> str:
    """A setting's value as people read it, from its own type or as to_json has it."""
    row = ROWS[name]
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or row.shown or row.unset
    if isinstance(value, bool):
        return "yes" if value else "no"
    if row.metavar == "DURATION" and not isinstance(value, str):
        return f"{value:g}s"
    return str(value)


def default_text(name: str) -> str:
    """What holds where a setting is not given, as the help has it; empty: nothing does."""
    default = DEFAULTS.get(name)
    return ROWS[name].unset or (text(name, default) if default not in (None, ()) else "")


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


def option(name: str) -> str:
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
    known = list(ROWS)
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
    names = ", ".join(map(option, over))
    return _settings(load_config(config) | over, _in_file(config, names and f" with {names}"))


def _parsed(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Errors begin with `where` they stand. What is parsed already stays as it is."""
    return {
        name: ROWS[name].parse(where + option(name), value)
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


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, each validated: None and an empty list are not. Raises UsageError."""
    return _parsed({name: value for name, value in options.items() if _is_given(value)})


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, Iterable) and not value)
