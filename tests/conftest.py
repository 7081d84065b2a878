"""Fixtures of all tiers. The unit tests need neither root nor BCC; the others need both."""

import os
from collections.abc import Iterator

import pytest

from tests.support.firewall import Firewall, firewall


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
