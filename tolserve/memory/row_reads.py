"""The range reads that bring rows, planned before any begins, and the rows on their way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import StoreError
from tolserve.memory.spec import Ids, Rows
from tolserve.memory.threads import Alarm

_GAP_BYTES = 128 << 10
"""Rows of a shard that are this near come with one range, as the table's own reader joins them."""
_SPAN_BYTES = 4 << 20
"""A range ends where its object's next piece of this size begins, so that long ones are read side by side."""


@dataclass(frozen=True, kw_only=True)
class RowRead:
    """One range of one object: the rows of `ids[places]` in `band`."""

    band: int
    places: NDArray[np.int64]


def plan_row_reads(layouts: Mapping[int, Any], ids: Ids) -> list[RowRead]:
    """The reads that bring the rows of `ids` in the bands of `layouts` (`tolbuild.table.layout.RowLayout` by band)."""
    reads: list[RowRead] = []
    if len(ids) == 0:
        return reads
    for band, layout in layouts.items():
        shards, starts = layout.locate(ids)
        order = np.lexsort((starts, shards))
        shards, starts = shards[order], starts[order]
        apart = (np.diff(starts) > layout.row_bytes + _GAP_BYTES) | (np.diff(shards) != 0)
        apart |= np.diff(starts // _SPAN_BYTES) != 0
        reads += [RowRead(band=band, places=part) for part in np.split(order, np.flatnonzero(apart) + 1)]
    return reads


class RowReads:
    """Rows on their way; made by `ObjectRows.start`.

    Attributes:
        arrived: by band, set when its rows have come, or with the error that ended the reads: a StoreError or a
            TableCorruptError.
        done: the same for all bands.
        moved_at: when the last of its reads began or was answered; `begun` tells whether any has.
    """

    def __init__(self, reads: list[RowRead], bands: tuple[int, ...]) -> None:
        self.arrived: dict[int, Future[None]] = {band: Future() for band in bands}
        self.done: Future[None] = Future()
        self.moved_at = time.monotonic()
        self.begun = False
        self.alarm: Alarm | None = None
        self._lock = threading.Lock()
        self._left = Counter(read.band for read in reads)
        self._came: dict[int, list[tuple[NDArray[np.int64], Rows]]] = {band: [] for band in bands}
        self._futures: list[Future[Rows]] = []
        self._open = set(bands)
        self._over = False
        if not reads:
            for band in bands:
                self._arrive(band)

    @property
    def num_left(self) -> int:
        """Reads that have not come."""
        return sum(self._left.values())

    def began(self) -> None:
        """One of its reads begins."""
        self.begun = True
        self.moved_at = time.monotonic()

    def watch(self, read: RowRead, future: Future[Rows]) -> None:
        """`future` brings the rows of `read`."""
        self._futures.append(future)
        future.add_done_callback(partial(self._take, read))
        if self._over:
            future.cancel()

    def take(self, band: int, out: Rows) -> None:
        """Wait for the rows of `band` and copy them into `out`, uint8 [ids, row_bytes].

        Raises:
            StoreError: the store failed, or the deadline passed.
            TableCorruptError: a row is not what its checksum says.
        """
        self.arrived[band].result()
        for places, rows in self._came[band]:
            out[places] = rows

    def fail(self, error: BaseException) -> bool:
        """Give up with `error`; False where it is over already."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            missing, self._open = self._open, set()
        self._end()
        for band in missing:
            self.arrived[band].set_exception(error)
        self.done.set_exception(error)
        return True

    def cancel(self) -> None:
        """The rows are wanted no more."""
        self.fail(StoreError("the rows are wanted no more"))

    def _take(self, read: RowRead, future: Future[Rows]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self.fail(error)
            return
        self.moved_at = time.monotonic()
        with self._lock:
            self._came[read.band].append((read.places, future.result()))
            self._left[read.band] -= 1
            whole = self._left[read.band] == 0
        if whole:
            self._arrive(read.band)

    def _arrive(self, band: int) -> None:
        with self._lock:
            if self._over:
                return
            self._open.discard(band)
            is_last = self._over = not self._open
        self.arrived[band].set_result(None)
        if is_last:
            self._end()
            self.done.set_result(None)

    def _end(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
        for future in list(self._futures):
            future.cancel()
