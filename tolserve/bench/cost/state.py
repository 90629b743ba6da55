"""The result file: written after every measurement, read by a run that goes on where another was interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tolserve.bench.cost.point import Point

NUM_SWEEPS = 2


class Results:
    """Points with what was measured of them, by sweep, in the file `path`.

    Args:
        key: what the run is of; a file of another key is not gone on with.

    Attributes:
        finished: whether nothing is left to measure.

    Raises:
        ValueError: the file holds an unfinished run of another key, or is no result of this bench.
    """

    def __init__(self, path: Path, points: Sequence[Point], key: dict[str, Any], *, fresh: bool) -> None:
        self.path = path
        self.points = list(points)
        self.key = key
        self.about: dict[str, Any] = {}
        self.finished = False
        self._sweeps: dict[str, list[dict[str, Any]]] = {point.name: [] for point in points}
        self._predicted: dict[str, dict[str, float]] = {}
        if path.exists() and not fresh:
            self._resume(path)

    @property
    def num_kept(self) -> int:
        """Measurements that there are."""
        return sum(map(len, self._sweeps.values()))

    def finish(self) -> None:
        """Nothing is left to measure: another run of the same begins anew."""
        self.finished = True
        self.write()

    def left(self) -> list[tuple[int, Point]]:
        """What is to be measured, in order: a whole sweep, then the next."""
        return [(n, point) for n in range(NUM_SWEEPS) for point in self.points if len(self._sweeps[point.name]) <= n]

    def is_predicted(self, point: Point) -> bool:
        """Whether there is a prediction of it."""
        return point.name in self._predicted

    def predict(self, point: Point, predicted: dict[str, float]) -> None:
        """Keep what the cost model says of a point: `step_us`, `stall_us`."""
        self._predicted[point.name] = predicted

    def add(self, point: Point, figures: dict[str, Any]) -> None:
        """Keep what a sweep measured of a point."""
        self._sweeps[point.name].append(figures)
        self.write()

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        points = [
            {
                "name": point.name,
                "settings": point.to_dict(),
                "sweeps": self._sweeps[point.name],
                "predicted": self._predicted.get(point.name),
            }
            for point in self.points
        ]
        return {"bench": "cost", "key": self.key, "finished": self.finished, **self.about, "points": points}

    def write(self) -> None:
        """Replace the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        part.replace(self.path)

    def _resume(self, path: Path) -> None:
        try:
            kept = json.loads(path.read_text())
            same = kept["key"] == json.loads(json.dumps(self.key))
            finished = kept["finished"]
            sweeps = {point["name"]: point["sweeps"] for point in kept["points"]}
            predicted = {point["name"]: point["predicted"] for point in kept["points"] if point["predicted"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of this bench ({error!r}); choose another --out") from error
        if finished:
            return
        if not same:
            other = sorted(name for name in self.key if kept["key"].get(name) != json.loads(json.dumps(self.key[name])))
            raise ValueError(
                f"{path} holds an unfinished run of other settings ({', '.join(other) or 'more of them'}); --fresh "
                "replaces it"
            )
        self.about = {name: kept[name] for name in kept if name not in ("bench", "key", "finished", "points")}
        self._predicted = predicted
        for name in self._sweeps:
            self._sweeps[name] = sweeps.get(name, [])
