"""Calls of real RTP, a packet each way every 20 ms, and what arrives of them."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.hosts import Address
from tests.support.wire import rtp

HALF_SECONDS = 0.01  # a packet every 20 ms each way: the provider's, and half of that later UCM's
DRAIN_ROUNDS = 25
_PATIENCE_SECONDS = 30.0


@dataclass
class Way:
    """A stream one way. Each packet has the next sequence number, by which it is known again."""

    sender: socket.socket
    to: Address
    receiver: socket.socket
    speaking: bool = True
    sent: int = 0
    heard: list[tuple[int, str]] = field(default_factory=list)  # sequence number, address:port

    def speak(self) -> None:
        if self.speaking:
            self.sent += 1
            with contextlib.suppress(OSError):  # no neighbour to send it to: lost, counted so
                self.sender.sendto(rtp(self.sent), self.to)

    def listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                payload, (host, port) = self.receiver.recvfrom(2048)
                self.heard.append((int.from_bytes(payload[2:4], "big"), f"{host}:{port}"))

    def lost(self, since: int) -> int:
        """Of the packets sent after the first `since`, how many were not heard."""
        return self.sent - since - len({number for number, _ in self.heard if number > since})

    def sources(self, since: int, until: int) -> set[str]:
        """Where those came from that were sent after the first `since`, up to the first `until`."""
        return {source for number, source in self.heard.copy() if since < number <= until}


@dataclass
class Call:
    """`outbound` is from UCM to the provider, `inbound` the other way."""

    inbound: Way
    outbound: Way

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.inbound, self.outbound

    def move(self, ucm: socket.socket) -> None:
        """UCM sends from another socket, as it does with each hold."""
        self.outbound.sender = self.inbound.receiver = ucm

    def speak(self, speaking: bool) -> None:
        for way in self.ways:
            way.speaking = speaking


class Traffic:
    """Calls, paced by one thread: in each round the provider speaks in every call, half a pace
    later UCM does. So what one call loses can be compared with what another does."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._rounds = 0
        self._ended = threading.Event()
        self._round = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def await_rounds(self, count: int) -> None:
        with self._round:
            wanted = self._rounds + count + 1  # the one under way is none of them
            passed = self._round.wait_for(lambda: self._rounds >= wanted, _PATIENCE_SECONDS)
        assert passed, f"{count} packets each way were not sent"

    def drain(self) -> None:
        """All fall silent, and what is on its way arrives."""
        for call in self._calls:
            call.speak(False)
        self.await_rounds(DRAIN_ROUNDS)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            for side in (0, 1):
                for call in self._calls:
                    call.ways[side].speak()
                due += HALF_SECONDS
                self._ended.wait(max(0.0, due - time.monotonic()))
                for call in self._calls:
                    call.inbound.listen()
                    call.outbound.listen()
            with self._round:
                self._rounds += 1
                self._round.notify_all()
