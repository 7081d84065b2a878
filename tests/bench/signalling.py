"""What reading SIP costs: CPU time and memory, and the time until the kernel knows."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from moh_ebpf import layout
from moh_ebpf.layout import Kind, State
from moh_ebpf.registry import walk
from moh_ebpf.registry.ring import Ring
from tests.bench.effort import Effort
from tests.bench.forwarding import Tell
from tests.support.firewall import PUBLIC, UCM, Firewall, firewall
from tests.support.service import CONFIG, reader_of, service
from tests.support.sip import PROVIDER_SIP, Dialog, description
from tests.support.wire import Wire, udp

MESSAGES_PER_SECOND = 200
_FILL_PER_SECOND = 2000
_OTHER_PORT = 5070  # which the reader does not hear

# A message, and the wire that it comes by.
_Sent = tuple[Wire, bytes]


def measure(effort: Effort, tell: Tell) -> dict[str, Any]:
    """Of each round its messages, CPU seconds and seconds, ms from each hold's last message to the
    kernel, and CPU seconds for a packet of a process that is only woken (only_woken.py); and KiB of
    the reader before and after so many `dialogs`."""
    with (
        firewall() as fw,
        tempfile.TemporaryDirectory() as directory,
        service(fw.namespace, Path(directory), CONFIG) as run,
    ):
        run.wait_for_line("SIP is read")
        reader = reader_of(run)
        rounds = []
        with fw.namespace.entered(), walk.attached_or_error() as attached:
            assert attached.maps.events
            with closing(Ring(attached.maps.events)) as ring:
                for number in range(effort.sip_rounds):
                    tell("SIP at its pace")
                    first = number * effort.paced_calls
                    calls = range(first, first + effort.paced_calls)
                    woken = _only_woken(fw, effort.paced_calls)
                    rounds.append(_at_pace(fw, reader, calls, ring) | {"woken": woken})
        tell("many dialogs")
        before = _kib(reader)
        _fill(fw, effort.sip_rounds * effort.paced_calls, effort.dialogs)
        return {"rounds": rounds, "dialogs": effort.dialogs, "kib": [before, _kib(reader)]}


def _only_woken(fw: Firewall, count: int) -> float:
    message = udp(f"{PROVIDER_SIP}:5060", f"{PUBLIC}:{_OTHER_PORT}", b"\r\n" * 200)
    frame = bytes(fw.wan.frame(message))
    command = [sys.executable, "-m", "tests.bench.only_woken", str(_OTHER_PORT)]
    with (
        fw.namespace.entered(),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdin
        assert process.stdout
        with process.stdin:
            assert process.stdout.readline()
            cpu, begin = _cpu(process.pid), time.monotonic()
            for number in range(count):
                _wait_until(begin + number / MESSAGES_PER_SECOND)
                fw.wan.send_frame(frame)
            _wait_until(begin + count / MESSAGES_PER_SECOND + 0.2)
            return (_cpu(process.pid) - cpu) / count


def _at_pace(fw: Firewall, reader: int, calls: range, ring: Ring) -> dict[str, Any]:
    conversations = [list(_conversation(fw, number)) for number in calls]
    committed: dict[bytes, int] = {}
    cpu, begin, count = _cpu(reader), time.monotonic(), 0
    for number, conversation in zip(calls, conversations, strict=True):
        for wire, frame in conversation:
            _wait_until(begin + count / MESSAGES_PER_SECOND)
            committed[_endpoint(number)] = time.monotonic_ns()
            wire.send_frame(frame)
            count += 1
    _wait_until(begin + count / MESSAGES_PER_SECOND + 0.2)
    seconds, cpu = time.monotonic() - begin, _cpu(reader) - cpu
    holds = {
        layout.ENDPOINT.pack(each.address, each.port): each.time
        for each in ring.read()[0]
        if each.kind == Kind.CHANGED and layout.HEARD.unpack(each.heard)[2] == State.MOH
    }
    assert holds.keys() == committed.keys(), f"{len(holds)} of {len(committed)} holds"
    late = [(holds[key] - committed[key]) / 1e6 for key in holds]
    return {"messages": count, "seconds": seconds, "cpu": cpu, "late_ms": late}


def _fill(fw: Firewall, first: int, calls: int) -> None:
    begin, count = time.monotonic(), 0
    for number in range(first, first + calls):
        for wire, frame in list(_conversation(fw, number))[:5]:
            _wait_until(begin + count / _FILL_PER_SECOND)
            wire.send_frame(frame)
            count += 1
    time.sleep(1.0)  # until it has read the last ones


def _conversation(fw: Firewall, number: int) -> Iterator[_Sent]:
    """A call of UCM's, and its hold by a delayed offer; the last message commits that."""
    dialog = Dialog(f"f3a4b280-1dd1f3f8-{number:x}-a0a0a0a@10.10.10.10")
    address, port = _place(number)
    ucm, far = f"{UCM}:{16384 + number % 8192 * 2}", f"{address}:{port}"

    def of_ucm(message: bytes) -> _Sent:
        packet = udp(f"{UCM}:5060", f"{PROVIDER_SIP}:5060", message)
        return fw.lan, bytes(fw.lan.frame(packet))

    def of_provider(message: bytes) -> _Sent:
        packet = udp(f"{PROVIDER_SIP}:5060", f"{PUBLIC}:5060", message)
        return fw.wan, bytes(fw.wan.frame(packet))

    yield of_ucm(dialog.ask("INVITE", description(ucm)))
    yield of_provider(dialog.answer(status=100))
    yield of_provider(dialog.answer(status=180))
    yield of_provider(dialog.answer(description(far)))
    yield of_ucm(dialog.ask("ACK"))
    yield of_ucm(dialog.ask("INVITE"))
    yield of_provider(dialog.answer(description(far)))
    yield of_ucm(dialog.ask("ACK", description(f"{UCM}:4000", "sendonly")))


def _place(number: int) -> tuple[str, int]:
    return f"203.0.113.{10 + number % 200}", 20000 + number // 200 * 2


def _endpoint(number: int) -> bytes:
    address, port = _place(number)
    return layout.ENDPOINT.pack(bytes(map(int, address.split("."))), port.to_bytes(2, "big"))


def _wait_until(due: float) -> None:
    if (left := due - time.monotonic()) > 0:
        time.sleep(left)


def _cpu(pid: int) -> float:
    """Seconds of CPU time so far, by the scheduler's own clock: what a packet has woken has mostly
    gone to sleep again when the timer's tick counts who runs."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _kib(pid: int) -> int:
    """What it has in memory, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
