"""What a run prints: a line a measurement with the time that is left, and a table at the end."""

from __future__ import annotations

import statistics
import time
from typing import Any


class Progress:
    """Lines of a run of `total` measurements, of which `done` were made before."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = self._before = done
        self._began = time.monotonic()

    def say(self, name: str, figures: dict[str, Any]) -> None:
        """One more is done."""
        self._done += 1
        took = (time.monotonic() - self._began) / (self._done - self._before)
        price = figures["price"]["codes_local"]
        print(
            f"[{self._done}/{self._total}, {_clock(took * (self._total - self._done))} left] {name}: "
            f"{figures['itl_ms']['p50']:.3f} ms a token, {percent(price['mean'])} "
            f"[{percent(price['low'])}, {percent(price['high'])}] against the same codes local",
            flush=True,
        )


def table(points: list[dict[str, Any]]) -> str:
    """A line a point: means of its sweeps."""
    measured = [point for point in points if point["sweeps"]]
    width = max([len("point"), *(len(point["name"]) for point in measured)])
    head = (
        f"{'point':<{width}}{'ms/token':>9}{'p99':>9}{'tokens/s':>10}{'B/token':>9}{'cached':>8}{'fetch ms':>9}"
        f"{'stall':>8}{'vs codes':>10}{'vs fp16':>10}{'vs dense':>10}{'$/M':>8}"
    )
    lines = [_line(point["name"], point["sweeps"], width) for point in measured]
    return "\n".join([head, "-" * len(head), *lines])


def percent(share: float) -> str:
    """A signed percentage with what digits it is worth."""
    value = 100 * share
    return f"{value:+.0f} %" if abs(value) >= 100 else f"{value:+.1f} %"


def _line(name: str, sweeps: list[dict[str, Any]], width: int) -> str:
    def mean(*path: str) -> float | None:
        values = [_find(sweep, path) for sweep in sweeps]
        return None if any(value is None for value in values) else statistics.fmean(values)  # type: ignore[arg-type]

    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    prices = [percent(mean("price", one, "mean") or 0.0) for one in ("codes_local", "fp16_local", "dense")]
    hits = statistics.fmean(sweep["hits"].get("cache", 0.0) for sweep in sweeps)
    return (
        f"{name:<{width}}{show(mean('itl_ms', 'p50'), '.3f'):>9}{show(mean('itl_ms', 'p99'), '.3f'):>9}"
        f"{show(mean('tokens_per_s'), ',.0f'):>10}{show(mean('bytes_a_token'), ',.0f'):>9}{hits:>8.0%}"
        f"{show(mean('fetch_ms', 'p50'), '.3f'):>9}{show(mean('stall_share'), '.1%'):>8}"
        f"{prices[0]:>10}{prices[1]:>10}{prices[2]:>10}{show(mean('dollars_per_million'), '.3f'):>8}"
    )


def _find(values: Any, path: tuple[str, ...]) -> float | None:
    for name in path:
        if values is None:
            return None
        values = values.get(name)
    return None if values is None else float(values)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
