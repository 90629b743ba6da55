"""What tests of interrupted builds share: a build that stops after so many cells, and what it has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build_kit import receipts

from tolbuild.build import WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table, thread_pool
from tolbuild.drive.pool import Event, Pool
from tolbuild.grid import Cell


class Interrupting:
    """A real pool that reports so many events and is then interrupted, as by Ctrl-C."""

    def __init__(self, pool: Pool, num_events: int) -> None:
        self._pool = pool
        self._left = num_events
        self.num_workers = pool.num_workers
        self.submitted: list[Cell] = []

    def free(self) -> list[str]:
        return self._pool.free()

    def submit(self, worker: str, cell: Cell) -> None:
        self.submitted.append(cell)
        self._pool.submit(worker, cell)

    def wait(self, timeout_s: float) -> list[Event]:
        events = self._pool.wait(timeout_s)
        self._left -= len(events)
        if self._left <= 0:
            raise KeyboardInterrupt
        return events

    def waits_for(self) -> str:
        return self._pool.waits_for()

    def close(self, *, stopped: bool) -> None:
        self._pool.close(stopped=stopped)


def build_interrupted(config: BuildConfig, num_events: int) -> Interrupting | None:
    """Build until so many cells are done; None where the build ended before."""
    seen: list[Interrupting] = []

    @contextmanager
    def open_pool(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
        with thread_pool(config, order) as pool:
            seen.append(Interrupting(pool, num_events))
            yield seen[0]

    try:
        build_table(config, open_pool)
    except KeyboardInterrupt:
        return seen[0]
    return None


def finished_cells(table: Path) -> set[str]:
    """Names of the cells that left a receipt or a partial result."""
    shards = {f"{path.parent.name}-shard-{path.stem}" for path in receipts(table)}
    return shards | {path.name for path in table.glob("_build/*/*-*") if path.parent.name != "tmp"}
