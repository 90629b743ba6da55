"""Workers at the cells of a schedule: the loop that hands them out, and the pool of threads that needs no cluster."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tolbuild.build import IN_FLIGHT, CellReport, Worker
from tolbuild.drive.schedule import Schedule
from tolbuild.grid import Cell


@dataclass(frozen=True)
class WorkerLost:
    """A worker ended without an answer; its cells are to be given to others."""

    worker: str
    reason: str


Event = CellReport | WorkerLost


class Pool(Protocol):
    """Workers that each hold at most IN_FLIGHT cells."""

    num_workers: int

    def free(self) -> list[str]:
        """A name for each cell that can be taken now, the least busy worker first."""

    def submit(self, worker: str, cell: Cell) -> None:
        """Give a worker a cell."""

    def wait(self, timeout_s: float) -> list[Event]:
        """What has happened, waiting up to `timeout_s` for the first thing.

        Raises:
            ToLError, ValueError: what a cell failed with; it is not retried, since it would fail again.
        """

    def waits_for(self) -> str:
        """What workers wait for while none is ready, in words; empty once one is."""

    def close(self, *, stopped: bool) -> None:
        """Let the workers end, at the next chunk when `stopped`, and remove what they spooled."""


@contextmanager
def closing(pool: Pool) -> Iterator[Pool]:
    """Close a pool however the block ends; on an exception, interruption included, its workers stop where they are."""
    try:
        yield pool
    except BaseException:
        pool.close(stopped=True)
        raise
    pool.close(stopped=False)


def run_schedule(
    schedule: Schedule, pool: Pool, on_event: Callable[[Event], None], on_tick: Callable[[], None]
) -> None:
    """Run every cell of the schedule, telling `on_event` of each finished cell and each lost worker.

    Args:
        on_tick: called once a second or more often, whatever happens.

    Raises:
        RuntimeError: a cell has lost its worker too often.
    """
    while schedule.num_left:
        for worker in pool.free():
            cell = schedule.take(worker)
            if cell is None:
                break
            pool.submit(worker, cell)
        for event in pool.wait(1.0):
            if isinstance(event, WorkerLost):
                schedule.lose(event.worker)
            else:
                schedule.finish(event.cell)
            on_event(event)
        on_tick()


class ThreadPool:
    """`num_workers` threads' worth of computing in this process; one kernel thread each."""

    def __init__(self, runner: Worker, num_workers: int) -> None:
        self.num_workers = num_workers
        self._runner = runner
        self._threads = ThreadPoolExecutor(num_workers * IN_FLIGHT, thread_name_prefix="cell")
        self._futures: dict[Future[CellReport], str] = {}
        self._names = [f"thread {index}" for index in range(num_workers)]

    def free(self) -> list[str]:
        """See Pool."""
        return free_slots(self._names, self._futures.values())

    def submit(self, worker: str, cell: Cell) -> None:
        """See Pool."""
        self._futures[self._threads.submit(self._runner.run, cell, worker)] = worker

    def wait(self, timeout_s: float) -> list[Event]:
        """See Pool."""
        done, _ = wait(self._futures, timeout=timeout_s, return_when=FIRST_COMPLETED)
        for future in done:
            del self._futures[future]
        return [future.result() for future in done]

    def waits_for(self) -> str:
        """Nothing; see Pool."""
        return ""

    def close(self, *, stopped: bool) -> None:
        """See Pool."""
        if stopped:
            self._runner.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._runner.close()


def free_slots(names: Iterable[str], held: Iterable[str]) -> list[str]:
    """A name for each free place, given a name for each taken; first places of all before second ones."""
    taken = Counter(held)
    places = ((place, name) for place, name in itertools.product(range(IN_FLIGHT), names) if place >= taken[name])
    return [name for _, name in sorted(places, key=lambda item: item[0])]
