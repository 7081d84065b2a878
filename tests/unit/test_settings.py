"""Settings: what is taken, what is refused and how it is said."""

import json
import math
import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from moh_ebpf import settings
from moh_ebpf.errors import UsageError
from moh_ebpf.parsers import PortRange
from moh_ebpf.settings import Settings, from_values

LEAST = {"wan": "eth1", "ucm": "10.10.10.10"}


def test_defaults() -> None:
    chosen = from_values(LEAST)
    assert chosen == Settings(wan=("eth1",), ucm=(IPv4Address("10.10.10.10"),))
    assert (chosen.port, str(chosen.rtp_ports), chosen.timeout) == (4000, "16384-32767", 1.0)
    assert (chosen.max_peers, chosen.provider, chosen.public) == (65536, (), ())


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("wan", ["eth1", "ppp0"], ("eth1", "ppp0")),
        ("wan", "eth1,ppp0", ("eth1", "ppp0")),
        ("wan", ["eth1", "eth1"], ("eth1",)),
        ("lan", "eth0.10", ("eth0.10",)),
        ("ucm", "10.0.0.1, 10.0.0.2", (IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"))),
        ("provider", ["203.0.113.0/24", "192.0.2.7"],
         (IPv4Network("203.0.113.0/24"), IPv4Network("192.0.2.7/32"))),
        ("provider", "0.0.0.0/0", (IPv4Network("0.0.0.0/0"),)),
        ("port", "5000", 5000),
        ("port", 5000, 5000),
        ("rtp_ports", "24576-32767", PortRange(24576, 32767)),
        ("rtp_ports", "20000-20000", PortRange(20000, 20000)),
        ("timeout", "1s", 1.0),
        ("timeout", "500ms", 0.5),
        ("timeout", "1.5s", 1.5),
        ("timeout", "2m", 120.0),
        ("timeout", 2, 2.0),
        ("timeout", 0.25, 0.25),
        ("patience", "3s", 3.0),
        ("patience", 0, 0.0),
        ("patience", "never", math.inf),
        ("patience", math.inf, math.inf),
        ("rtcp_timeout", "15s", 15.0),
        ("rtcp_timeout", "0s", 0.0),
        ("rtcp_timeout", "50ms", 0.05),
        ("sip_from", ["203.0.113.0/24"], (IPv4Network("203.0.113.0/24"),)),
        ("max_peers", "1024", 1024),
    ],
)  # fmt: skip
def test_takes(name: str, value: object, parsed: object) -> None:
    assert getattr(from_values({**LEAST, name: value}), name) == parsed


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wan", "", "no interface name"),
        ("wan", "n" * 128, "no interface name"),
        ("wan", "eth/1", "no interface name"),
        ("wan", 7, "no interface name"),
        ("wan", [], "--wan is missing"),
        ("ucm", [], "--ucm is missing"),
        ("ucm", "10.10.10", "no IPv4 address"),
        ("ucm", "10.10.10.256", "no IPv4 address"),
        ("ucm", "ucm.example.org", "no IPv4 address"),
        ("ucm", "2001:db8::1", "no IPv4 address"),
        ("ucm", "10.10.10.0/24", "no IPv4 address"),
        ("ucm", 168430090, "no IPv4 address"),
        ("ucm", "224.0.0.1", "no host's address"),
        ("ucm", "0.0.0.0", "no host's address"),
        ("ucm", "255.255.255.255", "no host's address"),
        ("public", "198.51.100", "no IPv4 address"),
        ("provider", "203.0.113.1/24", "host bits"),
        ("provider", "203.0.113.0/33", "no IPv4 prefix"),
        ("provider", "everyone", "no IPv4 prefix"),
        ("port", "0", "out of range"),
        ("port", "65535", "out of range"),
        ("port", "-1", "no whole number"),
        ("port", "4000.5", "no whole number"),
        ("port", True, "no whole number"),
        ("port", "٤٠٠٠", "no whole number"),
        ("port", "20000", "must lie outside"),
        ("port", "16383", "must lie outside"),  # its RTCP would be 16384
        ("rtp_ports", "32767-16384", "ends before it begins"),
        ("rtp_ports", "16384", "no range"),
        ("rtp_ports", "16384-70000", "out of range"),
        ("rtp_ports", "0-100", "out of range"),
        ("timeout", "soon", "no duration"),
        ("timeout", "1h", "no duration"),
        ("timeout", "-1s", "no duration"),
        ("timeout", "0s", "out of range"),
        ("timeout", "2000m", "out of range"),
        ("timeout", True, "no duration"),
        ("patience", "for ever", "or as never"),
        ("patience", "Never", "or as never"),
        ("patience", True, "or as never"),
        ("patience", "61m", "out of range"),
        ("rtcp_timeout", "never", "0s turns it off"),
        ("rtcp_timeout", "-3s", "no duration"),
        ("rtcp_timeout", -3, "no duration"),
        ("rtcp_timeout", "0.05ms", "50ms to 60m"),
        ("rtcp_timeout", "61m", "50ms to 60m"),
        ("rtcp_timeout", math.nan, "no duration"),
        ("sip_from", ["203.0.113.1/24"], "host bits"),
        ("max_peers", "0", "out of range"),
        ("max_peers", "many", "no whole number"),
        ("max_peers", 1 << 25, "out of range"),
        ("max_peers", "99999999999", "out of range, 1 to"),
        ("lan", "eth1", "given as --wan and as --lan"),
        ("quality", 1, "neither true nor false"),
        ("sip_ports", [True], "no whole number"),
    ],
)
def test_refuses(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        from_values({**LEAST, name: value})
    assert f"--{name.replace('_', '-')}" in str(refused.value)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "moh-ebpf.toml"
    path.write_text(text)
    return path


def test_file_has_the_options_names(tmp_path: Path) -> None:
    path = write(tmp_path, """
        wan = "eth1"
        lan = ["eth0", "wg0"]
        ucm = ["10.10.10.10"]
        rtp_ports = "24576-32767"
        timeout = "1500ms"
        max-peers = 1024
    """)  # fmt: skip
    chosen = from_values(settings.load_config(path))
    assert chosen.lan == ("eth0", "wg0")
    assert (chosen.timeout, chosen.max_peers, chosen.rtp_ports.low) == (1.5, 1024, 24576)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wan = ", "not valid TOML"),
        ('vlan = "eth1"', "no setting 'vlan'"),
        ("[wan]\nname = 1", "no interface name"),
        ('wan = "eth1"\nucm = [["10.10.10.10"]]', "no IPv4 address"),
        ("max_peers = 1\nmax-peers = 2", "given twice"),
        ("wan = true", "no interface name"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=f"--config {path}: .*{said}"):
        settings.load_config(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--config"):
        settings.load_config(tmp_path / name)


def test_only_what_stands_without_quotes_is_told_of_them(tmp_path: Path) -> None:
    for text, hint in (("wan = eth1", True), ("port = 1\nport = 1", False), ("[", False)):
        with pytest.raises(UsageError, match="not valid TOML") as refused:
            settings.load_config(write(tmp_path, text))
        assert ("stands in quotes" in str(refused.value)) is hint


def test_what_is_wrong_in_a_file_is_said_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'wan = "eth1"\nucm = "10.10.10.10"\nport = 20000')
    with pytest.raises(UsageError, match=f"^--config {path}: --port 20000: the phantom ports"):
        settings.from_both(path, {})
    together = f"^--config {path} with --rtp-ports, --timeout: --port 20000: the phantom ports"
    with pytest.raises(UsageError, match=together):
        settings.from_both(path, {"lan": [], "rtp_ports": "16384-24000", "timeout": "2s"})
    with pytest.raises(UsageError, match=r"^--port: 'x' is no whole number"):
        settings.from_both(path, {"port": "x"})
    assert settings.from_both(path, {"port": "4000", "lan": []}) == from_values(LEAST)
    with pytest.raises(UsageError, match=f"^--config {path}: --wan is missing"):
        settings.from_both(write(tmp_path, ""), {})
    assert settings.from_both(None, LEAST) == from_values(LEAST)


def test_options_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'wan = "eth1"\nucm = "10.10.10.10"\nlan = "eth0"\nport = 5000')
    chosen = settings.from_both(path, {"wan": ["ppp0"], "lan": [], "port": None, "ucm": None})
    assert chosen == from_values({**LEAST, "wan": "ppp0", "lan": "eth0", "port": 5000})


