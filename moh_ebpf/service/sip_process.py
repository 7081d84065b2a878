"""The process that reads SIP (sip_reader.py), as `run` sees it: started, told of each attach, and
started again when it has ended."""

import json
import logging
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Collection, Container
from contextlib import suppress
from pathlib import Path
from typing import IO

from moh_ebpf.service.sums import Sums
from moh_ebpf.settings import Settings

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0
_CLOSE_SECONDS = 2.0
# It is asked so often whether it lives, and so long it may take to say so: it may hang, or loop.
_ASK_SECONDS, _ANSWER_SECONDS = 60.0, 30.0


class SipProcess:
    """`due`: when it is to be started again, or asked, by time.monotonic(). `is_asked`: whether it
    lives, which it has not answered. Its counts go to the sums."""

    def __init__(self, log: logging.Logger, selector: selectors.BaseSelector, sums: Sums) -> None:
        self._log, self._selector, self._sums = log, selector, sums
        self._process: subprocess.Popen[bytes] | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._failed = ""
        self._is_wanted = self.is_asked = False
        self._started = 0.0
        self._counts: dict[str, int] = {}  # what it has told last
        self.due = math.inf

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def expect(self, settings: Settings) -> None:
        """This is about to be attached, which takes seconds: SIP that passes meanwhile is kept."""
        if settings.signalling and not self._process:
            self._start(settings.sip_ports)

    def attached(self, *, reads: bool) -> None:
        """Something was attached, whose settings say whether SIP is read."""
        self._is_wanted = reads
        if not reads:
            self.close()
        elif self._process:
            self._ask(b"\n")
        else:
            self._start()

    def act(self, ready: Container[object] = ()) -> None:
        """Take what it has said, if it is among those that are ready; start it again, if due."""
        if self._process and self._process.stdout in ready:
            self._read(self._process)
        if time.monotonic() < self.due:
            return
        if not self._process:
            self._start()
        elif not self.is_asked:
            self._ask(b"?")
        else:
            self._process.kill()
            self.close()
            self._retry("its process does not answer")

    def close(self) -> None:
        """End it."""
        process, self._process, self.due = self._process, None, math.inf
        self._counts = {}
        self._sums.end_sip(is_wanted=self._is_wanted)
        if process is None:
            return
        out, given = _pipes(process)
        self._selector.unregister(out)
        try:
            with suppress(OSError):
                given.close()
            process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            out.close()

    def _start(self, ports: Collection[int] = ()) -> None:
        """With the ports of what will be attached, or to read what is attached now."""
        self._started = time.monotonic()
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "moh_ebpf.service.sip_reader", *map(str, ports)],
                cwd=Path(__file__).parents[2],  # where this very package is found
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,  # what it does not take is not kept for it
                start_new_session=True,  # a Ctrl-C is for us to answer
            )
        except OSError as error:
            self._retry(str(error))
            return
        self._selector.register(_pipes(process)[0], selectors.EVENT_READ)
        if not ports:
            self._ask(b"\n")

    def _ask(self, word: bytes) -> None:
        """Tell it a word that it answers."""
        assert self._process
        self.is_asked, self.due = True, time.monotonic() + _ANSWER_SECONDS
        with suppress(OSError):  # it has ended: what it said last is to be read
            os.write(_pipes(self._process)[1].fileno(), word)

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        out, _ = _pipes(process)
        lines = os.read(out.fileno(), 1 << 16)
        if not lines:
            self.close()
            self._retry(self._failed or f"its process ended with status {process.returncode}")
            return
        last = lines.decode(errors="replace").strip().splitlines()[-1:]
        for line in last:
            try:
                counts = dict(json.loads(line))
            except (ValueError, TypeError):
                self._failed = line
                continue
            if not self._counts:
                self._log.info("SIP is read: each call is known by its signalling")
            self._sums.add_sip(counts, self._counts)
            self._counts, self._failed = counts, ""
            self.is_asked, self.due = False, time.monotonic() + _ASK_SECONDS

    def _retry(self, error: str) -> None:
        if time.monotonic() - self._started > _LONGEST_PAUSE_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS  # it has lived for a while
        self.due = time.monotonic() + self._pause
        self._log.warning(
            "SIP is not read: %s (trying again in %.0f s; calls are known by RTP and RTCP)",
            *(error, self._pause),
        )
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    """Its stdout, and its stdin."""
    assert process.stdout
    assert process.stdin
    return process.stdout, process.stdin
