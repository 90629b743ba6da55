"""Going over the matrix twice: the points of one engine after another, each measured in turn with its references."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tolserve.bench.cost import paced, real
from tolserve.bench.cost.calibrate import bare_socket, reached
from tolserve.bench.cost.engines import Models
from tolserve.bench.cost.material import Materials
from tolserve.bench.cost.nodes import Fleet, held_by, start, wanted_of
from tolserve.bench.cost.objects import Objects
from tolserve.bench.cost.places import PLACES, Asked
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.predict import Predictor
from tolserve.bench.cost.prices import Rents, Slo
from tolserve.bench.cost.state import NUM_SWEEPS, Results
from tolserve.bench.cost.streams import Streams
from tolserve.bench.cost.terminal import Progress
from tolserve.bench.paced_rows import measure_paced
from tolserve.bench.peers import own_cores
from tolserve.bench.streams import TokenStream
from tolserve.transport.link import Address


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a point is measured in one sweep: steps of the paced engine, rounds of a real one, seconds of either.

    calibration_rounds: fetches that the cost model times of each number of rows.
    """

    num_pairs: int
    num_rounds: int
    limit_s: float
    calibration_rounds: int


QUICK = Effort(num_pairs=100, num_rounds=5, limit_s=0.8, calibration_rounds=20)
FULL = Effort(num_pairs=600, num_rounds=30, limit_s=8.0, calibration_rounds=100)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about a run but its points.

    Attributes:
        work: folder of streams and tables, kept for later runs.
        memory_nodes: addresses of nodes on other hosts.
        links: by name the host at which these are reached.
        bare_socket_port: of a bare socket at every link's host, to calibrate with; None does not.
    """

    full: bool
    data: Path
    work: Path
    rents: Rents = field(default_factory=Rents)
    slo: Slo = field(default_factory=Slo)
    memory_nodes: tuple[Address, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    bare_socket_port: int | None = None

    @property
    def effort(self) -> Effort:
        """Of each point and sweep."""
        return FULL if self.full else QUICK


class Runner:
    """What points are measured with; heavy parts are made when a point needs them."""

    def __init__(self, setting: Setting, core: int | None) -> None:
        self._setting = setting
        self.fleet = Fleet(core, setting.memory_nodes, setting.links)
        setting.work.mkdir(parents=True, exist_ok=True)
        self._objects = Objects(setting.work, core)
        self._materials = Materials(setting.work)
        self._models = Models(self._materials)
        self._streams = Streams(setting.data, setting.work)
        self._predictor = Predictor(rounds=setting.effort.calibration_rounds, known={})

    def measure(self, point: Point) -> dict[str, Any]:
        """One sweep's figures of a point."""
        effort, rents, slo = self._setting.effort, self._setting.rents, self._setting.slo
        asked, stream = self._asked(point)
        link = {"link_reached": reached(asked)} if point.is_networked else {}
        if point.engine == "paced":
            figures = paced.measure(
                asked, stream, num_pairs=effort.num_pairs, limit_s=effort.limit_s, rents=rents, slo=slo
            )
        else:
            figures = real.measure(
                asked,
                stream,
                self._models,
                self._materials,
                num_rounds=effort.num_rounds,
                limit_s=effort.limit_s,
                rents=rents,
                slo=slo,
            )
        return figures | link

    def predict(self, point: Point) -> dict[str, float]:
        """What the cost model says of a paced point."""
        return self._predictor.predict(*self._asked(point), num_steps=self._setting.effort.num_pairs)

    def _asked(self, point: Point) -> tuple[Asked, TokenStream]:
        """A point with what it is measured with, and its stream."""
        stream = self._streams.get(point.stream)
        asked = Asked(
            point=point,
            material=self._materials.get(point),
            fleet=self.fleet,
            objects=self._objects,
            counts=stream.counts,
        )
        return asked, stream

    def close(self) -> None:
        """End nodes and object stores, close tables."""
        self.fleet.close()
        self._objects.close()
        self._materials.close()


def absent(points: list[Point]) -> dict[str, str]:
    """Why points cannot be measured on this machine, by name; most can."""
    reasons = {point.name: PLACES[point.place].missing(point) for point in points if point.place in PLACES}
    return {name: reason for name, reason in reasons.items() if reason}


def servable(setting: Setting, points: list[Point]) -> tuple[list[Point], list[Point]]:
    """The points that the given nodes can serve or that need none of them, and the others.

    Raises:
        NodeError: a given node does not answer.
    """
    held = set(held_by(setting.memory_nodes).values())
    materials = Materials(setting.work)

    def is_served(point: Point) -> bool:
        if point.link == "loopback":
            return True
        spec = materials.get(point).spec
        return all(wanted_of(spec, index, point.num_nodes) in held for index in range(point.num_nodes))

    served = [point for point in points if is_served(point)]
    return served, [point for point in points if point not in served]


def calibrate(setting: Setting, core: int | None) -> dict[str, dict[str, float]]:
    """Every link by a bare socket, before rows pass it."""
    with start({"kind": "socket", "core": core}) as address:
        found = {"loopback": bare_socket(address)}
    for name, host in setting.links.items():
        if setting.bare_socket_port is not None:
            found[name] = bare_socket((host or setting.memory_nodes[0][0], setting.bare_socket_port))
    return found


def sweep(setting: Setting, results: Results) -> None:
    """Measure what is left of `results`; each measurement is kept as soon as it is made."""
    with _quiet() as core:
        if "links" not in results.about:
            results.about["links"] = calibrate(setting, core)
        runner = Runner(setting, core)
        try:
            progress = Progress(NUM_SWEEPS * len(results.points), results.num_kept)
            for _, point in results.left():
                if point.engine == "paced" and not results.is_predicted(point):
                    results.predict(point, runner.predict(point))
                figures = runner.measure(point)
                results.add(point, figures)
                progress.say(point.name, figures)
        finally:
            runner.close()
    results.write()


def measure_overhead(setting: Setting, results: Results) -> None:
    """Add `paced_overhead` of `bench rows`, on the same cores, where paced points were measured and it is not there."""
    if "paced_overhead" in results.about or not any(point.engine == "paced" for point in results.points):
        return
    print("paced_overhead, as `bench rows` measures it:", flush=True)
    with _quiet() as core:
        found = measure_paced(core, quick=not setting.full, barred_only=True)
        results.about["paced_overhead"] = found["paced_overhead"]


@contextmanager
def _quiet() -> Iterator[int | None]:
    """This process on a core of its own, with one thread a kernel and no garbage collector; gives its nodes' core."""
    here, there = own_cores()
    before, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    if here is not None:
        os.sched_setaffinity(0, {here})
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    try:
        yield there
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(num_threads)
        gc.unfreeze()
