"""Bad input and broken setups: refused before anything changes, in one clear message."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moh_ebpf.attach.compiler import sources
from tests.support.firewall import UCM, Firewall

GOOD = {"--wan": "wan", "--lan": "lan", "--ucm": UCM}


def attach(fw: Firewall, **changes: str) -> subprocess.CompletedProcess[str]:
    options = GOOD | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    words = [word for pair in options.items() for word in pair]
    return fw.moh("attach", *words, check=False)


def state(fw: Firewall) -> str:
    return "".join(fw.namespace.tc_state(name) for name in ("lan", "wan"))


def assert_refused(
    fw: Firewall, done: subprocess.CompletedProcess[str], status: int, said: str
) -> None:
    assert done.returncode == status, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert json.loads(fw.moh("status", "--json", check=False).stdout)["attached"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wan": "nosuch0"}, "--wan nosuch0: there is no such interface here"),
        ({"lan": "nosuch0"}, "--lan nosuch0: there is no such interface here"),
        ({"wan": "lo"}, "--wan lo: that is the loopback interface"),
        ({"lan": "wan"}, "wan is given as --wan and as --lan"),
        ({"ucm": "10.10.10"}, "--ucm: '10.10.10' is no IPv4 address"),
        ({"public": "nobody"}, "--public: 'nobody' is no IPv4 address"),
        ({"provider": "203.0.113.1/24"}, "host bits set"),
        ({"port": "70000"}, "--port: 70000 is out of range"),
        ({"port": "20000"}, "must lie outside --rtp-ports"),
        ({"rtp_ports": "9-1"}, "ends before it begins"),
        ({"timeout": "soon"}, "no duration"),
        ({"max_peers": "0"}, "out of range"),
        ({"config": "nosuch.toml"}, "nosuch.toml: No such file"),
    ],
)
def test_wrong_values(fw: Firewall, changes: dict[str, str], said: str) -> None:
    before = state(fw)
    assert_refused(fw, attach(fw, **changes), 2, said)
    assert state(fw) == before


def test_wrong_config(fw: Firewall, tmp_path: Path) -> None:
    config = tmp_path / "moh.toml"
    for text, said in (("vlan = 1", "no setting 'vlan'"), ("wan = [", "not valid TOML")):
        config.write_text(text)
        assert_refused(fw, attach(fw, config=str(config)), 2, said)


@pytest.mark.parametrize(
    "words",
    [
        ["attach", "--nosuch"],
        ["nosuch"],
        ["attach", "stray"],
        ["watch", "--interval", "soon"],
        ["watch", "--interval", "0s"],
    ],
)
def test_wrong_words(fw: Firewall, words: list[str]) -> None:
    done = fw.moh(*words, check=False)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_given(fw: Firewall) -> None:
    assert_refused(fw, fw.moh("attach", check=False), 2, "--wan is missing")


def test_interface_down(fw: Firewall) -> None:
    fw.namespace.run("ip", "link", "set", "wan", "down")
    assert_refused(fw, attach(fw), 2, "ip link set wan up")


def test_wan_without_an_address(fw: Firewall) -> None:
    fw.namespace.run("ip", "addr", "flush", "dev", "wan")
    assert_refused(fw, attach(fw), 2, "--public")
    assert attach(fw, public="198.51.100.2").returncode == 0
    fw.moh("detach")


def test_ingress_qdisc_of_somebody_on_the_wan(fw: Firewall) -> None:
    fw.namespace.run("tc", "qdisc", "add", "dev", "wan", "ingress")
    before = state(fw)
    assert_refused(fw, attach(fw), 1, "ingress qdisc")
    assert state(fw) == before


def test_ingress_qdisc_of_somebody_on_the_lan_will_do(fw: Firewall) -> None:
    fw.namespace.run("tc", "qdisc", "add", "dev", "lan", "ingress")
    before = state(fw)
    assert attach(fw).returncode == 0
    fw.moh("detach")
    assert state(fw) == before


@pytest.mark.parametrize(
    ("source", "said"),
    [("raise ImportError('no BCC here')", "apt install python3-bpfcc"), ("", "PyPI's bcc")],
)
def test_bcc_missing_or_another(fw: Firewall, tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "bcc.py").write_text(source)
    words = [word for pair in GOOD.items() for word in pair]
    done = fw.namespace.run(
        "env", f"PYTHONPATH={tmp_path}", sys.executable, "-m", "moh_ebpf", "attach", *words,
        check=False,
    )  # fmt: skip
    assert_refused(fw, done, 1, said)


def test_headers_missing(fw: Firewall) -> None:
    words = " ".join(word for pair in GOOD.items() for word in pair)
    done = fw.namespace.run(
        "unshare", "--mount", "sh", "-c",
        f"mount -t tmpfs none /usr/include && exec {sys.executable} -m moh_ebpf attach {words}",
        check=False,
    )  # fmt: skip
    assert_refused(fw, done, 1, "apt install linux-libc-dev")


def test_what_the_compiler_says_is_shown(fw: Firewall, tmp_path: Path) -> None:
    """A broken header, a broken part: the compiler's own lines with file and line, on stderr."""
    words = " ".join(word for pair in GOOD.items() for word in pair)
    for file in (Path("/usr/include/linux/udp.h"), sources() / "learn.c", sources() / "moh.c"):
        text = file.read_text()
        broken = tmp_path / file.name
        broken.write_text(f"{text}#error broken on purpose\n")
        done = fw.namespace.run(
            "unshare", "--mount", "sh", "-c",
            f"mount --bind {broken} {file} && exec {sys.executable} -m moh_ebpf attach {words}",
            check=False,
        )  # fmt: skip
        assert_refused(fw, done, 1, "BCC could not compile the programs")
        line = text.count("\n") + 1
        assert f"{file.name}:{line}:2: error: broken on purpose" in done.stderr


