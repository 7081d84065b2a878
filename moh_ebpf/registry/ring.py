"""The kernel's ring buffer of events, for any number of readers.

It has one consumer's position, but any process may map its pages. Each reader here keeps a position
of its own, and moves the kernel's half a ring behind what was written last: there is room for what
comes, whoever reads, and the last events stay for a reader that comes later. A reader that falls
behind by more than the ring learns how many events it has missed, for all records are of one size;
while nobody makes room, the kernel counts those that it could not write.
(kernel: Documentation/bpf/ringbuf.rst)
"""

import mmap
import select
from contextlib import ExitStack

from moh_ebpf import layout
from moh_ebpf.calls.events import KernelEvent
from moh_ebpf.kernel.libbpf import Map

_HEADER = 8  # bytes before each record: its length, and which page it is in
_RECORD = _HEADER + layout.EVENT.size
_BUSY = 1 << 31  # in the length: not written yet


class Ring:
    """A ring buffer's records: from now on; with `history`, from the oldest that is there; or
    `since` a position that another reader of it has left `at`."""

    def __init__(self, ring: Map, *, history: bool = False, since: int | None = None) -> None:
        page = mmap.PAGESIZE
        self._size = ring.max_entries
        with ExitStack() as stack:
            # Of these pages, the first alone may be written to: the consumer's position.
            self._consumer = stack.enter_context(
                mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            )
            # The producer's position, then the ring, twice, so that no record has to be cut.
            self._data = stack.enter_context(
                mmap.mmap(
                    ring.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
                )
            )
            self._poll = stack.enter_context(select.epoll())
            self._poll.register(ring.fd, select.EPOLLIN | select.EPOLLET)
            self._close = stack.pop_all().close
        # It is full where nobody has made room since; then the kernel has told of what it could not
        # write.
        self.was_full = self.written() - self._consumed() > self._size - 2 * _RECORD
        self.at = self._consumed() if history else self.written()
        if since is not None:
            self.at = since
        self._more = False
        # After a read there is room for so many records at least: half a ring, cut to whole ones.
        self.room = self._size // 2 // _RECORD - 1
        self._make_room()

    def close(self) -> None:
        """Let go of the pages."""
        self._close()

    def fileno(self) -> int:
        """To wait for: readable when there may be new records. `wait` makes it quiet again."""
        return self._poll.fileno()

    @property
    def more(self) -> bool:
        """The last read has left records: it does not wait for them to end."""
        return self._more

    def wait(self, seconds: float) -> None:
        """Until there may be new records, or the time is over."""
        self._poll.poll(0.0 if self._more else max(0.0, seconds))

    def read(self) -> tuple[list[KernelEvent], int]:
        """New records, a ring full of them at most, and how many were missed."""
        records, missed = [], 0
        self._more = True
        for _ in range(self._size // _RECORD):
            ahead = self.written() - self.at
            if ahead <= 0:
                self._more = False
                break
            if ahead > self._size:
                skipped = (ahead - self._size // 2) // _RECORD
                self.at += skipped * _RECORD
                missed += skipped
                continue
            begin = mmap.PAGESIZE + self.at % self._size
            length = int.from_bytes(self._data[begin : begin + 4], "little")
            record = self._data[begin + _HEADER : begin + _RECORD]
            if self.written() - self.at > self._size:
                continue  # overwritten meanwhile, perhaps
            if length & _BUSY:
                self._more = False  # its writer will wake us
                break
            records.append(KernelEvent._make(layout.EVENT.unpack(record)))
            self.at += _RECORD
        self._make_room()
        return records, missed

    def written(self) -> int:
        return int.from_bytes(self._data[:8], "little")

    def _consumed(self) -> int:
        return int.from_bytes(self._consumer[:8], "little")

    def _make_room(self) -> None:
        """Another reader may be ahead of us: then it has. One that was while we wrote is put back
        by that; so look again."""
        while (behind := self._half_behind()) > self._consumed():
            self._consumer[:8] = behind.to_bytes(8, "little")

    def _half_behind(self) -> int:
        return (self.written() - self._size // 2) // _RECORD * _RECORD
