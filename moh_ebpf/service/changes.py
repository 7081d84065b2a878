"""The kernel's news of links, addresses, qdiscs and filters."""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# Netlink multicast groups (linux/rtnetlink.h): links, filters and qdiscs, IPv4 addresses.
_GROUPS = 0x1 | 0x8 | 0x10
# struct nlmsghdr; the index, and a tcmsg's parent, in what follows it (linux/rtnetlink.h). The
# parent is that of the clsact and ingress qdiscs.
_MESSAGE, _INDEX, _PARENT = struct.Struct("=IHHII"), struct.Struct("=4xi"), struct.Struct("=12xI")
_RTM_DELLINK, _RTM_DELQDISC, _RTM_DELTFILTER = 17, 37, 45
_TC_H_CLSACT = 0xFFFFFFF1


@contextmanager
def kernel_changes() -> Iterator[socket.socket]:
    """Readable when links, IPv4 addresses, qdiscs or filters of this namespace have changed."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as changes:
        changes.bind((0, _GROUPS))
        changes.setblocking(False)
        yield changes


@dataclass
class News:
    """The ifindexes of deleted links, of those whose clsact or ingress qdisc was deleted, and of
    those where a filter was; and whether messages were lost."""

    links: set[int] = field(default_factory=set)
    hooks: set[int] = field(default_factory=set)
    filters: set[int] = field(default_factory=set)
    lost: bool = False

    def add(self, data: bytes) -> None:
        """Take what a datagram's messages say."""
        while len(data) >= _MESSAGE.size + _PARENT.size:
            length, kind, *_ = _MESSAGE.unpack_from(data)
            (ifindex,) = _INDEX.unpack_from(data, _MESSAGE.size)
            (parent,) = _PARENT.unpack_from(data, _MESSAGE.size)
            if kind == _RTM_DELLINK:
                self.links.add(ifindex)
            elif kind == _RTM_DELQDISC and parent == _TC_H_CLSACT:
                self.hooks.add(ifindex)
            elif kind == _RTM_DELTFILTER:
                self.filters.add(ifindex)
            data = data[max(_MESSAGE.size, (length + 3) & ~3) :]


def drain(changes: socket.socket) -> News:
    """What was deleted: how soon to look, and whether held programs can still be trusted. The rest
    is asked anew."""
    news = News()
    while True:
        try:
            news.add(changes.recv(1 << 16))
        except BlockingIOError:
            return news
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            news.lost = True
