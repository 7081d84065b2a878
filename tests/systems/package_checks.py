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
CONFIG = Path("/etc/moh-ebpf.toml")
SERVICE, ONCE = "moh-ebpf.service", "moh-ebpf-attach.service"
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
        made.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "far")
        made.run("ip", "address", "add", "198.51.100.2/24", "dev", "wan")
        made.run("ip", "link", "set", "wan", "up")
        made.run("ip", "link", "set", "far", "up")
        yield made


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
    assert "--wan is missing" in journal(box)


def test_service_attaches(box: Machine) -> None:
    text = CONFIG.read_text()
    CONFIG.write_text(re.sub(r"^#(?=wan|ucm)", "", text, flags=re.M).replace("eth1", "wan"))
    box.run("systemctl", "start", SERVICE)
    assert len(programs(box)) == 2
    assert "0 on hold" in box.property(SERVICE, "StatusText")


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
    Path("/etc/default/moh-ebpf").write_text("MOH_EBPF_OPTIONS=--keep\n")
    box.run("systemctl", "enable", "--now", SERVICE)
    assert len(programs(box)) == 2
    box.run("dpkg", "--remove", "moh-ebpf")
    assert box.run("tc", "filter", "show", "dev", "wan", "ingress").stdout == ""
    assert box.run("tc", "filter", "show", "dev", "wan", "egress").stdout == ""
    assert CONFIG.exists()


def test_purge_leaves_nothing(box: Machine, before: set[str]) -> None:
    said = box.run("dpkg", "--purge", "moh-ebpf")
    assert "not empty" not in said.stdout + said.stderr
    now = files()
    assert now - before == set()
    assert before - now == set()