def test_json_reads_back() -> None:
    chosen = from_values(
        {**LEAST, "lan": "eth0", "provider": "203.0.113.0/24", "timeout": "1.5s", "port": 4100}
    )
    assert from_values(chosen.to_json()) == chosen


def test_a_hold_is_flipped_on_some_port() -> None:
    with pytest.raises(UsageError, match="no --sip-ports"):
        from_values({**LEAST, "flip_hold": True, "sip_ports": []})


def test_the_service_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    for wrong in ("port = 0", "port = 20000"):  # by itself, and together with others
        path = write(tmp_path, f'wan = "eth1"\nucm = "10.10.10.10"\n{wrong}\n')
        with pytest.raises(UsageError, match=f"^--config {path}: --port"):
            settings.load_file(path)


def test_values_of_a_file_are_read_again_with_options_over_them(tmp_path: Path) -> None:
    text = """
        wan = "eth1"
        ucm = ["10.10.10.10"]
        provider = "203.0.113.0/24"
        rtp_ports = "24576-32767"
        timeout = "1500ms"
        quality = false
        sip_ports = [5060, 5062]
    """
    path = write(tmp_path, text)
    of_the_file = from_values(settings.load_config(path))
    assert (of_the_file.timeout, of_the_file.quality) == (1.5, False)
    assert settings.from_both(path, {"port": "4100"}) == replace(of_the_file, port=4100)


