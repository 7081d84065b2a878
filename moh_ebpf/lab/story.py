"""The story that `moh-ebpf lab demo` plays: six acts, each with what its people ought to hear."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from moh_ebpf.errors import MohError
from moh_ebpf.lab.audio import SILENCE, Sound
from moh_ebpf.lab.call import Call, begin
from moh_ebpf.lab.topology import UCM, Host, Lab

ACT_SECONDS = 2.5  # of recording in every scene
INTERFACES = ("lan", "wan")  # the firewall's
ATTACH = ["attach", "--wan", "wan", "--lan", "lan", "--ucm", UCM]


@dataclass(frozen=True)
class Observation:
    """One thing to see or hear after something was done."""

    done: str
    who: str
    expected: str
    found: str

    @property
    def passed(self) -> bool:
        return self.found == self.expected


@dataclass(frozen=True)
class Act:
    """A letter to name it by, and what was found; its title is the first thing done."""

    letter: str
    findings: list[Observation]

    @property
    def title(self) -> str:
        return f"({self.letter}) {self.findings[0].done}"

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    @property
    def summary(self) -> str:
        """One line for those who watch."""
        found = ", ".join(f"{finding.who}: {finding.found}" for finding in self.findings)
        return f"{self.title:<28}{found:<49}{_verdict(self.passed)}"

    def to_json(self) -> dict[str, object]:
        findings = [asdict(finding) | {"passed": finding.passed} for finding in self.findings]
        return {"act": self.letter, "passed": self.passed, "findings": findings}


def play(lab: Lab) -> Iterator[Act]:
    """The acts, as they end. The lab is built; the firewall is without us, before and after."""
    call = begin(lab)
    yield Act("a", [*_talking(call, "without moh-ebpf"), _dead_air(call)])

    untouched = _traffic_control(lab)
    _moh_ebpf(lab, ATTACH)
    yield Act("b", [_music(call, "attach, still on hold")])

    call.talk()
    yield Act("c", _talking(call, "off hold"))

    port = call.hold()
    yield Act("d", [_music(call, f"hold again, port {port}")])

    call.voicemail()
    yield Act("e", _both(call, "hold to voicemail", Sound.GREETING, "voicemail"))

    _moh_ebpf(lab, ["detach"])
    yield Act("f", [_cleared(untouched, _traffic_control(lab)), _dead_air(call)])


def table(acts: list[Act]) -> Table:
    """The acts for a terminal of 80 columns: a row for each finding."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("act", "who", "should hear", "hears", "verdict"):
        result.add_column(header)
    for act in acts:
        shown = ""
        for finding in act.findings:
            done = act.title if not shown else f"    {finding.done}"
            result.add_row(
                "" if finding.done == shown else done,
                finding.who,
                finding.expected,
                finding.found,
                _verdict(finding.passed),
            )
            shown = finding.done
    return result


def _talking(call: Call, done: str) -> list[Observation]:
    return _both(call, done, Sound.AGENT, "agent")


def _both(call: Call, done: str, sound: Sound, ucm: str) -> list[Observation]:
    """Two-way audio: what the caller hears, and who listens at UCM."""
    heard = call.listen(ACT_SECONDS)
    return [
        Observation(done, "caller", sound.label, heard.caller),
        Observation(done, ucm, Sound.CALLER.label, heard.ucm),
    ]


def _music(call: Call, done: str) -> Observation:
    return Observation(done, "caller", Sound.MUSIC.label, call.listen(ACT_SECONDS).caller)


def _dead_air(call: Call) -> Observation:
    """Hold as it is without us, music from a port that the provider knows nothing of."""
    done = f"hold, port {call.hold()}"
    return Observation(done, "caller", SILENCE, call.listen(ACT_SECONDS).caller)


def _cleared(before: str, after: str) -> Observation:
    """Nothing of ours is left on the firewall's interfaces."""
    left = [line.strip() for line in after.splitlines() if line not in before.splitlines()]
    found = "as before" if after == before else f"not as before: {'; '.join(left)}"
    return Observation("detach", "lan, wan", "as before", found)


def _verdict(passed: bool) -> str:
    return "[green]ok[/]" if passed else "[bold red]FAILED[/]"


def _moh_ebpf(lab: Lab, arguments: list[str]) -> None:
    """The real command, as an administrator of the firewall gives it."""
    try:
        lab.run(Host.FIREWALL, [sys.executable, "-m", "moh_ebpf", *arguments])
    except MohError as error:
        raise MohError(f"moh-ebpf {arguments[0]} fails in the lab's firewall. {error}") from None


def _traffic_control(lab: Lab) -> str:
    """All qdiscs and filters of the firewall's interfaces, as tc(8) shows them."""
    shows = [
        show
        for name in INTERFACES
        for show in (
            ["qdisc", "show", "dev", name],
            ["filter", "show", "dev", name, "ingress"],
            ["filter", "show", "dev", name, "egress"],
        )
    ]
    return "".join(lab.run(Host.FIREWALL, ["tc", *show]) for show in shows)
