"""A call between the provider's caller and UCM, and what each of them hears.

The caller keeps one address and port for the whole call. UCM speaks from a new port whenever
the voice changes, and always before the caller turns to it: UCM is closer to the firewall.
"""

import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moh_ebpf.errors import MohError
from moh_ebpf.lab.audio import Sound, hears, is_clear
from moh_ebpf.lab.topology import PROVIDER_ENDPOINT, PUBLIC, UCM, Host, Lab

CALLER_PORT = 20000  # the provider's, for the whole call
PHANTOM_PORT = 4000  # what UCM says in its SDP while it plays hold music
UCM_PORTS = range(24576, 32768, 2)  # UCM's RTP ports; the odd ones are for RTCP
PATIENCE = 15.0  # seconds for an endpoint to obey
_MOST_LISTENS = 3  # where what is heard is unclear

ADDRESSES = {Host.UCM: UCM, Host.PROVIDER: PROVIDER_ENDPOINT}


class Phone:
    """The near side of an endpoint's control socket; endpoint.py tells the requests."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def play(self, port: int, sound: Sound, destination: tuple[str, int]) -> None:
        """Say a sound from a port; returns when its first packet leaves."""
        host, to_port = destination
        with self._ask(f"play {port} {sound.value} {host}:{to_port}") as line:
            try:
                answer = line.makefile().read().strip()
            except OSError as error:  # on its way through the network, if there is one between
                raise self._silent(error) from None
        if answer != "ok":
            raise MohError(f"RTP endpoint {self._control.stem}: {answer or 'it ended'}")

    def listen(self) -> socket.socket:
        """What the endpoint hears from now on, as raw PCM, until the socket is closed."""
        return self._ask("listen")

    def _ask(self, request: str) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(PATIENCE)
        try:
            line.connect(str(self._control))
            line.sendall(f"{request}\n".encode())
        except OSError as error:
            line.close()
            raise self._silent(error) from None
        return line

    def _silent(self, error: OSError) -> MohError:
        return MohError(f"RTP endpoint {self._control.stem} does not answer: {error}")


@dataclass(frozen=True)
class Heard:
    """What both ends heard in the same seconds, as audio.hears says it."""

    caller: str
    ucm: str


class Call:
    """A call in a lab, steered as UCM does it; any process may, the endpoints hold the state."""

    def __init__(self, lab: Lab) -> None:
        self._ucm = Phone(lab.control(Host.UCM))
        self._caller = Phone(lab.control(Host.PROVIDER))
        self._used: set[int] = set()

    def talk(self) -> int:
        """The agent speaks, and listens: two-way. Returns UCM's port."""
        port = self._new_port()
        self._connect(port, Sound.AGENT, port)
        return port

    def hold(self) -> int:
        """Hold music, to which nobody listens: UCM names port 4000, and sends from another."""
        port = self._new_port()
        self._connect(port, Sound.MUSIC, PHANTOM_PORT)
        return port

    def voicemail(self) -> int:
        """The voicemail greets the caller, and records: two-way, though no phone takes part."""
        port = self._new_port()
        self._connect(port, Sound.GREETING, port)
        return port

    def listen(self, seconds: float) -> Heard:
        """Record what both ends hear for some seconds, and judge it. Where that is nothing clear,
        an end may have been held up, as on a busy machine: then once more, and that counts."""
        for _ in range(_MOST_LISTENS):
            with self._caller.listen() as caller, self._ucm.listen() as ucm:
                recordings = _record([caller, ucm], seconds)
            heard = [hears(pcm, seconds) for pcm in recordings]
            if all(map(is_clear, heard)):
                break
        return Heard(*heard)

    def _connect(self, port: int, sound: Sound, answer_port: int) -> None:
        """UCM says a sound from a port; the caller answers to the port that the SDP names."""
        self._ucm.play(port, sound, (PROVIDER_ENDPOINT, CALLER_PORT))
        self._caller.play(CALLER_PORT, Sound.CALLER, (PUBLIC, answer_port))

    def _new_port(self) -> int:
        port = random.choice([port for port in UCM_PORTS if port not in self._used])
        self._used.add(port)
        return port


def begin(lab: Lab) -> Call:
    """Start both endpoints, and a call in which caller and agent talk."""
    children = {role: spawn_endpoint(lab, role) for role in ADDRESSES}
    for role, child in children.items():
        lab.wait_ready(role, child)
    call = Call(lab)
    call.talk()
    return call


def spawn_endpoint(lab: Lab, role: Host) -> subprocess.Popen[str]:
    """Start a role's endpoint; Lab.wait_ready waits for it."""
    module = [sys.executable, "-m", "moh_ebpf.lab.endpoint"]
    return lab.spawn(role, [*module, ADDRESSES[role], str(lab.control(role))])


def _record(lines: list[socket.socket], seconds: float) -> list[bytes]:
    """What arrives on each line within some seconds."""
    recordings = {line: bytearray() for line in lines}
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line, selectors.EVENT_READ)
        for line in _readable(selector, seconds):
            chunk = line.recv(65536)
            recordings[line] += chunk
            if not chunk:
                raise MohError("an RTP endpoint ended while it was listened to")
    return [bytes(recording) for recording in recordings.values()]


def _readable(selector: selectors.BaseSelector, seconds: float) -> Iterator[socket.socket]:
    """Those that have something, until the time is over; what has come by then is read, however
    late we are."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        for key, _ in selector.select(max(0.0, left)):
            assert isinstance(key.fileobj, socket.socket)
            yield key.fileobj
        if left <= 0:
            return
