"""`moh-ebpf`, and `python -m moh_ebpf`."""

import signal
import sys


def main() -> None:
    """The command line. The imports take a good part of a second: Ctrl-C in them ends us without a
    traceback, and what is to stop or reload `run` waits until it can answer, for a service that is
    killed meanwhile would not detach."""
    if ctrl_c := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from moh_ebpf.service.systemd import SERVICE_SIGNALS

    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, SERVICE_SIGNALS)
    from moh_ebpf.cli import main as command_line

    if ctrl_c:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command_line()


if __name__ == "__main__":
    main()
