"""What a whole run comes to: the last line, and how well its two sweeps agree."""

from __future__ import annotations

import statistics
from typing import Any

ABSENT_MODEL = "no predictions in this run: the cost model adds them to the points (`predicted`)"
_AGREE = 0.1
_LEAST_STALL_US = 80.0


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


def model_errors(points: list[dict[str, Any]]) -> dict[str, float | None]:
    """Median errors of predictions over the paced points that have one.

    A prediction is `{"step_us": ..., "stall_us": ...}`; |predicted - measured| is over max(measured, 80 us) for stall
    and over the measured time for steps, measured being the mean of the sweeps.
    """
    stalls, steps = [], []
    for point in points:
        predicted = point["predicted"]
        if predicted is None or point["settings"]["engine"] != "paced" or not point["sweeps"]:
            continue
        stall, step = (statistics.fmean(sweep[key] for sweep in point["sweeps"]) for key in ("stall_us", "step_us"))
        stalls.append(abs(predicted["stall_us"] - stall) / max(stall, _LEAST_STALL_US))
        steps.append(abs(predicted["step_us"] - step) / step)
    return {
        "model_median_stall_error": round(statistics.median(stalls), 4) if stalls else None,
        "model_median_step_error": round(statistics.median(steps), 4) if steps else None,
    }


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The last line of a run."""
    points = result["points"]
    errors = model_errors(points)
    reason = {} if errors["model_median_step_error"] is not None else {"model_errors_absent": ABSENT_MODEL}
    return {
        **errors,
        **reason,
        "tokens_equal_all": tokens_equal_all(points),
        "paced_overhead": result.get("paced_overhead"),
        "repeatability": repeatability(points),
    }
