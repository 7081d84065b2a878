"""The loop: on a real pseudo-terminal and into real pipes, with looks made by hand."""

import os
import signal
import subprocess
import sys
import termios
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from moh_ebpf.calls.peers import Snapshot
from moh_ebpf.errors import ExitStatus, NotAttachedError
from moh_ebpf.show.status import Description
from moh_ebpf.show.watch.live import each_frame, ticks
from tests.support.samples import DESCRIPTION, peer, snapshot
from tests.support.terminal import (
    ENTER,
    LEAVE,
    PATIENCE,
    ROOT,
    SHOW_CURSOR,
    Terminal,
    environment,
    terminal,
)

# Looks at 50 packets/s on hold and a call in silence; `learned_moh` counts the looks. With a life,
# what it looks at is detached after so many.
WATCHED = """
import itertools, sys, time
from rich.console import Console
from moh_ebpf.errors import MohError, NotAttachedError
from moh_ebpf.layout import State
from moh_ebpf.show.watch.live import watch
from tests.support.samples import DESCRIPTION, peer, snapshot

interval, life = map(float, sys.argv[1:])
looks = itertools.count(1)

def look():
    number = next(looks)
    if number > life:
        raise NotAttachedError("not attached")
    now = time.monotonic()
    sent = int(50 * now)
    known = [peer(in_packets=sent), peer(2, State.TWO)]
    return DESCRIPTION, snapshot(*known, time=now, rewritten=sent, learned_moh=number)

try:
    watch(interval, Console(), look)
except MohError as error:
    print(error, file=sys.stderr)
    sys.exit(error.status)
"""


def command(interval: float, life: float = float("inf")) -> list[str]:
    return [sys.executable, "-c", WATCHED, str(interval), str(life)]


def screen_is_left_clean(written: str) -> bool:
    return written.count(ENTER) == written.count(LEAVE) > 0 and written.rindex(
        SHOW_CURSOR
    ) > written.rindex("ENDPOINT")


def test_ctrl_c_leaves_the_screen_clean_and_is_no_failure() -> None:
    with terminal(command(0.2)) as term:
        term.read_until("+50/s")
        term.type("\x03")
        assert term.end() == ExitStatus.OK
        assert screen_is_left_clean(term.written)


def test_sigterm_leaves_the_screen_clean_and_ends_it() -> None:
    with terminal(command(0.2)) as term:
        term.read_until("203.0.113.1:20001")
        term.process.terminate()
        assert term.end() == -signal.SIGTERM
        assert screen_is_left_clean(term.written)


def test_ctrl_z_gives_the_terminal_back_until_it_is_continued() -> None:
    # A stop from the terminal needs a parent in the session, as a shell is.
    shell = ["bash", "--norc", "-i"]
    with terminal(shell) as term:
        term.type("PS1='$ '; exec 2>&1; " + " ".join(map(_quoted, command(0.2))) + "\n")
        term.read_until(ENTER)
        term.read_until("203.0.113.1:20001")
        term.type("\x1a")
        assert SHOW_CURSOR in term.read_until("Stopped")
        assert term.written.count(LEAVE) == 1
        term.type("fg\n")
        assert ENTER in term.read_until("203.0.113.1:20001")
        term.type("\x03")
        term.read_until(LEAVE)
        term.type("echo status=$?; exit\n")
        assert "status=0" in term.read_until("status=0")


def _quoted(word: str) -> str:
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def test_what_is_detached_is_said_after_the_screen_is_left() -> None:
    with terminal(command(0.1, life=3)) as term:
        assert term.end() == ExitStatus.NOT_ATTACHED
        assert screen_is_left_clean(term.written)
        assert "detached meanwhile" in term.written[term.written.rindex(LEAVE) :]


def test_what_is_not_attached_is_said_without_a_screen() -> None:
    with terminal(command(0.1, life=0)) as term:
        assert term.end() == ExitStatus.NOT_ATTACHED
        assert ENTER not in term.written
        assert "not attached" in term.written


def test_a_new_size_is_drawn_at_once() -> None:
    with terminal(command(interval=600), 120, 40) as term:
        assert "PUBLIC" in term.read_until("learned_moh")
        term.resize(60, 12)
        smaller = term.read_until("learned_moh")
        assert "203.0.113.1:20001" in smaller
        assert "PUBLIC" not in smaller


def test_a_terminal_that_cannot_be_drawn_on_gets_lines() -> None:
    argv = ["env", "TERM=dumb", *command(0.1)]
    with terminal(argv) as term:
        term.read_until("missing=0")
        assert "\x1b" not in term.written