def test_readers_say_that_nothing_is_attached(fw: Firewall) -> None:
    for verb in ("status", "peers", "watch"):
        done = fw.moh(verb, check=False)
        assert done.returncode == 3
        assert "not attached in this network namespace" in done.stderr
    assert fw.moh("peers", "--json", check=False).returncode == 3


def test_help_needs_neither_root_nor_bcc() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "moh_ebpf", "attach", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--rtp-ports" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not {"bcc", "pyroute2", "gi"} & loaded


def test_more_addresses_than_there_can_be(fw: Firewall) -> None:
    added = "\n".join(f"addr add 192.0.{n // 250}.{1 + n % 250}/32 dev wan" for n in range(300))
    fw.namespace.run("ip", "-batch", "-", input=added)
    assert_refused(fw, attach(fw), 2, "--public")


def test_capabilities_missing(fw: Firewall) -> None:
    words = [word for pair in GOOD.items() for word in pair]
    done = fw.namespace.run(
        "setpriv", "--bounding-set", "-all", "--inh-caps", "-all",
        sys.executable, "-m", "moh_ebpf", "attach", *words, check=False,
    )  # fmt: skip
    assert_refused(fw, done, 1, "CAP_BPF")


def test_capabilities_missing_to_listen(fw: Firewall) -> None:
    done = fw.namespace.run(
        "setpriv", "--bounding-set", "-all", "--inh-caps", "-all",
        sys.executable, "-m", "moh_ebpf", "discover", "--for", "1s", check=False,
    )  # fmt: skip
    assert_refused(fw, done, 1, "CAP_BPF")


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&- <&-"])
def test_closed_streams(fw: Firewall, redirection: str) -> None:
    words = " ".join(word for pair in GOOD.items() for word in pair)
    shell = f"exec {sys.executable} -m moh_ebpf attach {words} {redirection}"
    assert fw.namespace.run("sh", "-c", shell, check=False).returncode == 0
    assert fw.moh("detach").stdout.count("detached") == 3


def test_a_report_that_cannot_be_written(fw: Firewall) -> None:
    words = " ".join(word for pair in GOOD.items() for word in pair)
    # Unbuffered, nothing would be left that cannot be written at the end, either.
    shell = f"unset PYTHONUNBUFFERED; exec {sys.executable} -m moh_ebpf attach {words} > /dev/full"
    done = fw.namespace.run("sh", "-c", shell, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "moh-ebpf: attach is done, but its report cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("words", ["status", "peers", "metrics", "--version", "attach --help"])
def test_an_output_that_cannot_be_written(fw: Firewall, words: str) -> None:
    fw.attach()
    shell = f"unset PYTHONUNBUFFERED; exec {sys.executable} -m moh_ebpf {words} > /dev/full"
    done = fw.namespace.run("sh", "-c", shell, check=False)
    said = "moh-ebpf: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


# Ctrl-C comes when a module is about to be imported, or when the command line is made.
INTERRUPTED = """
import os, signal, sys
from moh_ebpf.__main__ import main

moment = sys.argv[-1]

class Interrupts:
    def find_spec(self, name, *_):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
if moment == "get_command":
    import typer.main
    typer.main.get_command = lambda _: os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["moh-ebpf", "status"]
main()
"""


@pytest.mark.parametrize(
    ("moment", "status"),
    [("typer", -2), ("moh_ebpf.cli", -2), ("get_command", 130), ("moh_ebpf.registry.walk", 130)],
)
def test_ctrl_c_while_it_starts(moment: str, status: int) -> None:
    """The shell says 130 of both."""
    command = [sys.executable, "-c", INTERRUPTED, moment]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_ascii_terminal() -> None:
    for verb in ("attach", "watch"):
        subprocess.run(
            ["env", "PYTHONIOENCODING=ascii", sys.executable, "-m", "moh_ebpf", verb, "--help"],
            capture_output=True, check=True,
        )  # fmt: skip
