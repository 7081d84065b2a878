"""What `discover` proposes, as a config."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moh_ebpf.discover.habits import Habits
    from moh_ebpf.discover.propose import Line, Proposal


def config_text(proposal: "Proposal", when: str) -> str:
    """TOML for `--config`, each setting under its evidence. `when` it was seen, in UTC."""
    parts = [
        f"# Proposed by moh-ebpf discover at {when} UTC, from {proposal.streams:,} streams of RTP "
        f"with the provider in {proposal.seconds:.0f} s.",
        *("\n".join(_setting(each)) for each in proposal.lines),
        *_remarks(proposal),
    ]
    return "\n\n".join(parts) + "\n"


def _setting(line: "Line") -> Iterator[str]:
    yield from (f"# {_sentence(each)}" for each in line.because)
    if line.value is None:
        yield f"# {line.setting} = ?"
        return
    # What JSON makes of text, numbers, truth and lists of them is TOML as well.
    value = f"{line.setting} = {json.dumps(line.value)}"
    yield value if line.is_needed else f"# {value}"


def _remarks(proposal: "Proposal") -> Iterator[str]:
    habits = list(habit_texts(proposal.habits))
    if habits:
        yield "\n".join(["# The provider:", *(f"# - {each}" for each in habits)])
    if proposal.unseen:
        yield "\n".join(["# Not seen:", *(f"# - {each}" for each in proposal.unseen)])
    if proposal.not_counted:
        counts = (f"# - {count:,} {reason}" for reason, count in proposal.not_counted.items())
        yield "\n".join(["# Not counted:", *counts])


def habit_texts(habits: "Habits") -> Iterator[str]:
    """What the provider was seen to do, a line each."""
    began = habits.speak_first + habits.speak_second
    if began:
        yield f"spoke before it was spoken to at {habits.speak_first} of {began} endpoints"
    if habits.holds:
        yield f"sent RTP to the phantom port in {habits.send_on_hold} of {habits.holds} holds"
    if habits.silent_on_hold:
        yield (
            f"fell silent in {habits.silent_on_hold} of them, and sent RTCP in "
            f"{habits.rtcp_on_hold} of these"
        )
    if habits.keep_phantom_port:
        yield f"went on sending to the phantom port after {habits.keep_phantom_port} resumed holds"
    if habits.pause:
        yield f"paused at {habits.pause} endpoints, for {habits.longest_pause:.1f} s at most"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def progress_text(seconds: float, whole: float, streams: int, messages: int) -> str:
    """While it listens."""
    return f"{seconds:3.0f} of {whole:.0f} s: {streams:,} streams of RTP, {messages:,} SIP messages"