def test_keys_change_what_is_seen_and_look_no_more_often() -> None:
    with terminal(command(interval=600), 100, 30) as term:
        term.see("203.0.113.1:20001", "203.0.113.2:20002", "by interest")
        term.type("t")
        term.see("only TWO: 1 of 2", without="203.0.113.1:20001")
        term.type("a/203.0.113.1:")
        term.see("/203.0.113.1:", without="203.0.113.2:20002")
        term.type("\n")
        term.see("only 203.0.113.1:: 1 of 2", without="203.0.113.2:20002")
        term.type("\x1b")
        term.see("203.0.113.2:20002", "by interest", without="only")
        term.type("ss")
        term.see("by STATE, smallest first")
        term.type("r")
        lines = term.see("by STATE, largest first")
        assert [line.split()[1] for line in lines if line.startswith("203.")] == ["TWO", "MOH"]
        term.type("?")
        term.see("q Ctrl-C quit")
        term.type("?i\x1b[B\r")
        term.see("203.0.113.1:20001  on hold", "INBOUND", without="ENDPOINT")
        term.type("\x1b")
        lines = term.see("203.0.113.1:20001", "ENDPOINT")
        (looks,) = [line for line in lines if "learned_moh" in line]
        assert looks.split()[looks.split().index("learned_moh") + 1] == "1"
        term.type("q")
        assert term.end() == ExitStatus.OK
        assert screen_is_left_clean(term.written)


def counted(lines: list[str]) -> int:
    """The number of looks."""
    words = " ".join(lines).split()
    return int(words[words.index("learned_moh") + 1])


def test_a_pause_freezes_the_view_until_it_goes_on() -> None:
    with terminal(command(0.1), 100, 30) as term:
        term.see("+50/s")
        term.type("p")
        frozen = term.see("PAUSED")
        for key in "mams":  # Drawn anew each time, for what would be several looks.
            term.type(key)
            time.sleep(0.1)
        assert counted(term.see("by ENDPOINT", "PAUSED")) == counted(frozen)
        term.type(" ")
        term.see_that(lambda lines: counted(lines) > counted(frozen) + 1)
        assert "PAUSED" not in "".join(term.view())


def test_the_terminal_is_as_it_was_after_any_end() -> None:
    ends: list[tuple[str, int, float]] = [
        ("q", ExitStatus.OK, 600),
        ("\x03", ExitStatus.OK, 600),
        ("TERM", -signal.SIGTERM, 600),
        ("HUP", -signal.SIGHUP, 600),
        ("", ExitStatus.NOT_ATTACHED, 0.1),
    ]
    for how, status, interval in ends:
        with terminal(command(interval, life=3)) as term:
            before = term.modes_before
            assert before[3] & termios.ECHO
            if how:
                term.see("203.0.113.1:20001")
                during = term.modes()
                assert not during[3] & (termios.ECHO | termios.ICANON), how
                assert during[3] & termios.ISIG
            if len(how) > 1:
                term.process.send_signal(signal.Signals[f"SIG{how}"])
            else:
                term.type(how)
            assert term.end() == status, how
            assert screen_is_left_clean(term.written), how
            assert term.modes() == before, how


def test_the_terminal_is_as_it_was_when_drawing_fails() -> None:
    broken = WATCHED.replace("def look():", "DESCRIPTION['programs'] = 7\n\ndef look():")
    with terminal([sys.executable, "-c", broken, "0.1", "inf"]) as term:
        before = term.modes_before
        assert term.end() == ExitStatus.FAILURE
        assert "TypeError" in term.written[term.written.rindex(LEAVE) :]
        assert term.modes() == before


def test_ctrl_z_leaves_the_terminal_sane_and_fg_brings_keys_back() -> None:
    # Without readline, which would change the terminal's modes itself.
    with terminal(["bash", "--norc", "--noediting", "-i"]) as term:
        term.type("PS1='$ '; exec 2>&1; echo ready\n")
        term.read_until("ready\r\n")
        before = term.modes()
        term.type(" ".join(map(_quoted, command(0.2))) + "\n")
        term.see("203.0.113.1:20001", "q quit")
        assert term.modes() != before
        term.type("\x1a")
        term.read_until("Stopped")
        assert term.modes() == before
        term.type("fg\n")
        term.read_until(ENTER)
        term.type("t")
        term.see("only TWO", without="203.0.113.1:20001")
        term.type("q")
        term.read_until(LEAVE)
        term.type("echo status=$?\n")
        term.read_until("status=0")
        assert term.modes() == before
        term.type("exit\n")
        assert term.end() == 0


def test_a_job_in_the_background_waits_for_the_terminal_and_can_be_ended() -> None:
    with terminal(["bash", "--norc", "--noediting", "-i"]) as term:
        term.type("PS1='$ '; exec 2>&1; echo ready\n")
        term.read_until("ready\r\n")
        before = term.modes()
        term.type(" ".join(map(_quoted, command(0.2))) + " &\n")
        job_is(term, "Stopped")
        assert term.modes() == before
        assert ENTER not in term.written
        term.type("fg\n")
        term.see("203.0.113.1:20001", "q quit")
        term.type("t")
        term.see("only TWO", without="203.0.113.1:20001")
        term.type("\x1a")
        term.read_until("Stopped")
        term.type("bg\n")
        job_is(term, "Stopped")
        assert term.modes() == before
        term.type("fg\n")
        term.read_until(ENTER)
        term.type("a")
        term.see("by interest", "203.0.113.1:20001", without="only TWO")
        term.type("\x1a")
        term.read_until("Stopped")
        (watching,) = children(term.process.pid)
        term.type("kill %1\n")
        has_ended(watching)
        assert term.modes() == before


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pid: int) -> None:
    """Wait until it has; asked of the kernel, for a shell may be late to see what became of it."""
    deadline = time.monotonic() + PATIENCE
    status = Path(f"/proc/{pid}/status")
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, status.read_text()
        time.sleep(0.02)


