"""From samples to what is told of them: pure functions."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The median of some samples, and the quartiles: half of the samples lie between them."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) < 2:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


def own(samples: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """What is left of each sample without the baseline's of the same round."""
    return [sample - base for sample, base in zip(samples, baseline, strict=True)]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest sample at or above so many percent of them."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
