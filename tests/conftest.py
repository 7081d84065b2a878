"""Fixtures of all tiers. The unit tests need neither root nor BCC; the others need both."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.firewall import Firewall, firewall

# A shell that runs us in the background has SIGINT ignored, nohup SIGHUP, and what we start would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Namespaces are removed whatever happens.
signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


@pytest.fixture(autouse=True)
def _root_where_needed(request: pytest.FixtureRequest) -> None:
    tier = request.path.parent.name
    if tier != "unit" and os.geteuid() != 0:
        pytest.fail(f"tests/{tier} makes namespaces and loads programs: run scripts/test as root")


@pytest.fixture
def fw() -> Iterator[Firewall]:
    """A masquerading firewall, nothing attached."""
    with firewall() as made:
        yield made
