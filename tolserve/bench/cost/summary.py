"""What a whole run comes to: the last line, and how well its two sweeps agree."""

from __future__ import annotations

import statistics
from typing import Any

from tolserve.bench.cost_model.check import Compared, errors

ABSENT_MODEL = "no paced point was measured, and the cost model predicts no other"
_AGREE = 0.1
_MODEL_ERRORS = ("model_median_stall_error", "model_median_step_error")


def repeatability(points: list[dict[str, Any]]) -> float | None:
    """Share of the points whose two medians lie within 10 % of the larger; None where no point has two."""
    pairs = [[sweep["median_ms"] for sweep in point["sweeps"][:2]] for point in points if len(point["sweeps"]) >= 2]
    if not pairs:
        return None
    num_close = sum(bool(max(pair) - min(pair) <= _AGREE * max(pair)) for pair in pairs)
    return round(num_close / len(pairs), 4)


def tokens_equal_all(points: list[dict[str, Any]]) -> bool:
    """Whether every sweep of every point had the tokens, or the bytes, of local rows."""
    return all(sweep["tokens_equal"] for point in points for sweep in point["sweeps"])


def compared(points: list[dict[str, Any]]) -> list[Compared]:
    """The paced points that were measured and predicted, each by the mean of its sweeps."""
    return [
        Compared(
            name=point["name"],
            measured_step_us=_mean(point, "step_us"),
            measured_stall_us=_mean(point, "stall_us"),
            predicted_step_us=point["predicted"]["step_us"],
            predicted_stall_us=point["predicted"]["stall_us"],
            p99_us=statistics.fmean(1e3 * sweep["itl_ms"]["p99"] for sweep in point["sweeps"]),
        )
        for point in points
        if point["predicted"] is not None and point["settings"]["engine"] == "paced" and point["sweeps"]
    ]


def _mean(point: dict[str, Any], key: str) -> float:
    return statistics.fmean(sweep[key] for sweep in point["sweeps"])


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The last line of a run."""
    points = result["points"]
    found = compared(points)
    medians = errors(found) if found else dict.fromkeys(_MODEL_ERRORS) | {"worst": []}
    return {
        **{name: medians[name] for name in _MODEL_ERRORS},
        **({} if found else {"model_errors_absent": ABSENT_MODEL}),
        "tokens_equal_all": tokens_equal_all(points),
        "paced_overhead": result.get("paced_overhead"),
        "repeatability": repeatability(points),
    }
