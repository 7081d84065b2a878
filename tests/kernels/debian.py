"""Debian's kernels: found and fetched with apt, unpacked into build/kernels, never installed."""

import functools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.debian import KEYRING, Unavailable, archives, output

CACHE = Path("build/kernels")

# 5.10 is Debian 11's, 6.1 Debian 12's; 6.12 came to 12's security suite, and the newest of all
# to 13's backports.
SUITES = {
    "debian": ["bookworm", "trixie-backports"],
    "debian-security": ["bullseye-security", "bookworm-security"],
}
IMAGE = re.compile(r"linux-image-(?P<release>(?P<series>\d+\.\d+)\.[0-9a-z.+~-]*amd64)")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel. `layer` has its modules as they lie in a root file system."""

    release: str
    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def layer(self) -> Path:
        return self.directory / "layer"


class Apt:
    """An apt of our own: the machine's settings and mirror, other suites, lists and cache."""

    def __init__(self) -> None:
        home = (CACHE / "apt").resolve()
        for each in ("lists/partial", "cache/archives/partial", "packages"):
            (home / each).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(
            "".join(
                f"deb [signed-by={KEYRING}] {uri} {suite} main\n"
                for name, uri in archives().items()
                for suite in SUITES[name]
            )
        )
        config = home / "apt.conf"
        config.write_text(
            f'Dir::State::lists "{home}/lists";\nDir::Cache "{home}/cache";\n'
            f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "-";\n'
            'APT::Architecture "amd64";\nAPT::Sandbox::User "root";\nAcquire::Retries "3";\n'
        )
        self.packages = home / "packages"
        self._environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8"}

    def update(self) -> None:
        self._run("apt-get", "update")

    def images(self) -> dict[str, str]:
        """The newest kernel package of each series, such as "6.1"."""
        newest: dict[str, str] = {}
        for name in self._run("apt-cache", "pkgnames", "linux-image-").split():
            found = IMAGE.fullmatch(name)
            if not found or "cloud" in name or "rt-" in name:
                continue
            other = newest.get(found["series"])
            if other is None or version_key(name) > version_key(other):
                newest[found["series"]] = name
        return newest

    def download(self, image: str) -> list[Path]:
        """The package, and those that a newer kernel's image and modules are split into."""
        release = image.removeprefix("linux-image-")
        depends = self._run("apt-cache", "depends", "--important", image)
        parts = re.findall(rf"Depends: (linux-\w+-{re.escape(release)})$", depends, re.MULTILINE)
        directory = self.packages / image
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._run("apt-get", "download", image, *parts, cwd=directory)
        return sorted(directory.iterdir())

    def _run(self, *command: str, **options: Any) -> str:
        return output(*command, env=self._environment, **options)


def version_key(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


@functools.cache
def apt() -> Apt:
    made = Apt()
    made.update()
    return made


def choose(series: list[str]) -> list[str]:
    """The packages' names of the series asked for; "newest" is one."""
    images = apt().images()
    in_order = sorted(images, key=version_key)
    chosen = []
    for each in series:
        name = images.get(in_order[-1] if each == "newest" else each)
        if name is None:
            raise Unavailable(f"there is no {each}; to be had are newest, {', '.join(in_order)}")
        if name not in chosen:
            chosen.append(name)
    return chosen


def fetch(image: str) -> Kernel:
    """From the cache or from the mirror."""
    release = image.removeprefix("linux-image-")
    kernel = Kernel(release, CACHE / release)
    if not kernel.image.exists():
        unpack(apt().download(image), kernel)
        shutil.rmtree(apt().packages / image)
    return kernel


def unpack(packages: list[Path], kernel: Kernel) -> None:
    """Modules go under usr/lib: a lib of the layer's own would hide the root's link."""
    files = kernel.directory / "files"
    shutil.rmtree(kernel.directory, ignore_errors=True)
    kernel.directory.mkdir(parents=True)
    for package in packages:
        output("dpkg-deb", "--extract", str(package), str(files))
    modules = next(files.glob(f"**/lib/modules/{kernel.release}"))
    target = kernel.layer / "usr/lib/modules" / kernel.release
    target.parent.mkdir(parents=True)
    modules.rename(target)
    output("depmod", "-b", str(kernel.layer / "usr"), kernel.release)
    # In /boot; since 7.x among the modules. Last: an image that is there says that all is.
    images = [*files.glob(f"boot/vmlinuz-{kernel.release}"), *target.glob("vmlinuz")]
    images[0].rename(kernel.image)
    shutil.rmtree(files)
