"""A pool of Ray actors, one worker each, on whatever nodes have room; a lost one is replaced."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from tolbuild.build import IN_FLIGHT, CellReport, Worker, WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive.pool import Event, Pool, WorkerLost, closing, free_slots
from tolbuild.grid import Cell
from tolbuild.on_ray.connect import NoClusterError, Resources, claim

MAX_DEATHS_IN_A_ROW = 6
"""Workers that may die one after another without a finished cell before the cluster is held to be unfit."""

STOP_S = 2.0
"""Time that workers get to clean up when stopped: Ray kills a stopped job after 3 s."""

END_S = 20.0
"""The same at the end of a build."""


@contextmanager
def ray_pool(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
    """Workers on the connected cluster, as many as the config asks for and the cluster holds.

    Raises:
        NoClusterError: the cluster has not what the config asks for.
    """
    resources = claim(config.device, config.workers)
    with closing(RayPool(replace(order, device=resources.device), resources)) as pool:
        yield pool


class WorkerActor:
    """One worker in a process of its own. Calls of the group `control` get through while cells run."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    @ray.method(concurrency_group="control")
    def start(self, order: WorkOrder) -> None:
        """Make the worker; not in `__init__`, so that a wrong checkpoint is an answer and not a dead actor."""
        self._worker = Worker(order)

    def run(self, cell: Cell, name: str) -> CellReport:
        """See tolbuild.build.Worker.run."""
        assert self._worker is not None
        return self._worker.run(cell, name)

    @ray.method(concurrency_group="control")
    def end(self, stopped: bool) -> None:
        """Leave nothing behind; when `stopped`, cells end at their next chunk."""
        if self._worker is not None:
            if stopped:
                self._worker.stop()
            self._worker.close()


class RayPool:
    """Workers on a Ray cluster. They join as the cluster starts them, and a dead one is replaced.

    Results go from worker to store; only small reports come back here.
    """

    def __init__(self, order: WorkOrder, resources: Resources) -> None:
        self.num_workers = resources.num_workers
        self._order = order
        self._resources = resources
        self._serial = itertools.count(1)
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, str] = {}
        self._calls: dict[Any, str] = {}
        self._deaths = 0
        for _ in range(self.num_workers):
            self._start_worker()

    @property
    def num_ready(self) -> int:
        """Workers that have started and live."""
        return len(self._actors) - len(self._starting)

    def free(self) -> list[str]:
        """See Pool."""
        starting = set(self._starting.values())
        return free_slots([name for name in self._actors if name not in starting], self._calls.values())

    def submit(self, worker: str, cell: Cell) -> None:
        """See Pool."""
        self._calls[self._actors[worker].run.remote(cell, worker)] = worker

    def wait(self, timeout_s: float) -> list[Event]:
        """See Pool."""
        pending = [*self._calls, *self._starting]
        done, _ = ray.wait(pending, num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        return [event for ref in {*done, *more} if (event := self._outcome(ref)) is not None]

    def waits_for(self) -> str:
        """See Pool."""
        if self.num_ready or not self._starting:
            return ""
        kind = "GPU" if self._resources.num_gpus else "CPU"
        free, total = ray.available_resources().get(kind, 0), ray.cluster_resources().get(kind, 0)
        wanted = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
        return (
            f"{wanted} wanted with a {kind} each; of the cluster's {total:g} {kind}s {free:g} are free, and other work "
            "or workers that are starting hold the rest"
        )

    def close(self, *, stopped: bool) -> None:
        """See Pool. A worker that waits for room, as after the loss of a node, may never start: it gets less time."""
        starting = set(self._starting.values())
        ready = [actor.end.remote(stopped) for name, actor in self._actors.items() if name not in starting]
        others = [self._actors[name].end.remote(stopped) for name in starting]
        if stopped:
            _wait_for([*ready, *others], STOP_S)
        else:
            _wait_for(ready, END_S)
            _wait_for(others, STOP_S)
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def _start_worker(self) -> None:
        claim = self._resources
        name = f"worker {next(self._serial)}"
        decorate: Any = ray.remote
        as_actor = decorate(
            num_gpus=claim.num_gpus,
            num_cpus=claim.num_cpus,
            max_concurrency=IN_FLIGHT,
            concurrency_groups={"control": 1},
        )
        actor = as_actor(WorkerActor).remote()
        self._actors[name] = actor
        self._starting[actor.start.remote(self._order)] = name

    def _outcome(self, ref: Any) -> Event | None:
        """What a finished call says; None for a start, or for a call of a worker that is known to be lost."""
        name = self._calls.pop(ref, None) or self._starting.pop(ref, None)
        if name is None or name not in self._actors:
            return None
        try:
            report: CellReport | None = ray.get(ref)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            return self._replace(name, str(error).splitlines()[0])
        if report is not None:
            self._deaths = 0
        return report

    def _replace(self, name: str, reason: str) -> WorkerLost:
        self._deaths += 1
        if self._deaths >= MAX_DEATHS_IN_A_ROW:
            raise NoClusterError(
                f"{self._deaths} workers have died one after another without finishing a cell; the last one: {reason}"
            )
        ray.kill(self._actors.pop(name))
        self._calls = {ref: owner for ref, owner in self._calls.items() if owner != name}
        self._starting = {ref: owner for ref, owner in self._starting.items() if owner != name}
        self._start_worker()
        return WorkerLost(name, reason)


def _wait_for(calls: list[Any], timeout_s: float) -> None:
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
