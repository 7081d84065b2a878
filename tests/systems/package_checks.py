"""The Debian package on a system where it was installed by apt: run by scripts/test-systems.

The tests follow a package's life, in this order, from its installation to its purge.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.systems.machine import Machine, machine, until

(BUILT,) = Path("/run/results").glob("moh-ebpf_*_all.deb")
# /run is the machine's own, and it empties /tmp.
DIRECTORY = Path("/root/packages")
PACKAGE = DIRECTORY / BUILT.name
CONFIG, OPTIONS = Path("/etc/moh-ebpf.toml"), Path("/etc/default/moh-ebpf")
SERVICE, ONCE = "moh-ebpf.service", "moh-ebpf-attach.service"
# An RTP packet of a provider's to the phantom port, put on the wire at the WAN's far end.
SPEAK = """
import socket, struct
wan = bytes.fromhex(open("/sys/class/net/wan/address").read().strip().replace(":", ""))
rtp = struct.pack("!BBHII", 0x80, 0, 1, 160, 7) + bytes(160)
udp = struct.pack("!4H", 21000, 4000, 8 + len(rtp), 0) + rtp
ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                 socket.inet_aton("203.0.113.10"), socket.inet_aton("198.51.100.2"))
total = sum(struct.unpack("!10H", ip))
total = (total & 0xFFFF) + (total >> 16)
ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
far.bind(("far", 0))
far.send(wan + bytes(6) + b"\\x08\\0" + ip + udp)
"""
SCRAPE = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9477').read().decode())"
# What dpkg, apt and systemd keep of everybody; the rest is compared.
CHANGING = re.compile(
    r"/(dev|proc|root|run|sys|tmp)/|/var/(cache|log|tmp|lib/(apt|dpkg))/"
    r"|/var/lib/systemd/(?!deb-systemd-helper)|/etc/(machine-id|\.updated)|/var/\.updated"
    r"|/usr/lib/python3/dist-packages/(?!moh).*__pycache__|/usr/lib/python3\.\d+/.*__pycache__"
)


def files() -> set[str]:
    said = subprocess.check_output(["find", "/", "-xdev"], text=True, errors="replace")
    return {line for line in said.splitlines() if not CHANGING.match(line + "/")}


@pytest.fixture(scope="module")
def box() -> Iterator[Machine]:
    """It has a WAN with an address, and no package of ours yet."""
    with machine() as made:
        make_wan(made)
        yield made


def make_wan(box: Machine) -> None:
    box.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "far")
    box.run("ip", "address", "add", "198.51.100.2/24", "dev", "wan")
    box.run("ip", "link", "set", "wan", "up")
    box.run("ip", "link", "set", "far", "up")


@pytest.fixture(scope="module")
def before(box: Machine) -> set[str]:
    """The files there are without the package, whose dependencies stay."""
    DIRECTORY.mkdir()
    shutil.copy(BUILT, PACKAGE)
    box.run("dpkg", "--purge", "moh-ebpf")
    return files()


def programs(box: Machine) -> list[int]:
    return [each["id"] for each in json.loads(box.run("moh-ebpf", "status", "--json", check=False)
                                               .stdout)["programs"]]  # fmt: skip


def scraped(box: Machine) -> dict[str, float]:
    """The service's metrics, as Prometheus asks for them; none while nobody answers."""
    said = box.run("python3", "-c", SCRAPE, check=False).stdout
    lines = (line.rsplit(" ", 1) for line in said.splitlines() if line.startswith("moh_ebpf"))
    return {name: float(value) for name, value in lines}


def journal(box: Machine) -> str:
    return box.run("journalctl", "--no-pager", "--unit", SERVICE).stdout


def install(box: Machine, package: Path) -> None:
    box.run("dpkg", "--force-confold", "--install", str(package),
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip


def another_version() -> Path:
    tree, package = DIRECTORY / "tree", DIRECTORY / "another.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", PACKAGE, tree], check=True)
    for path, pattern, text in (
        ("DEBIAN/control", r"^Version: .*$", "Version: 99.0"),
        (
            "usr/lib/python3/dist-packages/moh_ebpf/__init__.py",
            "^__version__ = .*$",
            '__version__ = "99.0"',
        ),
    ):
        file = tree / path
        changed, times = re.subn(pattern, text, file.read_text(), flags=re.MULTILINE)
        assert times == 1
        file.write_text(changed)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, package], check=True)
    return package


@contextmanager
def never_detached(box: Machine) -> Iterator[None]:
    """No filter is removed within."""
    log = DIRECTORY / "monitor.log"

    def marked(handle: str) -> bool:
        box.run("tc", "qdisc", "replace", "dev", "far", "root", "handle", handle, "pfifo")
        return f"pfifo {handle}" in log.read_text()

    with log.open("w") as file:
        # nsenter waits for what it runs, and takes no SIGTERM meanwhile.
        monitor = box.popen("setpriv", "--pdeathsig", "KILL", "tc", "monitor", stdout=file)
    try:
        until(lambda: marked("77:"))  # it listens
        yield
        until(lambda: marked("78:"))  # and has told all
        assert "deleted filter" not in log.read_text()
    finally:
        monitor.kill()
        monitor.wait()


def test_install_starts_nothing(box: Machine, before: set[str]) -> None:
    install(box, PACKAGE)
    for unit in (SERVICE, ONCE):
        assert box.run("systemctl", "is-enabled", unit, check=False).stdout == "disabled\n"
        assert box.property(unit, "ActiveState") == "inactive"
    assert box.run("moh-ebpf", "--version").stdout.startswith("moh-ebpf ")


