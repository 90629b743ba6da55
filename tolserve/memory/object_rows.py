"""Rows read from where the table is stored, when they are asked for: in parallel, hedged, checked, with a deadline.

`ObjectRows` reads; `ObjectFetcher` makes it the place where an attention node's rows come from, with no memory node in
between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import StoreError
from tolserve.memory.hedge import HedgedReads, ReadConfig
from tolserve.memory.row_reads import RowReads, plan_row_reads
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.memory.threads import Clock

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


class ObjectRows:
    """Reads rows of an open `tolbuild.table.Table`, which it closes in the end. Any thread may use it.

    Every row is compared with its checksum. A fetch that the store leaves without an answer for `config.deadline_s` has
    failed, sooner in an outage: whoever waits for the store waits together.
    """

    def __init__(self, table: Any, config: ReadConfig | None = None) -> None:
        self.spec = RowSpec.from_manifest(table.manifest)
        self.config = config or ReadConfig()
        self._table = table
        self._layouts = {band.index: band.layout for band in table.manifest.bands}
        self._clock = Clock("row-deadlines")
        self._reads = HedgedReads(self.config, self._clock)
        self._failing_since: float | None = None
        self._answered_at = 0.0
        self._open: set[RowReads] = set()
        self._lock = threading.Lock()
        self._num_bytes = self._num_late = 0

    def start(self, ids: Ids, bands: tuple[int, ...]) -> RowReads:
        """Ask for the rows of distinct `ids` in `bands`; returns at once."""
        began = time.monotonic()
        plan = plan_row_reads({band: self._layouts[band] for band in bands}, ids)
        rows = RowReads(plan, bands)
        if not plan:
            return rows
        self._open.add(rows)
        rows.done.add_done_callback(lambda _: self._open.discard(rows))
        patience_s = self._patience_s(began)
        rows.alarm = self._clock.at(began + patience_s, lambda: self._late(rows, len(ids), len(plan), patience_s))
        for read in plan:
            rows.watch(read, self._reads.submit(partial(self._read, rows, read.band, ids[read.places])))
        return rows

    def stats(self) -> dict[str, float]:
        """What was read, for metrics: the fields of `ReadCounters`, `num_bytes` of rows, and fetches given up late."""
        return {**asdict(self._reads.counters), "num_bytes": self._num_bytes, "num_late": self._num_late}

    def close(self) -> None:
        """Read no more; the table is closed where no read hangs in it, else it goes with the process."""
        self._clock.close()
        for rows in list(self._open):
            rows.cancel()
        if self._reads.close(_CLOSING_S):
            self._table.close()

    def _read(self, wanted: RowReads, band: int, ids: Ids) -> Rows:
        rows = np.empty((len(ids), self.spec.bands[band].row_bytes), np.uint8)
        began = time.monotonic()
        wanted.began()
        try:
            self._table.codes_into(ids, band, rows)
        except StoreError:
            self._failing(began)
            raise
        self._failing_since = None
        self._answered_at = time.monotonic()
        with self._lock:
            self._num_bytes += rows.nbytes
        return rows

    def _failing(self, since: float) -> None:
        if self._failing_since is None:
            self._failing_since = since

    def _patience_s(self, now: float) -> float:
        since, deadline_s = self._failing_since, self.config.deadline_s
        return deadline_s if since is None else max(deadline_s - (now - since), min(_LEAST_DEADLINE_S, deadline_s))

    def _late(self, rows: RowReads, num_ids: int, num_reads: int, patience_s: float) -> None:
        """Give up on a fetch for which nothing has moved; one whose reads wait behind others is as alive as those."""
        moved_at = rows.moved_at if rows.begun else max(rows.moved_at, self._answered_at)
        if moved_at + patience_s > time.monotonic():
            again = partial(self._late, rows, num_ids, num_reads, patience_s)
            rows.alarm = self._clock.at(moved_at + patience_s, again)
            return
        error = StoreError(
            f"{self._table.url}: {rows.num_left} of {num_reads} reads for the rows of {num_ids} tokens are missing, "
            f"and nothing came for {patience_s:.3g} s: the store is slow or down; try again, or give it more time"
        )
        if rows.fail(error):
            self._failing(moved_at)
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
