"""Root file systems of other Debians, and what of this machine they need to know."""

import configparser
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.support.debian import KEYRING, archives, output

CACHE = Path("build/systems")
ROOTS = CACHE / "roots"
CHECKOUT = "root/moh_ebpf"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Not the path of Debian's own: to install that must not replace this machine's.
MACHINES_CERTIFICATES = "/etc/ssl/machine.crt"

# A process and all that it starts, in namespaces of its own: mounts and processes end with us.
MORTAL = [
    *["setpriv", "--pdeathsig", "KILL"],
    *["unshare", "--mount", "--pid", "--fork", "--kill-child"],
]

# What this machine's apt and pip are told of the way to their servers. Its other settings (hooks,
# caches, packages on its disk) are its own.
APT_OPTIONS = ["http", "https", "Check-Valid-Until", "Check-Date"]
PIP_OPTIONS = [
    *["index-url", "extra-index-url", "trusted-host", "proxy"],
    *["timeout", "default-timeout", "retries"],
]
PROXIES = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]


def make(suite: str) -> None:
    """debootstrap's smallest root, kept in the cache for all later runs."""
    root = ROOTS / suite
    if root.exists():
        return
    part = ROOTS / f"{suite}.part"
    shutil.rmtree(part, ignore_errors=True)
    uri = mirror(archives()["debian"])
    output(
        *[*MORTAL, "--mount-proc", "debootstrap", "--variant=minbase", f"--keyring={KEYRING}"],
        *[suite, str(part), uri],
    )
    part.rename(root)


def mirror(uri: str) -> str:
    """debootstrap knows no lists of mirrors: the first of them."""
    if not uri.startswith("mirror+file:"):
        return uri
    return Path(uri.removeprefix("mirror+file:")).read_text().split()[0]


def pack(suite: str, file: IO[bytes]) -> None:
    """The checkout and this machine's settings, as a tar archive to be unpacked in the root."""
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in checkout():
            archive.add(name, f"{CHECKOUT}/{name}", filter=as_root)
        for path, text in settings(suite).items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o755 if "/sbin/" in path else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
    file.seek(0)


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def checkout() -> Iterator[str]:
    """Its files, tracked or new."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, text=True).split("\0"):
        if name and Path(name).is_file():
            yield name


def settings(suite: str) -> dict[str, str]:
    """Files by their path in the root."""
    found = {
        "etc/apt/sources.list": sources(suite),
        "etc/apt/apt.conf.d/99machine": apt_options(),
        # No service that a package brings is to start: its sockets would be this machine's.
        "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
    }
    for path in (Path("/etc/resolv.conf"), Path("/etc/hosts")):
        found[str(path).lstrip("/")] = path.read_text()
    if CERTIFICATES.exists():
        found[MACHINES_CERTIFICATES.lstrip("/")] = CERTIFICATES.read_text()
    return found


def sources(suite: str) -> str:
    uris = {name: mirror(uri) for name, uri in archives().items()}
    suites = {suite: "debian", f"{suite}-updates": "debian", f"{suite}-security": "debian-security"}
    return "".join(
        f"deb [signed-by={KEYRING}] {uris[name]} {each} main\n" for each, name in suites.items()
    )


def apt_options() -> str:
    said = output("apt-config", "dump", *(f"Acquire::{name}" for name in APT_OPTIONS))
    if CERTIFICATES.exists():
        said += f'Acquire::https::CaInfo "{MACHINES_CERTIFICATES}";\n'
    return said


def environment() -> dict[str, str]:
    """Of a login, and the way to pip's servers."""
    found = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    found |= {name: os.environ[name] for name in PROXIES if name in os.environ}
    if CERTIFICATES.exists():
        found["PIP_CERT"] = MACHINES_CERTIFICATES
    return found | pip_options()


def pip_options() -> dict[str, str]:
    """As environment variables, which are what pip heeds most."""
    parser = configparser.RawConfigParser()
    home = Path.home()
    parser.read(
        [
            *["/etc/xdg/pip/pip.conf", "/etc/pip.conf"],
            *[home / ".pip/pip.conf", home / ".config/pip/pip.conf"],
            os.environ.get("PIP_CONFIG_FILE", os.devnull),
        ]
    )
    found = {}
    for option in PIP_OPTIONS:
        name = f"PIP_{option.upper().replace('-', '_')}"
        values = [parser.get(each, option, fallback="") for each in ("global", "install")]
        given = os.environ.get(name) or values[1] or values[0]
        if servers := [word for word in given.split() if not word.startswith("file:")]:
            found[name] = " ".join(servers)
    return found