@pytest.mark.parametrize("page", ["8 moh-ebpf", "5 moh-ebpf.toml"])
def test_manual_page_renders(page: str) -> None:
    done = subprocess.run(["man", "--warnings", *page.split()], capture_output=True, text=True,
                          check=True, env={**os.environ, "MANPAGER": "cat"})  # fmt: skip
    assert "attach" in done.stdout
    assert done.stderr == ""


def test_as_shipped_the_service_fails_once(box: Machine) -> None:
    done = box.run("systemctl", "start", SERVICE, check=False)
    assert done.returncode == 1
    assert box.property(SERVICE, "ActiveState") == "failed"
    assert box.property(SERVICE, "NRestarts") == "0"
    assert f"{CONFIG}: wan and ucm are missing" in journal(box)


def test_service_attaches(box: Machine) -> None:
    text = CONFIG.read_text()
    CONFIG.write_text(re.sub(r"^#(?=wan|ucm)", "", text, flags=re.M).replace("eth1", "wan"))
    OPTIONS.write_text('MOH_EBPF_OPTIONS="--metrics 9477"\n')
    box.run("systemctl", "start", SERVICE)
    assert len(programs(box)) == 2
    assert "0 on hold" in box.property(SERVICE, "StatusText")


def test_metrics_tell_what_the_programs_see(box: Machine) -> None:
    """With the hardening of the unit as it is shipped."""
    before = scraped(box)
    assert before["moh_ebpf_attached"] == 1
    box.run("python3", "-c", SPEAK)
    name = 'moh_ebpf_packets_total{verdict="consumed"}'
    until(lambda: scraped(box).get(name) == before[name] + 1)


def test_interface_goes_and_comes_back(box: Machine) -> None:
    """The service waits for it, tells so, and attaches there again."""
    process = box.property(SERVICE, "MainPID")
    box.run("ip", "link", "delete", "wan")
    until(lambda: scraped(box).get("moh_ebpf_attached") == 0)
    until(lambda: "waiting for wan" in box.property(SERVICE, "StatusText"))
    make_wan(box)
    until(lambda: scraped(box).get("moh_ebpf_attached") == 1)
    assert len(programs(box)) == 2
    box.run("python3", "-c", SPEAK)
    until(lambda: scraped(box).get('moh_ebpf_packets_total{verdict="consumed"}') == 1)
    until(lambda: "0 on hold" in box.property(SERVICE, "StatusText"))
    assert "waiting for wan" in journal(box)
    assert box.property(SERVICE, "MainPID") == process


def test_restart_and_reinstall_leave_the_programs(box: Machine) -> None:
    loaded, process = programs(box), box.property(SERVICE, "MainPID")
    with never_detached(box):
        box.run("systemctl", "restart", SERVICE)
        assert box.property(SERVICE, "MainPID") not in (process, "0"), journal(box)
        process = box.property(SERVICE, "MainPID")
        install(box, PACKAGE)
        assert box.property(SERVICE, "MainPID") not in (process, "0"), journal(box)
    assert programs(box) == loaded
    assert box.property(SERVICE, "ActiveState") == "active"


def test_a_killed_service_comes_back_to_its_programs(box: Machine) -> None:
    loaded = programs(box)
    with never_detached(box):
        box.run("systemctl", "kill", "--signal", "KILL", SERVICE)
        until(lambda: box.property(SERVICE, "NRestarts") == "1")
        until(lambda: box.property(SERVICE, "ActiveState") == "active")
    assert programs(box) == loaded


def test_upgrade_replaces_the_programs(box: Machine) -> None:
    loaded = programs(box)
    with never_detached(box):
        install(box, another_version())
    assert set(programs(box)).isdisjoint(loaded)
    assert "wan = [" in CONFIG.read_text()
    assert "it was another version" in journal(box)
    until(lambda: 'moh_ebpf_build_info{version="99.0"}' in scraped(box))


def test_stop_detaches(box: Machine) -> None:
    box.run("systemctl", "stop", SERVICE)
    assert programs(box) == []
    assert box.run("tc", "qdisc", "show", "dev", "wan", "clsact").stdout == ""
    assert box.property(SERVICE, "Result") == "success"


def test_an_upgrade_starts_no_stopped_service(box: Machine) -> None:
    install(box, PACKAGE)  # a downgrade is to dpkg the same
    assert box.property(SERVICE, "ActiveState") == "inactive"


def test_oneshot_is_reloaded_by_an_upgrade(box: Machine) -> None:
    box.run("systemctl", "start", ONCE)
    loaded = programs(box)
    assert len(loaded) == 2
    with never_detached(box):
        install(box, PACKAGE)
    assert set(programs(box)).isdisjoint(loaded)
    box.run("systemctl", "stop", ONCE)
    assert programs(box) == []


def test_removing_a_service_that_keeps_detaches(box: Machine) -> None:
    OPTIONS.write_text("MOH_EBPF_OPTIONS=--keep\n")
    box.run("systemctl", "enable", "--now", SERVICE)
    assert len(programs(box)) == 2
    box.run("dpkg", "--remove", "moh-ebpf")
    assert box.run("tc", "filter", "show", "dev", "wan", "ingress").stdout == ""
    assert box.run("tc", "filter", "show", "dev", "wan", "egress").stdout == ""
    assert box.run("tc", "qdisc", "show", "dev", "wan", "clsact").stdout == ""
    assert "moh_ebpf" not in box.run("ps", "-e", "-o", "args").stdout
    assert CONFIG.exists()


def test_purge_leaves_nothing(box: Machine, before: set[str]) -> None:
    said = box.run("dpkg", "--purge", "moh-ebpf")
    assert "not empty" not in said.stdout + said.stderr
    box.run("systemctl", "daemon-reload")
    assert "moh-ebpf" not in box.run("systemctl", "list-unit-files", "--no-pager").stdout
    now = files()
    assert now - before == set()
    assert before - now == set()