def test_service_file_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "moh-ebpf.toml"
    file.write_text('wan = ["eth1"]\r\nucm = "10.10.10.10"\r\n')
    assert settings.load_file(file) == from_values(LEAST)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "wan and ucm are missing"), ('wan = "eth1"', "ucm is missing"), ("ucm = []", "wan and")],
)
def test_service_file_lacks_what_it_needs(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "moh-ebpf.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"{file}: {said}.*wan = .*ucm = "):
        settings.load_file(file)
    with pytest.raises(UsageError, match=f"{file}x: No such file.*wan = .*ucm = "):
        settings.load_file(Path(f"{file}x"))


def test_service_file_is_a_file(tmp_path: Path) -> None:
    """Neither waits for who would write into it, nor for its end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UsageError, match=f"{path}: it is no regular file|Is a directory"):
            settings.load_file(path)


def test_config_by_a_pipe_is_taken() -> None:
    reader, writer = os.pipe()
    os.write(writer, b'wan = "eth1"')
    os.close(writer)
    assert settings.load_config(Path(f"/dev/fd/{reader}")) == {"wan": ("eth1",)}
    os.close(reader)


def test_config_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero: longer than"):
        settings.load_config(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patience", "never"),
        ("patience", "0.00005s"),  # as a JSON number: 5e-05
        ("patience", "3600000ms"),
        ("timeout", "50.000001ms"),
        ("rtcp_timeout", "0s"),
        ("rtcp_timeout", "59.999999m"),
    ],
)
def test_a_duration_comes_back_from_json(name: str, value: str) -> None:
    """Otherwise no later command could read what is attached."""
    chosen = from_values({**LEAST, name: value})
    assert from_values(json.loads(json.dumps(chosen.to_json()))) == chosen
