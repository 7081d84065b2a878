"""The Debian package: built, clean to lintian, and complete. Its life on a system, from its
installation to its purge, is tested by scripts/test-systems (tests/systems/package_checks.py)."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf import __version__
from tests.support.documents import broken_links
from tests.support.firewall import UCM, Firewall

ROOT = Path(__file__).parents[2]
MODULES = "usr/lib/python3/dist-packages/moh_ebpf"


def output(*command: object, **options: Any) -> str:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built, which fails for whatever lintian has to say; its files, unpacked."""
    directory = tmp_path_factory.mktemp("deb")
    said = output(ROOT / "scripts/build-deb", "--output", directory)
    assert not re.search("^[EW]: ", said, re.MULTILINE)
    (deb,) = directory.glob("*.deb")
    assert deb.name == f"moh-ebpf_{__version__}_all.deb"
    output("dpkg-deb", "--raw-extract", deb, directory / "tree")
    return directory / "tree"


def test_has_all_files_of_the_package(package: Path) -> None:
    def below(directory: Path) -> set[str]:
        found = (each for each in directory.rglob("*") if each.is_file())
        names = {str(each.relative_to(directory)) for each in found}
        return {each for each in names if "__pycache__" not in each and "/." not in f"/{each}"}

    sources = below(ROOT / "moh_ebpf") | {f"bpf/{each}" for each in below(ROOT / "bpf")}
    assert below(package / MODULES) == sources
    for name in ("moh-ebpf.service", "moh-ebpf-attach.service"):
        (unit,) = package.rglob(name)
        assert unit.read_text() == (ROOT / "scripts/systemd" / name).read_text()
    for name in ("README.md", "docs/operations.md", "copyright", "changelog.gz"):
        assert (package / "usr/share/doc/moh-ebpf" / name).exists()


def test_links_lead_to_files_of_the_package(package: Path) -> None:
    documents = list((package / "usr/share/doc/moh-ebpf").rglob("*.md"))
    assert len(documents) > 10
    assert {str(each): broken for each in documents if (broken := broken_links(each))} == {}


def test_control(package: Path) -> None:
    conffiles = (package / "DEBIAN/conffiles").read_text().split()
    assert sorted(conffiles) == ["/etc/default/moh-ebpf", "/etc/moh-ebpf.toml"]
    # An upgrade must not stop what runs, and only a removal does (see postinst and prerm).
    assert "invoke stop" not in (package / "DEBIAN/postinst").read_text()
    assert not (package / "DEBIAN/preinst").exists()


def test_runs_where_it_was_unpacked(package: Path, fw: Firewall) -> None:
    """With the C sources inside the package."""
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str((package / MODULES).parent)},
        "cwd": package,
    }
    ask = "from moh_ebpf.attach.compiler import sources; print(sources())"
    said = output(sys.executable, "-c", ask, **options)
    assert Path(said.strip()) == package / MODULES / "bpf"
    moh = [sys.executable, "-m", "moh_ebpf"]
    fw.namespace.run(*moh, "attach", "--dry-run", "--wan", "wan", "--ucm", UCM, **options)


@pytest.mark.parametrize("page", ["man8/moh-ebpf.8", "man5/moh-ebpf.toml.5"])
def test_manual_page_is_clean(package: Path, page: str, tmp_path: Path) -> None:
    text = output("gzip", "--decompress", "--stdout", package / f"usr/share/man/{page}.gz")
    (tmp_path / "page").write_text(text)
    assert output("mandoc", "-T", "lint", "-W", "style", tmp_path / "page") == ""


def test_manual_page_has_switches_as_toml_does(package: Path) -> None:
    page = package / "usr/share/man/man5/moh-ebpf.toml.5.gz"
    text = output("gzip", "--decompress", "--stdout", page)
    assert text.count("(true or false)") == 4
    assert "Default: yes" not in text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("moh-ebpf att", ["attach"]),
        ("moh-ebpf attach --rtp", ["--rtp-ports"]),
        ("moh-ebpf attach --no-q", ["--no-quality"]),
        ("moh-ebpf attach --wan l", ["lo"]),
        ("moh-ebpf attach --wan lo l", ["lo"]),
        ("moh-ebpf lab voi", ["voicemail"]),
        ("moh-ebpf lab exec fire", ["firewall"]),
    ],
)
def test_bash_and_fish_complete(package: Path, line: str, wanted: list[str]) -> None:
    share = package / "usr/share"
    bash = (
        'source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _moh_ebpf; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    file = share / "bash-completion/completions/moh-ebpf"
    assert output("unshare", "--net", "bash", "-c", bash, "bash", file, line).split() == wanted
    if line.endswith("lo l"):
        return  # fish completes one word an option
    file = share / "fish/vendor_completions.d/moh-ebpf.fish"
    fish = f"source {file}; complete --do-complete '{line}'"
    said = output("unshare", "--net", "fish", "--no-config", "-c", fish)
    assert [each.split("\t")[0] for each in said.splitlines()] == wanted


def test_zsh_reads_its_completion(package: Path) -> None:
    file = package / "usr/share/zsh/vendor-completions/_moh-ebpf"
    assert output("zsh", "-n", file) == ""