def job_is(term: Terminal, state: str) -> None:
    """Wait until the shell's only job is in this state."""
    deadline = time.monotonic() + PATIENCE
    asked, seen = 0, ""
    while state not in seen:
        assert time.monotonic() < deadline, seen
        asked += 1
        term.type(f"jobs; echo asked-{asked}-\n")
        seen += term.read_until(f"\nasked-{asked}-")
        time.sleep(0.05)


def test_after_a_stop_that_cannot_be_caught_the_keys_come_back() -> None:
    with terminal(command(600)) as term:
        term.see("203.0.113.1:20001", "q quit")
        sane = term.modes()
        during = term.modes()
        term.process.send_signal(signal.SIGSTOP)
        os.waitpid(term.process.pid, os.WUNTRACED)
        sane[3] |= termios.ECHO | termios.ICANON
        term.set_modes(sane)  # as a shell does
        term.process.send_signal(signal.SIGCONT)
        term.type("\n")
        deadline = time.monotonic() + PATIENCE
        while term.modes() != during:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        term.type("t")
        term.see("only TWO")


def test_without_a_terminal_for_keys_it_lives_without_them() -> None:
    argv = ["bash", "-c", '"$@" < /dev/null', "-", *command(0.1)]
    with terminal(argv) as term:
        before = term.modes_before
        term.see("+50/s", without="q quit")
        assert term.modes() == before
        term.type("\x03")
        term.end()
        assert screen_is_left_clean(term.written)


def test_a_terminal_that_hangs_up_ends_it() -> None:
    with terminal(command(0.1)) as term:
        term.see("203.0.113.1:20001")
        term.hang_up()
        assert term.process.wait(PATIENCE) == -signal.SIGHUP


def piped(interval: float, life: float = float("inf")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(interval, life),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def test_a_pipe_gets_a_line_each_interval() -> None:
    for _ in range(10):  # a busy machine holds up some of them
        with piped(0.2, life=5) as process:
            out, err = process.communicate(timeout=PATIENCE)
        times = [datetime.fromisoformat(line.split()[0]).timestamp() for line in out.splitlines()]
        seconds = times[-1] - times[0]
        if seconds == pytest.approx(0.6, abs=0.2):
            break
    lines = [dict(word.split("=") for word in line.split()[1:]) for line in out.splitlines()]
    assert len(lines) == 4
    assert all(list(line) == list(lines[0]) for line in lines)
    assert sum(float(line["in"]) for line in lines) / 4 == pytest.approx(50, rel=0.1)
    assert seconds == pytest.approx(0.6, abs=0.2)
    assert sum(int(line["rewritten"]) for line in lines[1:]) == pytest.approx(50 * seconds, abs=3)
    assert process.returncode == ExitStatus.NOT_ATTACHED
    assert "detached meanwhile" in err


def test_a_line_is_there_when_its_interval_ends() -> None:
    """And not when there are so many that they fill a buffer, which would take half a minute."""
    with piped(1.0) as process:
        assert process.stdout
        at = datetime.fromisoformat(process.stdout.readline().split()[0])
        assert datetime.now(at.tzinfo) - at < timedelta(seconds=10)
        process.kill()


def test_a_reader_who_has_had_enough_ends_it_quietly() -> None:
    with piped(0.1) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == ExitStatus.OK
        assert process.stderr
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_lines_without_a_word() -> None:
    with piped(0.1) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (ExitStatus.OK, "")


def test_being_late_once_does_not_shift_what_follows() -> None:
    due = ticks(0.05)
    first = next(due)
    time.sleep(0.12)
    asked = time.monotonic()
    second = next(due)
    told = time.monotonic()
    passed = (second - first) / 0.05
    assert passed == pytest.approx(round(passed))
    assert asked < second < told + 0.1


def test_each_frame_has_the_rates_since_the_one_before() -> None:
    packets = iter([1000, 1050, 1060])

    def look() -> tuple[Description, Snapshot]:
        count = next(packets)
        return DESCRIPTION, snapshot(peer(1, in_packets=count), time=count / 100)

    frames = each_frame(look)
    assert next(frames).rates.peers == {}
    assert [next(frames).rates.peers["203.0.113.1:20001"].inbound for _ in range(2)] == [
        pytest.approx(100),
        pytest.approx(100),
    ]


def test_the_first_look_says_itself_that_nothing_is_attached() -> None:
    def look() -> tuple[Description, Snapshot]:
        raise NotAttachedError("not attached here")

    with pytest.raises(NotAttachedError, match="not attached here"):
        next(each_frame(look))
