"""What is reported of a point: latencies, rates, prices, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np

from tolserve.bench.report import estimate

REFERENCES = ("codes_local", "fp16_local", "dense")
"""What a point's price is against: the same codes and fp16 rows in device memory, and the dense FFN."""


def latency(values_s: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds: mean, p50, p99; None of nothing."""
    if not len(values_s):
        return None
    values = np.asarray(values_s) * 1e3
    p50, p99 = np.percentile(values, [50, 99])
    return {"mean": rounded(values.mean()), "p50": rounded(p50), "p99": rounded(p99)}


def prices(own_s: Sequence[float], references_s: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """By reference the mean of (own - reference) by pair over the reference's mean, with its 95 % interval."""
    found = {}
    for name, values in references_s.items():
        mean = float(np.mean(values))
        paired = estimate([(ours - theirs) / mean for ours, theirs in zip(own_s, values, strict=True)])
        found[name] = {"mean": rounded(paired.mean), "low": rounded(paired.low), "high": rounded(paired.high)}
    return found


def shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Parts of their sum."""
    total = sum(counts.values())
    return {name: rounded(count / total) for name, count in counts.items()} if total else {}


def rounded(value: SupportsFloat) -> float:
    """Five significant digits: more than anything here is worth."""
    return float(f"{float(value):.5g}")
