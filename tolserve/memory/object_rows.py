"""Rows read from where the table is stored, when they are asked for: in parallel, hedged, checked, with a deadline.

`ObjectRows` reads; `ObjectFetcher` makes it the place where an attention node's rows come from, with no memory node in
between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import StoreError
from tolserve.memory.hedge import HedgedReads, ReadConfig
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.memory.threads import Alarm, Clock

_GAP_BYTES = 128 << 10
"""Rows of a shard that are this near come with one range, as the table's own reader joins them."""
_SPAN_BYTES = 4 << 20
"""A range ends where its object's next piece of this size begins, so that long ones are read side by side."""
_LEAST_DEADLINE_S = 1.0
"""What a fetch waits at least, in an outage that has lasted longer than the deadline."""
_CLOSING_S = 1.0


def open_object_rows(url: str, *, version: int | None = None, config: ReadConfig | None = None) -> ObjectRows:
    """The rows of a published table, whose store gives up on a read about when its deadline passes.

    Raises:
        ValueError, ToLError: as `tolbuild.table.open_table`.
    """
    from tolbuild.table import open_table

    chosen = config or ReadConfig()
    return ObjectRows(open_table(url, version=version, wait_s=chosen.deadline_s), chosen)


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

    `done` is set when all have come, or with the error that ended it: a StoreError or a TableCorruptError.
    """

    def __init__(self, reads: list[RowRead], bands: tuple[int, ...]) -> None:
        self.done: Future[None] = Future()
        self.alarm: Alarm | None = None
        self._changed = threading.Condition()
        self._left = dict.fromkeys(bands, 0)
        for read in reads:
            self._left[read.band] += 1
        self._num_left = len(reads)
        self._came: dict[int, list[tuple[NDArray[np.int64], Rows]]] = {band: [] for band in bands}
        self._futures: list[Future[Rows]] = []
        self._error: BaseException | None = None
        self._over = False
        if not reads:
            self._end(None)

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
        with self._changed:
            self._changed.wait_for(lambda: self._left[band] == 0 or self._over)
            if self._left[band]:
                raise self._error or StoreError("the rows are wanted no more")
            came = self._came[band]
        for places, rows in came:
            out[places] = rows

    def fail(self, error: BaseException) -> bool:
        """Give up with `error`; False where it is over already."""
        return self._end(error)

    def cancel(self) -> None:
        """The rows are wanted no more."""
        self._end(StoreError("the rows are wanted no more"))

    @property
    def num_left(self) -> int:
        """Reads that have not come."""
        return self._num_left

    def _take(self, read: RowRead, future: Future[Rows]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._end(error)
            return
        with self._changed:
            self._came[read.band].append((read.places, future.result()))
            self._left[read.band] -= 1
            self._num_left -= 1
            if self._left[read.band] == 0:
                self._changed.notify_all()
        if self._num_left == 0:
            self._end(None)

    def _end(self, error: BaseException | None) -> bool:
        with self._changed:
            if self._over:
                return False
            self._over = True
            self._error = error
            self._changed.notify_all()
        if self.alarm is not None:
            self.alarm.cancel()
        for future in list(self._futures):
            future.cancel()
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
        return True


class ObjectRows:
    """Reads rows of an open `tolbuild.table.Table`, which it closes in the end. Any thread may use it.

    Every row is compared with its checksum. What a fetch waits for is bounded by `config.deadline_s`, and less in an
    outage: whoever waits for the store waits together.
    """

    def __init__(self, table: Any, config: ReadConfig | None = None) -> None:
        self.spec = RowSpec.from_manifest(table.manifest)
        self.config = config or ReadConfig()
        self._table = table
        self._layouts = {band.index: band.layout for band in table.manifest.bands}
        self._clock = Clock("row-deadlines")
        self._reads = HedgedReads(self.config, self._clock)
        self._failing_since: float | None = None
        self._lock = threading.Lock()
        self._num_bytes = self._num_late = 0

    def start(self, ids: Ids, bands: tuple[int, ...]) -> RowReads:
        """Ask for the rows of distinct `ids` in `bands`; returns at once."""
        began = time.monotonic()
        plan = plan_row_reads({band: self._layouts[band] for band in bands}, ids)
        rows = RowReads(plan, bands)
        if not plan:
            return rows
        patience_s = self._patience_s(began)
        rows.alarm = self._clock.at(began + patience_s, lambda: self._late(rows, len(ids), len(plan), patience_s))
        for read in plan:
            rows.watch(read, self._reads.submit(partial(self._read, read.band, ids[read.places])))
        return rows

    def stats(self) -> dict[str, float]:
        """What was read, for metrics: the fields of `ReadCounters`, `num_bytes` of rows, and fetches given up late."""
        return {**asdict(self._reads.counters), "num_bytes": self._num_bytes, "num_late": self._num_late}

    def close(self) -> None:
        """Read no more; the table is closed where no read hangs in it, else it goes with the process."""
        self._clock.close()
        if self._reads.close(_CLOSING_S):
            self._table.close()

    def _read(self, band: int, ids: Ids) -> Rows:
        rows = np.empty((len(ids), self.spec.bands[band].row_bytes), np.uint8)
        began = time.monotonic()
        try:
            self._table.codes_into(ids, band, rows)
        except StoreError:
            self._failing(began)
            raise
        self._failing_since = None
        with self._lock:
            self._num_bytes += rows.nbytes
        return rows

    def _failing(self, since: float) -> None:
        if self._failing_since is None:
            self._failing_since = since

    def _patience_s(self, now: float) -> float:
        since, deadline_s = self._failing_since, self.config.deadline_s
        return deadline_s if since is None else max(deadline_s - (now - since), min(_LEAST_DEADLINE_S, deadline_s))

    def _late(self, rows: RowReads, num_ids: int, num_reads: int, after_s: float) -> None:
        error = StoreError(
            f"{self._table.url}: {rows.num_left} of {num_reads} reads for the rows of {num_ids} tokens were not "
            f"answered within {after_s:.3g} s: the store is slow or down; try again, or give it a longer deadline"
        )
        if rows.fail(error):
            self._failing(time.monotonic() - after_s)
            with self._lock:
                self._num_late += 1


@dataclass(kw_only=True, eq=False, slots=True)
class ObjectFetch:
    """Rows being read and where they go; see `RowFetcher.request`."""

    rows: RowReads
    out: dict[int, memoryview]
    order: NDArray[np.int64] | None = None


class ObjectFetcher:
    """A `RowFetcher` over an `ObjectRows`, which it closes."""

    tier = "store"

    def __init__(self, rows: ObjectRows) -> None:
        self.spec: RowSpec = rows.spec
        self.rows = rows

    def request(self, ids: Ids, bands: tuple[int, ...]) -> ObjectFetch:
        """See `RowFetcher.request`; the reads begin."""
        return ObjectFetch(rows=self.rows.start(ids, bands), out={})

    def receive(self, fetch: ObjectFetch, out: Mapping[int, memoryview]) -> None:
        """See `RowFetcher.receive`."""
        fetch.out.update(out)

    def arrive(self, fetch: ObjectFetch, band: int) -> None:
        """See `RowFetcher.arrive`.

        Raises:
            StoreError: the store failed or did not answer before the deadline.
            TableCorruptError: a row is not what its checksum says.
        """
        view = fetch.out.pop(band, None)
        if view is not None:
            fetch.rows.take(band, np.frombuffer(view, np.uint8).reshape(-1, self.spec.bands[band].row_bytes))

    def drop(self, fetch: ObjectFetch) -> None:
        """See `RowFetcher.drop`."""
        fetch.out.clear()
        fetch.rows.cancel()

    def close(self) -> None:
        """Read no more."""
        self.rows.close()
