"""scripts/bench: from samples to numbers, and from numbers to goals."""

import pytest

from tests.bench.report import Goal, share_of_a_core
from tests.bench.samples import Spread, own, percentile, spread


def test_own_takes_off_the_baseline_of_the_same_round() -> None:
    assert own([10.0, 30.0], [1.0, 2.0]) == [9.0, 28.0]


def test_own_refuses_rounds_without_a_baseline() -> None:
    with pytest.raises(ValueError, match="shorter"):
        own([10.0, 30.0], [1.0])


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_one_sample_has_no_spread() -> None:
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_percentile_is_a_sample() -> None:
    samples = [float(n) for n in range(100, 0, -1)]
    assert percentile(samples, 50) == 51.0
    assert percentile(samples, 99.9) == 100.0


@pytest.mark.parametrize(("measured", "holds"), [(1.15, "yes"), (1.16, "**no**")])
def test_a_goal_holds_up_to_its_number(measured: float, holds: str) -> None:
    assert Goal("cost", 1.15, measured).row() == ["cost", "≤ 1.15", f"{measured}", holds]


def test_a_microsecond_a_packet_is_0_005_percent_of_a_core() -> None:
    assert share_of_a_core(1000) == pytest.approx(0.005)
