"""One firewall and one set of loaded programs for all packets; maps emptied before each."""

from collections.abc import Iterator

import pytest

from tests.packets.bench import Bench, bench
from tests.support.firewall import Firewall, firewall


@pytest.fixture(scope="session")
def shared_firewall() -> Iterator[Firewall]:
    with firewall(masquerade=False) as made:
        yield made


@pytest.fixture(scope="session")
def shared_bench(shared_firewall: Firewall) -> Iterator[Bench]:
    with bench(shared_firewall) as made:
        yield made


@pytest.fixture
def programs(shared_bench: Bench) -> Bench:
    shared_bench.clear()
    return shared_bench
