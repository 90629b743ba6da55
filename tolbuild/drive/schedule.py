"""Which cell a free worker should take next: dependencies, little data lying about, and the same layer where it can.

Plain bookkeeping without threads or time; the executors call it from one thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tolbuild.grid import Cell, FitCell, RanksCell, ShardCell, SumCell
from tolbuild.plan import Plan

MAX_ATTEMPTS = 4
"""Times that one cell may lose its worker before the cell itself is held to be the cause."""


class Schedule:
    """The cells that are left of a plan.

    Later stages go first, so that spooled rows are used up soon after they were made. Among equals a worker keeps to
    the layer or band that it has loaded, and a new worker takes the one with the fewest workers on it.
    """

    def __init__(self, plan: Plan, done: Iterable[Cell] = ()) -> None:
        finished = set(done)
        shards = [cell for cell in plan.shard_cells() if cell not in finished]
        fits = [cell for cell in plan.fit_cells() if cell not in finished]
        sums = [cell for cell in plan.sum_cells() if cell not in finished and FitCell(cell.layer) in fits]
        self._ready: list[Cell] = []
        self._waiting: dict[Cell, set[Cell]] = {}
        self._running: dict[Cell, str] = {}
        self._last_place: dict[str, int] = {}
        self._attempts: Counter[Cell] = Counter()
        ranks = [cell for cell in plan.ranks_cells() if cell not in finished]
        scales = [cell for cell in plan.scale_cells() if cell not in finished]
        self.total: tuple[Cell, ...] = (*sums, *fits, *ranks, *scales, *shards)
        left = set(self.total)
        for cell in self.total:
            missing = {need for need in plan.needs(cell) if need in left}
            if missing:
                self._waiting[cell] = missing
            else:
                self._ready.append(cell)

    @property
    def num_left(self) -> int:
        """Cells not finished yet, running ones included."""
        return len(self._ready) + len(self._waiting) + len(self._running)

    def take(self, worker: str) -> Cell | None:
        """A cell for a worker, now counted as running, or None while every cell left waits for another or runs."""
        if not self._ready:
            return None
        busy = Counter(self._place(cell) for cell in self._running)
        mine = self._last_place.get(worker)
        best = min(self._ready, key=lambda cell: self._preference(cell, mine, busy))
        self._ready.remove(best)
        self._running[best] = worker
        self._last_place[worker] = self._place(best)
        return best

    def finish(self, cell: Cell) -> None:
        """Count a running cell as done and free what waited for it."""
        del self._running[cell]
        for waiter in [w for w, missing in self._waiting.items() if cell in missing]:
            self._waiting[waiter].discard(cell)
            if not self._waiting[waiter]:
                del self._waiting[waiter]
                self._ready.append(waiter)

    def lose(self, worker: str) -> list[Cell]:
        """Put a dead worker's cells back; returns them.

        Raises:
            RuntimeError: a cell has now lost its worker as often as is borne.
        """
        lost = [cell for cell, owner in self._running.items() if owner == worker]
        for cell in lost:
            del self._running[cell]
            self._attempts[cell] += 1
            if self._attempts[cell] >= MAX_ATTEMPTS:
                raise RuntimeError(f"{cell.name} has lost its worker {MAX_ATTEMPTS} times; it is not tried again")
            self._ready.append(cell)
        self._last_place.pop(worker, None)
        return lost

    def _preference(self, cell: Cell, mine: int | None, busy: Counter[int]) -> tuple[int, bool, int, tuple[int, ...]]:
        stage = 0 if isinstance(cell, ShardCell) else 2 if isinstance(cell, SumCell) else 1
        place = self._place(cell)
        return stage, place != mine, busy[place], _order(cell)

    def _place(self, cell: Cell) -> int:
        """What a worker has to load for a cell: the layer, or for codes the band's (numbered below zero)."""
        if isinstance(cell, RanksCell):
            return 0
        return -1 - cell.band if isinstance(cell, ShardCell) else cell.layer


def _order(cell: Cell) -> tuple[int, ...]:
    if isinstance(cell, ShardCell):
        return cell.band, cell.shard
    if isinstance(cell, RanksCell):
        return ()
    return (cell.layer, cell.segment) if isinstance(cell, SumCell) else (cell.layer,)
