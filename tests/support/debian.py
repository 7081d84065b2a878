"""Debian's archives, as this machine reaches them."""

import subprocess
from typing import Any

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ARCHIVES = ("debian", "debian-security")


class Unavailable(Exception):
    """What was asked for cannot be had."""


def output(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def archives() -> dict[str, str]:
    """Where this machine gets Debian from: the URIs of its "debian" and "debian-security"."""
    found: dict[str, str] = {}
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Component: main"]
    for uri in output(*command).split():
        # Cloud images name a file of mirrors, such as mirror+file:/etc/apt/mirrors/debian.list.
        name = uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".list")
        found.setdefault(name, uri)
    if missing := [name for name in ARCHIVES if name not in found]:
        raise Unavailable(
            f"this machine's apt sources name no {' nor '.join(missing)} archive, "
            "and all comes from there: run this on Debian"
        )
    return {name: found[name] for name in ARCHIVES}
