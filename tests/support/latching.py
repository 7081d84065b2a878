"""Providers that latch: they send to where they hear RTP from, whatever an SDP has said.

Either Debian's rtpengine, with a phone behind it, or an end of the tests' own. UCM and its devices
are sockets; SIP passes the firewall in datagrams, as texts.
"""

import itertools
import random
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from tests.support.firewall import PROVIDER, PUBLIC, UCM
from tests.support.hosts import Address, Hosts, udp_socket
from tests.support.namespace import Namespace
from tests.support.sip import Dialog, description
from tests.support.telephony import Program
from tests.support.waiting import until
from tests.support.wire import rtp

PROVIDER_ADDRESS = PROVIDER.split(":")[0]
PACE_SECONDS = 0.02
# So many packets that are heard are no accident.
HEARD = 25


class Stream:
    """A socket that sends RTP at its pace while it has somewhere to send to, and counts what it
    hears, by the source. With `latches`, it sends to whom it hears first since it was told where
    to, and hears nobody else."""

    def __init__(self, place: Namespace, at: Address, *, latches: bool = False) -> None:
        self._socket = udp_socket(place, at)
        self._socket.settimeout(PACE_SECONDS / 4)
        self._latches, self._latched = latches, False
        self.target: Address | None = None
        self.heard: Counter[Address] = Counter()
        self.sent = 0
        self.port = at[1]
        self._ssrc = random.randrange(1, 1 << 31)
        self._ends, self._sends = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def pause(self) -> None:
        """It has sent its last packet when this returns, until it is given a target again."""
        with self._sends:
            self.target = None

    def tell(self, target: Address) -> None:
        """An SDP says so. One that latches goes on as before until it hears somebody."""
        if not self._latches or self.target is None:
            self.target = target
        self._latched = False

    def hears(self, source: Address | None = None, count: int = HEARD) -> None:
        """Wait until it has heard so many more packets, from there if that matters."""

        def number() -> int:
            return self.heard[source] if source else self.heard.total()

        wanted = number() + count
        until(f"{count} packets are heard", lambda: number() >= wanted)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ends.is_set():
            if time.monotonic() >= due:
                due = max(due + PACE_SECONDS, time.monotonic())
                with self._sends:
                    self._send()
            self._receive()

    def _send(self) -> None:
        target = self.target
        if target is None:
            return
        try:
            self._socket.sendto(rtp(self.sent % 65536, ssrc=self._ssrc), target)
            self.sent += 1
        except OSError:
            return  # nobody is there

    def _receive(self) -> None:
        try:
            _, source = self._socket.recvfrom(2048)
        except (TimeoutError, ConnectionRefusedError):
            return
        if self._latches and not self._latched:
            self.target, self._latched = source, True
        if not self._latches or source == self.target:
            self.heard[source] += 1


class Provider:
    """An end of the tests' own."""

    def __init__(self, hosts: Hosts, port: int) -> None:
        self.media = (PROVIDER_ADDRESS, port)
        self.phone = Stream(hosts.provider, self.media, latches=True)

    def close(self) -> None:
        self.phone.close()

    def description(self, of_ucm: str) -> str:
        """Its SDP for UCM's."""
        direction, media = _read(of_ucm)
        self.phone.tell(media)
        return description(f"{self.media[0]}:{self.media[1]}", _answer(direction))

    def offer(self) -> str:
        return description(f"{self.media[0]}:{self.media[1]}")

    def take(self, of_ucm: str) -> None:
        """UCM's answer to that."""
        self.phone.tell(_read(of_ucm)[1])


