"""The step of a device that computes band by band while rows come over a network: the cost model's one equation.

    end_0 = 0;  end_k = max(end_(k-1), arrival_k) + segment_k;  step = max(end_last, host)

arrival_k is when the host has seen the rows of band k (0 for bands on the device), counted from the moment at which
the step's tokens are known; host is when it is done with all its work for the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost_model.hits import Misses

Seconds = NDArray[np.float64]


class Arrivals(Protocol):
    """When rows come, as Q equally likely cases (quantiles)."""

    def arrival_s(self, num_rows: int) -> Seconds:
        """[Q, bands]: seconds until the rows of each band are seen where `num_rows` distinct ones are fetched."""

    def host_s(self, num_rows: int) -> Seconds:
        """[Q]: seconds until the host is done with the step."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Expected seconds of a step; stall_s is what rows add to the device's own time."""

    step_s: float
    stall_s: float

    @property
    def overhead(self) -> float:
        """The stall as a share of the step without it."""
        return self.stall_s / (self.step_s - self.stall_s)


def ends_s(segments_s: Seconds, arrival_s: Seconds, host_s: Seconds) -> Seconds:
    """[Q]: the step of each case.

    Args:
        segments_s: [bands], the device's time by band. arrival_s: [Q, bands]. host_s: [Q].
    """
    end_s = np.zeros(len(arrival_s))
    for band, segment_s in enumerate(segments_s):
        end_s = np.maximum(end_s, arrival_s[:, band]) + segment_s
    return np.maximum(end_s, host_s)


def expected_step(
    segments_s: Seconds, misses: Misses, arrivals: Arrivals, *, on_device: tuple[int, ...] = ()
) -> StepTime:
    """The mean step over the number of rows that it has to fetch and the time that they take.

    Args:
        segments_s: [bands], the device's time by band.
        on_device: bands whose rows are on the device for every token.
    """
    ideal_s, step_s = float(segments_s.sum()), 0.0
    for num_rows, probability in misses.likely():
        arrival_s = arrivals.arrival_s(num_rows).copy()
        arrival_s[:, list(on_device)] = 0.0
        step_s += probability * float(ends_s(segments_s, arrival_s, arrivals.host_s(num_rows)).mean())
    return StepTime(step_s=step_s, stall_s=step_s - ideal_s)
