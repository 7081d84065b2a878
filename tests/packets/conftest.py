"""One firewall for all packets, and few sets of loaded programs; maps emptied before each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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


# By settings: a test's programs, with empty maps.
Benches = Callable[..., AbstractContextManager[Bench]]


# So many are kept, for they take some dozen MiB each.
_KEPT = 2


@pytest.fixture(scope="session")
def benches(shared_firewall: Firewall) -> Iterator[Benches]:
    """The last programs are kept for the next tests with the same settings: to compile them takes
    more than a second, and half a minute under emulation."""
    kept: dict[str, Bench] = {}

    @contextmanager
    def with_settings(**values: object) -> Iterator[Bench]:
        wanted = repr(sorted(values.items()))
        if wanted not in kept:
            if len(kept) == _KEPT:
                kept.pop(next(iter(kept))).close()
            kept[wanted] = Bench(shared_firewall, **values)
        kept[wanted].clear()
        yield kept[wanted]

    yield with_settings
    for each in kept.values():
        each.close()
