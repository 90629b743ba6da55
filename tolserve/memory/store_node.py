"""A memory node over the object store: a bounded cache in RAM, and reads of the rest that hold up nobody else.

The node's thread answers at once what is in the cache. Other requests wait for their reads, which run in threads; each
is answered band by band as its rows come, in order on its connection, while the other connections are served.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.object_rows import ObjectRows
from tolserve.memory.partition import Partition
from tolserve.memory.policy import LRU
from tolserve.memory.ram_rows import MakePolicy, RamRows
from tolserve.memory.row_reads import RowReads
from tolserve.memory.service import DEFAULT_MAX_IDS, RowService, Served
from tolserve.memory.spec import Ids, Rows
from tolserve.memory.store import flat
from tolserve.transport.session import Answer, Later

_PIECE_BYTES = 256 << 10
"""Bands are sent together up to this size, so that one of a few bytes is no call of its own."""


@dataclass(kw_only=True, eq=False)
class Reading:
    """Distinct `ids` (ascending) on their way in `bands`, for whoever asks for them; `cached` are in the cache now."""

    ids: Ids
    bands: frozenset[int]
    reads: RowReads
    cached: set[int] = field(default_factory=set)

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """Where `ids` are among its own; -1 for others."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        at[self.ids[at] != ids] = -1
        return at


class Part(NamedTuple):
    """Rows of a request that a reading brings: those at `places` of the request are at `sources` of the reading."""

    reading: Reading
    places: NDArray[np.int64]
    sources: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A request: its rows, uint8 [ids, row_bytes] by band, of which those that were cached are there; `parts` come."""

    rows: dict[int, Rows]
    parts: list[Part]

    def arrived(self, band: int) -> Future[None]:
        """Done when the rows of `band` have come, or cannot come."""
        return all_of([part.reading.reads.arrived[band] for part in self.parts])


class StoreBackedRows:
    """A `RowStore` of a partition whose rows lie in the object store, with a cache of `cache_bytes` in front.

    One thread uses it; the reads it begins run in others. Beside the cache it takes the memory of the requests that are
    being answered.
    """

    def __init__(
        self,
        objects: ObjectRows,
        *,
        cache_bytes: int,
        partition: Partition | None = None,
        policy: MakePolicy = LRU,
    ) -> None:
        self.spec = objects.spec
        self.partition = partition or Partition()
        self.cache = RamRows(objects.spec, cache_bytes=cache_bytes, policy=policy)
        self._objects = objects
        self._readings: list[Reading] = []
        self._num_hits = self._num_misses = self._num_shared = 0

    def begin(self, ids: Ids, bands: tuple[int, ...]) -> Begun:
        """Copy what is in the cache and begin to read the rest; `ids` may repeat."""
        slots = self.cache.find(ids, bands)
        here = np.flatnonzero(slots >= 0)
        places = np.flatnonzero(slots < 0)
        self._num_hits += len(here)
        self._num_misses += len(places)
        rows = {band: np.empty((len(ids), self.spec.bands[band].row_bytes), np.uint8) for band in bands}
        for band, out in rows.items():
            if len(places) == 0:
                self.cache.copy(band, slots, out)
            elif len(here):
                part = np.empty((len(here), out.shape[1]), np.uint8)
                self.cache.copy(band, slots[here], part)
                out[here] = part
        return Begun(rows=rows, parts=self._read(ids, places, bands))

    def _read(self, ids: Ids, places: NDArray[np.int64], bands: tuple[int, ...]) -> list[Part]:
        """Who brings `ids[places]`: readings that are under way, and one of the rest."""
        self._readings = [one for one in self._readings if not one.reads.done.done()]
        parts = []
        for reading in self._readings:
            if len(places) and reading.bands.issuperset(bands):
                sources = reading.find(ids[places])
                found = sources >= 0
                if found.any():
                    parts.append(Part(reading, places[found], sources[found]))
                    places = places[~found]
                    self._num_shared += len(parts[-1].places)
        if len(places):
            missing, sources = np.unique(ids[places], return_inverse=True)
            reading = Reading(ids=missing, bands=frozenset(bands), reads=self._objects.start(missing, bands))
            self._readings.append(reading)
            parts.append(Part(reading, places, sources))
        return parts

    def take(self, begun: Begun, band: int) -> Rows:
        """All rows of a band, uint8 [ids, row_bytes]; waits for those that are on their way, which are cached then.

        Raises:
            StoreError: the store failed, or did not answer in time.
            TableCorruptError: a row is not what its checksum says.
        """
        out = begun.rows[band]
        for reading, places, sources in begun.parts:
            fresh = np.empty((len(reading.ids), out.shape[1]), np.uint8)
            reading.reads.take(band, fresh)
            out[places] = fresh[sources]
            if band not in reading.cached:
                reading.cached.add(band)
                self.cache.put(reading.ids, {band: fresh}, np.arange(len(fresh)))
        return out

    def stats(self) -> dict[str, Any]:
        """What the cache and the store were asked for, for metrics; any thread may ask."""
        reads = {f"store_{name.removeprefix('num_')}": count for name, count in self._objects.stats().items()}
        return {
            "cache_hits": self._num_hits,
            "cache_misses": self._num_misses,
            "shared_reads": self._num_shared,
            "cache_rows": self.cache.num_rows,
            **reads,
        }

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """See `RowStore.locate`."""
        return ids

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """See `RowStore.gather`; waits for the store where it must."""
        out[:] = self.take(self.begin(places, (band,)), band)

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """None: a row may leave the cache while it is sent; see `RowStore.views`."""
        return None

    def close(self) -> None:
        """Read no more."""
        self._objects.close()


class StoreService(RowService):
    """Answers from a `StoreBackedRows`: at once what is cached, later what is not."""

    def __init__(self, store: StoreBackedRows, *, max_ids: int = DEFAULT_MAX_IDS, counts: Served | None = None) -> None:
        super().__init__(store, max_ids=max_ids, counts=counts)
        self._rows = store

    def _answer(self, ids: Ids, bands: tuple[int, ...], length: int) -> Answer | Later:
        begun = self._rows.begin(ids, bands)

        def answer() -> Answer:
            for part in begun.parts:
                part.reading.reads.arrived[bands[0]].result()
            self._count(len(ids), length)
            return Answer(length, self._bands(begun))

        return Later(begun.arrived(bands[0]), answer) if begun.parts else answer()

    def _bands(self, begun: Begun) -> Iterator[list[memoryview] | Future[None]]:
        """Band by band as they arrive; small ones that are here together, but for the first, which a step waits for."""
        ready: list[memoryview] = []
        for number, band in enumerate(begun.rows):
            arrived = begun.arrived(band)
            if not arrived.done():
                if any(map(len, ready)):
                    yield ready
                    ready = []
                yield arrived
            ready.append(flat(self._rows.take(begun, band)))
            size = sum(map(len, ready))
            if size and (number == 0 or size >= _PIECE_BYTES):
                yield ready
                ready = []
        if any(map(len, ready)):
            yield ready


def all_of(futures: Sequence[Future[None]]) -> Future[None]:
    """Done when all are, whether they succeeded or not."""
    if len(futures) == 1:
        return futures[0]
    done: Future[None] = Future()
    if not futures:
        done.set_result(None)
    left = itertools.count(len(futures) - 1, -1)  # counts in one step, from any thread

    def count(_: Future[None]) -> None:
        if next(left) == 0:
            done.set_result(None)

    for future in futures:
        future.add_done_callback(count)
    return done
