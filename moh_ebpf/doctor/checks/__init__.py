"""The checks: from the facts to findings. One that finds nothing is well.

Pure: what they look at has been asked before (gather.py). docs/doctor.md has a row for each. They
are listed in the order in which they are imported here, and defined there.
"""

from moh_ebpf.doctor.check import CHECKS, run

from moh_ebpf.doctor.checks import machine, routes, netfilter, attached  # isort: skip

__all__ = ["CHECKS", "attached", "machine", "netfilter", "routes", "run"]
