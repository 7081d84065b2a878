"""Providers that latch onto the first source that they hear, and send to where they hear it from.

None is left silent; no packet of music comes from another port than 4000, none of a voice from it.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.support.firewall import PUBLIC, UCM
from tests.support.hosts import Hosts, hosts
from tests.support.latching import HEARD, Provider, Rtpengine, Stream, Ucm
from tests.support.service import service
from tests.support.telephony import Capture
from tests.support.waiting import until

PHANTOM = (PUBLIC, 4000)
CONFIG = f'wan = ["wan"]\nlan = ["lan"]\nucm = ["{UCM}"]\n'

# Who is behind the provider's address, and what moh-ebpf is told besides.
FLIP = "flip_hold = true\n"
CALLS = [("own", ""), ("own", FLIP), ("immediate", ""), ("delayed", FLIP), ("heuristic", "")]


def provider_of(kind: str, made: Hosts, directory: Path, stack: ExitStack) -> Provider | Rtpengine:
    if kind == "own":
        return stack.enter_context(closing(Provider(made, 21000)))
    return Rtpengine(made, directory, kind, stack)


class Call:
    """A whole call, and what a capture on the provider's side has seen of each stretch."""

    def __init__(self, ucm: Ucm, provider: Provider | Rtpengine, made: Hosts, at: Capture) -> None:
        self.ucm, self.provider, self._hosts, self._capture = ucm, provider, made, at

    def _state(self, state: str) -> Callable[[], bool]:
        return lambda: any(
            (each["state"], each["address"], each["port"]) == (state, *self.provider.media)
            for each in json.loads(self._hosts.firewall.moh("peers", "--json").stdout)
        )

    def talk(self) -> None:
        device = self.ucm.talk()
        until("the call is known", self._state("two"))
        self._play(device, is_voice=True)
        device.hears()

    def hold(self) -> None:
        device = self.ucm.hold()
        until("the hold is known", self._state("moh"))
        self._play(device, is_voice=False)

    def _play(self, device: Stream, *, is_voice: bool) -> None:
        self._capture.catch_up()
        before = len(self._capture.flows())
        self.ucm.speak(device)
        self.provider.phone.hears(count=2 * HEARD)
        self._capture.catch_up()
        flows = self._capture.flows()[before:]
        sources = {source for source, to in flows if to == self.provider.media}
        assert sources == ({(PUBLIC, device.port)} if is_voice else {PHANTOM})


@pytest.mark.parametrize(("kind", "more"), CALLS)
def test_a_whole_call(tmp_path: Path, kind: str, more: str) -> None:
    """Two-way, hold, second hold, resume, hold, transfer."""
    with (
        hosts() as made,
        service(made.firewall, tmp_path, CONFIG + more) as run,
        closing(Capture(made.provider, tmp_path, "provider")) as capture,
        ExitStack() as stack,
    ):
        run.wait_for_line("SIP is read")
        provider = provider_of(kind, made, tmp_path, stack)
        call = Call(Ucm(made, provider, stack), provider, made, capture)
        call.talk()
        call.hold()
        call.talk()
        call.hold()
        call.hold()
        call.talk()
        call.ucm.end()
        assert run.stop() == 0
