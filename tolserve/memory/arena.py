"""Memory that rows lie in: one pool a band at a fixed address, staging rows first, cache slots behind them."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tolserve.memory.spec import Ids, Index, Rows, RowSpec


class Arena(Protocol):
    """Pools of a source. Received bytes pass through an inbox, which on a host is the pool itself."""

    def pool(self, band: int) -> Any:
        """uint8 [rows, row_bytes]."""

    def inbox(self, band: int, start: int, stop: int) -> memoryview:
        """Bytes to receive staging rows [start, stop) of `band` into."""

    def deliver(self, band: int, start: int, stop: int) -> None:
        """What the inbox holds of these rows is in the pool for whatever reads the pool from now on."""

    def reclaim(self, start: int, stop: int) -> None:
        """The inbox of these staging rows may be written again when this returns."""

    def move(self, band: int, sources: Ids, targets: Ids) -> None:
        """Copy rows of a pool to other places of it."""

    def gather(self, band: int, index: Index) -> Any:
        """Rows `index` of a pool, one after another."""


def empty_rows(num_rows: int, row_bytes: int, *, huge_pages: bool = False) -> Rows:
    """Zeroed uint8 [num_rows, row_bytes] in pages that the system gives when they are first touched.

    `huge_pages` asks for large ones, which a system may decline.
    """
    length = num_rows * row_bytes
    if length == 0:
        return np.zeros((num_rows, row_bytes), np.uint8)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            huge_pages = False
    return np.frombuffer(memory, np.uint8).reshape(num_rows, row_bytes)


class HostArena:
    """Pools in this process's memory; a band without cache slots has its staging rows only."""

    def __init__(self, spec: RowSpec, *, num_staging: int, slots: Mapping[int, int]) -> None:
        self._pools = {
            band.index: empty_rows(num_staging + slots.get(band.index, 0), band.row_bytes, huge_pages=True)
            for band in spec.bands
        }
        self._views = {band: memoryview(pool.reshape(-1)) for band, pool in self._pools.items()}
        self._row_bytes = [band.row_bytes for band in spec.bands]

    def pool(self, band: int) -> Rows:
        """uint8 [rows, row_bytes]."""
        return self._pools[band]

    def inbox(self, band: int, start: int, stop: int) -> memoryview:
        """The rows themselves: what is received is in place."""
        row_bytes = self._row_bytes[band]
        return self._views[band][start * row_bytes : stop * row_bytes]

    def deliver(self, band: int, start: int, stop: int) -> None:
        """Nothing to do: the inbox is the pool."""

    def reclaim(self, start: int, stop: int) -> None:
        """Nothing to wait for."""

    def move(self, band: int, sources: Ids, targets: Ids) -> None:
        """Copy rows of a pool to other places of it."""
        pool = self._pools[band]
        pool[targets] = pool[sources]

    def gather(self, band: int, index: Index) -> Rows:
        """Rows `index` of a pool; without a copy where they lie one after another."""
        pool = self._pools[band]
        if len(index) and int(index[-1]) - int(index[0]) == len(index) - 1 and bool((np.diff(index) == 1).all()):
            return pool[int(index[0]) : int(index[-1]) + 1]
        return pool.take(index, axis=0)


class StagingRows:
    """Which of `num_rows` staging rows are taken; the lowest free stretch that is long enough is given."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._taken: list[tuple[int, int]] = []

    @property
    def num_taken(self) -> int:
        """Rows taken."""
        return sum(stop - start for start, stop in self._taken)

    def take(self, count: int) -> int | None:
        """First row of a free stretch of `count`; None where there is none."""
        start = 0
        for index, (taken, stop) in enumerate(self._taken):
            if taken - start >= count:
                self._taken.insert(index, (start, start + count))
                return start
            start = stop
        if self.num_rows - start < count:
            return None
        self._taken.append((start, start + count))
        return start

    def give_back(self, start: int, count: int) -> None:
        """A stretch that `take` gave is free again."""
        self._taken.remove((start, start + count))
