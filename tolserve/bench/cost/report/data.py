"""Reading a result for the page: points with the means of their sweeps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tolserve.bench.cost.point import EngineName, Point, base


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point and what its sweeps measured."""

    name: str
    point: Point
    sweeps: Sequence[dict[str, Any]]
    predicted: dict[str, float] | None

    def mean(self, *path: str) -> float | None:
        """The mean over the sweeps of a figure at a path; None where one has none."""
        values = [_find(sweep, path) for sweep in self.sweeps]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    def price(self, against: str) -> tuple[float, float, float]:
        """Mean, low and high of a price: from the lowest bound of the sweeps' 95 % intervals to the highest."""
        prices = [sweep["price"][against] for sweep in self.sweeps]
        low, high = min(one["low"] for one in prices), max(one["high"] for one in prices)
        return statistics.fmean(one["mean"] for one in prices), low, high

    def device_share(self) -> float:
        """Bytes of rows on the device over all bytes of rows."""
        held = self.sweeps[0]["resident_bytes"]
        total = max(held["host"], held["disk"], sum(held["memory_nodes"]), held["attention_node"])
        return float(held["attention_node"]) / total if total else 0.0


class Run:
    """A whole result."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.points = [
            Measured(
                name=one["name"],
                point=Point.from_dict(one["settings"]),
                sweeps=one["sweeps"],
                predicted=one["predicted"],
            )
            for one in result["points"]
            if one["sweeps"]
        ]
        self._by_name = {one.name: one for one in self.points}

    def find(self, point: Point) -> Measured | None:
        """What was measured of a point, whatever factor it was measured for."""
        return self._by_name.get(point.name)

    def base(self, engine: EngineName) -> Measured | None:
        """The base point of an engine."""
        return self.find(base(engine))

    def along(self, engine: EngineName, field: str, **fixed: Any) -> list[Measured]:
        """The points that differ from the base in `field` and are otherwise `fixed`, in its order."""
        usual = vars(base(engine)) | fixed
        found = [
            one
            for one in self.points
            if all(vars(one.point)[name] == value for name, value in usual.items() if name not in ("factor", field))
        ]
        return sorted(found, key=lambda one: getattr(one.point, field))

    def ladder(self) -> Iterator[Measured]:
        """The points of the ladder of measures, in its order; none where one was not measured."""
        from tolserve.bench.cost.matrix import measures

        found = [self.find(point) for point in measures([one.point.link for one in self.points])]
        yield from [one for one in found if one is not None] if all(found) else []


def _find(values: Any, path: Sequence[str]) -> float | None:
    for name in path:
        values = None if values is None else values.get(name)
    return None if values is None else float(values)
