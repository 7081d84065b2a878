"""`moh-ebpf`, and `python -m moh_ebpf`."""

import signal
import sys

from moh_ebpf.systemd import SERVICE_SIGNALS


def main() -> None:
    """The command line. What is to stop or reload `run` waits until it can answer: the imports take
    a good part of a second, and a service that is killed meanwhile would not detach."""
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, SERVICE_SIGNALS)
    from moh_ebpf.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
