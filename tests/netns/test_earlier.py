"""What runs before our programs, whenever it comes: attach, doctor and status name it, run logs
it."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from moh_ebpf.kernel.tc import Hook
from tests.support import kernels
from tests.support.firewall import UCM, Firewall
from tests.support.foreign import counter, tcx_program, xdp_program
from tests.support.service import CONFIG, service

Made = Callable[[Firewall], AbstractContextManager[Any]]


@contextmanager
def lower_filter(fw: Firewall) -> Iterator[None]:
    with counter(fw, "wan", Hook.EGRESS, 100):
        try:
            yield
        finally:
            fw.namespace.run(*["tc", "filter", "del", "dev", "wan", "egress", "pref", "100"])


# What is made, as JSON and as a sentence has it.
EARLIER: dict[str, tuple[Made, list[Any], str]] = {
    "filter": (
        lower_filter,
        ["wan", "egress", "enforce", "filter", "somebody-else", 100],
        "wan egress: the bpf filter somebody-else at priority 100",
    ),
    "tcx": (
        lambda fw: tcx_program(fw, "lan", Hook.INGRESS),
        ["lan", "ingress", "bypass", "tcx", "count", None],
        "lan ingress: the TCX program count",
    ),
    "xdp": (
        lambda fw: xdp_program(fw, "wan"),
        ["wan", "ingress", "learn", "xdp", "xdp_guard", None],
        "wan ingress: the XDP program xdp_guard",
    ),
    "generic-xdp": (
        lambda fw: xdp_program(fw, "lan", generic=True),
        ["lan", "ingress", "bypass", "xdp", "xdp_guard", None],
        "lan ingress: the XDP program xdp_guard",
    ),
}
FIELDS = ["interface", "hook", "role", "kind", "name", "priority"]


@pytest.fixture(params=EARLIER)
def earlier(request: pytest.FixtureRequest) -> tuple[Made, dict[str, Any], str]:
    if request.param == "tcx":
        kernels.skip_before(6, 6, "TCX")
    made, values, sentence = EARLIER[request.param]
    return made, dict(zip(FIELDS, values, strict=True)), sentence


def shown(fw: Firewall) -> list[dict[str, Any]]:
    return json.loads(fw.moh("status", "--json").stdout)["earlier"]


def test_run_logs_once_what_comes_and_what_goes(
    fw: Firewall, tmp_path: Path, earlier: tuple[Made, dict[str, Any], str]
) -> None:
    made, fields, sentence = earlier
    role = fields["role"]
    with service(fw.namespace, tmp_path, CONFIG) as run:
        run.wait_for_word("READY")
        with made(fw):
            line = run.wait_for_line(sentence)
            assert "warning" in line
            assert f"runs before {role}, which sees only what that lets go on; see: " in line
            assert shown(fw) == [fields]
        assert "warning" not in run.wait_for_line(f"{sentence} no longer runs before {role}")
        assert shown(fw) == []
        run.stop()
        run.wait_for_line("stopped; detached")
        assert sum(sentence in each for each in run.lines) == 2


def test_what_was_there_first_is_logged_once(fw: Firewall, tmp_path: Path) -> None:
    """By attach, and by a service that adopts what another has left."""
    made, _, sentence = EARLIER["filter"]
    with made(fw):
        for number in range(2):
            with service(fw.namespace, tmp_path, CONFIG, "--keep") as run:
                run.wait_for_word("READY")
                run.wait_for_line(sentence)
                # A change that is followed by a look at all of it.
                fw.namespace.run("ip", "addr", "add", f"192.0.2.{7 + number}/32", "dev", "wan")
                run.wait_for_line("addresses have changed")
                run.stop()
                run.wait_for_line("stopped")
                assert sum(sentence in each for each in run.lines) == 1


def test_attach_and_doctor_point_it_out(
    fw: Firewall, earlier: tuple[Made, dict[str, Any], str]
) -> None:
    made, fields, sentence = earlier
    settings = ("--wan", "wan", "--lan", "lan", "--ucm", UCM)
    with made(fw):
        assert sentence in fw.moh("attach", *settings).stderr
        done = fw.moh("doctor", "--json", "--for", "0s", *settings, check=False)
        (found,) = [
            each
            for each in json.loads(done.stdout)["findings"]
            if each["check"] == "other-programs"
        ]
        assert found["level"] == "warning"
        assert sentence in found["found"]
        assert fields["name"] in found["evidence"]
        text = fw.moh("status").stdout
        assert f"BEFORE {fields['role']} on {fields['interface']} {fields['hook']}: " in text
        assert f"{fields['kind']} {fields['name']}" in text
    assert sentence not in fw.moh("attach", *settings).stderr
    assert "BEFORE" not in fw.moh("status").stdout


def test_nothing_is_before_ours_where_nothing_is_attached(fw: Firewall) -> None:
    with lower_filter(fw):
        assert json.loads(fw.moh("status", "--json", check=False).stdout)["earlier"] == []


def test_later_filters_and_other_hooks_are_not_told(fw: Firewall) -> None:
    fw.attach()
    with (
        counter(fw, "wan", Hook.EGRESS, 4001),
        counter(fw, "lan", Hook.EGRESS, 100),
    ):
        assert shown(fw) == []
