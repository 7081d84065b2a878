"""What a process in Python pays at least for hearing SIP: it is woken by a packet, and takes it.

The port is its argument. It says on stdout that it hears, and ends with stdin."""

import select
import sys

from moh_ebpf.kernel.capture import Capture


def main() -> None:
    capture, stdin = Capture([int(sys.argv[1])]), sys.stdin.fileno()
    with select.epoll() as poll:
        for each in (capture.fileno(), stdin):
            poll.register(each, select.EPOLLIN)
        print("hears", flush=True)
        while stdin not in {fd for fd, _ in poll.poll()}:
            capture.read()


if __name__ == "__main__":
    main()
