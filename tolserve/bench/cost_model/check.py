"""The cost model against the paced engine: `model_median_stall_error`, `model_median_step_error`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

FLOOR_US = 80.0
"""Stalls below this count as if they were this large: they are within a step's noise."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A point as measured and as predicted, in microseconds; p99_us: of the measured steps."""

    name: str
    measured_step_us: float
    measured_stall_us: float
    predicted_step_us: float
    predicted_stall_us: float
    p99_us: float

    @property
    def ideal_step_us(self) -> float:
        """The step without what rows add."""
        return self.measured_step_us - self.measured_stall_us

    @property
    def stall_error(self) -> float:
        """Difference of the stalls over the measured one, or over 80 us where that is less."""
        return abs(self.predicted_stall_us - self.measured_stall_us) / max(self.measured_stall_us, FLOOR_US)

    @property
    def step_error(self) -> float:
        """Difference of the steps over the measured one."""
        return abs(self.predicted_step_us - self.measured_step_us) / self.measured_step_us

    @property
    def reason(self) -> str:
        """The likeliest reason for a difference, in words."""
        beyond_us = self.p99_us - self.measured_step_us
        if self.predicted_stall_us < self.measured_stall_us and beyond_us > 2 * self.predicted_stall_us + FLOOR_US:
            return f"the slowest steps (99th percentile {self.p99_us:.0f} us) are slower than any fetch measured alone"
        if self.predicted_stall_us < self.measured_stall_us:
            return "rows come later beside the engine than when fetched alone"
        return "rows come sooner in a row of steps than when fetched alone"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "measured_step_us": round(self.measured_step_us, 1),
            "predicted_step_us": round(self.predicted_step_us, 1),
            "measured_stall_us": round(self.measured_stall_us, 1),
            "predicted_stall_us": round(self.predicted_stall_us, 1),
            "stall_error": round(self.stall_error, 4),
            "step_error": round(self.step_error, 4),
        }


def errors(points: Sequence[Compared], *, num_worst: int = 5) -> dict[str, Any]:
    """The two medians, and the points that are furthest off with the likeliest reason.

    Beside the medians stand those of a model that always says "no stall", which most points are near, and the stall's
    error over the points whose stall is beyond the noise (`large_stall_error` of `num_large`).

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("no paced points to compare the cost model with")
    worst = sorted(points, key=lambda point: -point.stall_error)[:num_worst]
    large = [point.stall_error for point in points if point.measured_stall_us >= FLOOR_US]
    none = [replace(point, predicted_stall_us=0.0, predicted_step_us=point.ideal_step_us) for point in points]
    return {
        "num_large": len(large),
        "large_stall_error": round(statistics.median(large), 4) if large else None,
        "no_stall_error": round(statistics.median(point.stall_error for point in none), 4),
        "no_stall_step_error": round(statistics.median(point.step_error for point in none), 4),
        "model_median_stall_error": round(statistics.median(point.stall_error for point in points), 4),
        "model_median_step_error": round(statistics.median(point.step_error for point in points), 4),
        "points": {point.name: point.to_dict() for point in points},
        "worst": [{"name": one.name, "stall_error": round(one.stall_error, 4), "reason": one.reason} for one in worst],
    }


def table(found: Mapping[str, Any]) -> str:
    """What `errors` found, for people."""
    width = max(map(len, ("point", *found["points"])))
    heads = ("stall: measured", "predicted", "step: measured", "predicted")
    lines = [f"  {'point':<{width}} {heads[0]:>16} {heads[1]:>10} {heads[2]:>16} {heads[3]:>10}  us"]
    lines += [
        f"  {name:<{width}} {point['measured_stall_us']:>16.1f} {point['predicted_stall_us']:>10.1f} "
        f"{point['measured_step_us']:>16.1f} {point['predicted_step_us']:>10.1f}"
        for name, point in found["points"].items()
    ]
    if found["num_large"]:
        lines.append(
            f"  stalls of at least {FLOOR_US:.0f} us ({found['num_large']} points): off by "
            f"{found['large_stall_error']:.0%} (median)"
        )
    lines.append(
        f"  all: off by {found['model_median_stall_error']:.0%}, steps by {found['model_median_step_error']:.1%}; a "
        f"model that always says no stall: {found['no_stall_error']:.0%} and {found['no_stall_step_error']:.1%}"
    )
    lines += [f"  worst: {one['name']}, off by {one['stall_error']:.0%}: {one['reason']}" for one in found["worst"]]
    return "\n".join(lines)