class Rtpengine:
    """Debian's rtpengine with a way of learning, and a phone behind it."""

    def __init__(self, hosts: Hosts, directory: Path, learning: str, stack: ExitStack) -> None:
        port = random.randrange(21000, 29000, 200)
        options = ("--foreground", "--table=-1", "--log-stderr", "--log-level=6")
        addresses = (f"--interface={PROVIDER_ADDRESS}", "--listen-ng=127.0.0.1:2223")
        ports = (f"--port-min={port}", f"--port-max={port + 99}")
        self._call_id, self._names = f"call{port}", itertools.count()
        started = Program(
            *(hosts.provider, directory, "rtpengine"),
            *("rtpengine", *options, *addresses, *ports, f"--endpoint-learning={learning}"),
            f"--pidfile={directory / 'rtpengine.pid'}",
        )
        stack.enter_context(closing(started))
        self._control = udp_socket(hosts.provider, ("127.0.0.1", 0), ("127.0.0.1", 2223))
        stack.enter_context(closing(self._control))
        self.phone = Stream(hosts.provider, (PROVIDER_ADDRESS, port + 150))
        stack.enter_context(closing(self.phone))
        self.media = (PROVIDER_ADDRESS, 0)
        until("rtpengine answers", self._answers)

    def description(self, of_ucm: str) -> str:
        """Its SDP for UCM's offer, which the phone answers."""
        to_phone = self._ask("offer", of_ucm, ("from-tag", "ucm"))
        direction, media = _read(to_phone)
        self.phone.tell(media)
        answer = description(f"{PROVIDER_ADDRESS}:{self._port}", _answer(direction))
        return self._kept(self._ask("answer", answer, ("from-tag", "ucm"), ("to-tag", "far")))

    def offer(self) -> str:
        """Its SDP of the phone's offer."""
        said = description(f"{PROVIDER_ADDRESS}:{self._port}")
        return self._kept(self._ask("offer", said, ("from-tag", "far"), ("to-tag", "ucm")))

    def take(self, of_ucm: str) -> None:
        to_phone = self._ask("answer", of_ucm, ("from-tag", "far"), ("to-tag", "ucm"))
        self.phone.tell(_read(to_phone)[1])

    @property
    def _port(self) -> int:
        return self.phone.port

    def _kept(self, said: str) -> str:
        _, self.media = _read(said)
        return said

    def _answers(self) -> bool:
        try:
            return b"pong" in self._said({"command": "ping"})
        except (TimeoutError, ConnectionRefusedError):
            time.sleep(0.05)  # there is no event to wait for
            return False

    def _said(self, asked: dict[str, str]) -> bytes:
        """Each question has a name of its own, and its answer the same."""
        name = b"%d " % next(self._names)
        self._control.send(name + _bencoded(asked))
        while not (said := self._control.recv(65535)).startswith(name):
            pass
        return said

    def _ask(self, command: str, sdp: str, *tags: tuple[str, str]) -> str:
        asked = {"command": command, "call-id": self._call_id, "sdp": sdp, **dict(tags)}
        said = self._said(asked)
        found = re.search(rb"3:sdp(\d+):", said)
        assert found, said
        return said[found.end() :][: int(found[1])].decode()


def _bencoded(words: dict[str, str]) -> bytes:
    def text(word: str) -> bytes:
        return b"%d:%s" % (len(word.encode()), word.encode())

    return b"d" + b"".join(text(key) + text(words[key]) for key in sorted(words)) + b"e"


def _read(sdp: str) -> tuple[str, Address]:
    """The direction and the place of its audio."""
    (address,) = set(re.findall(r"^c=IN IP4 (\S+)\r$", sdp, re.MULTILINE))
    (port,) = re.findall(r"^m=audio (\d+) ", sdp, re.MULTILINE)
    directions = re.findall(r"^a=(send\w+|recvonly|inactive)\r$", sdp, re.MULTILINE)
    return (directions or ["sendrecv"])[0], (address, int(port))


def _answer(direction: str) -> str:
    return {"sendonly": "recvonly", "inactive": "inactive"}.get(direction, "sendrecv")


class Ucm:
    """UCM, and the calls of its trunk: SIP by datagrams through the firewall, and each device a
    stream of its own port."""

    def __init__(self, hosts: Hosts, provider: Provider | Rtpengine, stack: ExitStack) -> None:
        self._stack, self._hosts, self._provider = stack, hosts, provider
        self._sip = stack.enter_context(closing(udp_socket(hosts.ucm, (UCM, 5060))))
        self._far = udp_socket(hosts.provider, (PROVIDER_ADDRESS, 5060))
        stack.enter_context(closing(self._far))
        self.dialog = Dialog()
        self._ports = iter(random.sample(range(24576, 32768, 2), 10))
        self._speaks: Stream | None = None

    def talk(self) -> Stream:
        """A device of a new port is in the call, by an offer of UCM's: at its beginning, on a
        resume, after a transfer."""
        self._hush()
        port = next(self._ports)
        said = description(f"{UCM}:{port}", "sendrecv")
        far = self._far_sees(self.dialog.ask("INVITE", said))
        self._near_sees(self.dialog.answer(self._provider.description(far)))
        self._far_sees(self.dialog.ask("ACK"))
        return self._device(port)

    def hold(self) -> Stream:
        """By a delayed offer; music leaves from a new port."""
        self._hush()
        self._far_sees(self.dialog.ask("INVITE"))
        self._near_sees(self.dialog.answer(self._provider.offer()))
        ack = self.dialog.ask("ACK", description(f"{UCM}:4000", "sendonly"))
        self._provider.take(self._far_sees(ack))
        return self._device(next(self._ports))

    def speak(self, device: Stream) -> None:
        """To where the provider has said."""
        device.target = self._provider.media

    def end(self) -> None:
        self._hush()
        self._far_sees(self.dialog.ask("BYE"))

    def _hush(self) -> None:
        if self._speaks:
            self._speaks.pause()

    def _device(self, port: int) -> Stream:
        self._hush()
        self._speaks = self._stack.enter_context(closing(Stream(self._hosts.ucm, (UCM, port))))
        return self._speaks

    def _far_sees(self, message: bytes) -> str:
        """The provider's SIP server takes it, and knows that the private address is none."""
        self._sip.sendto(message, (PROVIDER_ADDRESS, 5060))
        data, self._trunk = self._far.recvfrom(65535)
        return data.decode().partition("\r\n\r\n")[2].replace(UCM, PUBLIC)

    def _near_sees(self, message: bytes) -> None:
        self._far.sendto(message, self._trunk)
        self._sip.recvfrom(65535)
