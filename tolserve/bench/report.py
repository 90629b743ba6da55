"""What every bench shares: contestants in turn, and intervals of what was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)
"""Student's t, two-sided 95 %, for 1, 2, ... degrees of freedom; 2.0 beyond."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval, and the median, of `count` values."""

    mean: float
    low: float
    high: float
    median: float
    count: int

    def to_dict(self) -> dict[str, float]:
        """As JSON values, rounded to what a reader needs."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent `values` and its 95 % interval; one value has no interval and gives itself."""
    mean, median = statistics.fmean(values), statistics.median(values)
    if len(values) == 1:
        return Estimate(mean=mean, low=mean, high=mean, median=median, count=1)
    freedom = len(values) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else 2.0
    half = t * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean=mean, low=mean - half, high=mean + half, median=median, count=len(values))


def alternate(
    contestants: dict[str, Callable[[], float]], *, rounds: int, limit_s: float, least: int = 2
) -> dict[str, list[float]]:
    """Run every contestant once a round, in an order that turns, until `rounds` are done or time is up.

    At least `least` rounds are run. Each contestant returns its own figure.
    """
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    began = time.monotonic()
    for turn in range(rounds):
        if turn >= least and time.monotonic() - began > limit_s:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            figures[name].append(contestants[name]())
    return figures
