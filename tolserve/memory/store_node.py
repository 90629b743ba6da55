"""A memory node over the object store: a bounded cache in RAM, and reads of the rest that hold up nobody else.

The node's thread answers at once what is in the cache. Other requests wait for their reads, which run in threads; each
is answered when its rows are there, in order on its connection, while the other connections are served.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.object_rows import ObjectRows, RowReads
from tolserve.memory.partition import Partition
from tolserve.memory.policy import LRU
from tolserve.memory.ram_rows import MakePolicy, RamRows
from tolserve.memory.service import DEFAULT_MAX_IDS, RowService
from tolserve.memory.spec import Ids, Rows
from tolserve.memory.store import flat
from tolserve.transport.session import Answer, Later

_PIECE_BYTES = 256 << 10
"""Bands are sent together up to this size, so that one of a few bytes is no call of its own."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A request: rows that were in the cache, and others on their way.

    Attributes:
        rows: uint8 [ids, row_bytes] by band, those that were in the cache in their places.
        places: of the others in it; they are `missing[inverse]`.
        missing: distinct ids that are on their way.
        reads: that bring them; None where all were in the cache.
    """

    rows: dict[int, Rows]
    places: NDArray[np.int64]
    missing: Ids
    inverse: NDArray[np.int64]
    reads: RowReads | None


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
        self._num_hits = self._num_misses = 0

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
        missing, inverse = np.unique(ids[places], return_inverse=True)
        reads = self._objects.start(missing, bands) if len(missing) else None
        return Begun(rows=rows, places=places, missing=missing, inverse=inverse, reads=reads)

    def take(self, begun: Begun, band: int) -> Rows:
        """All rows of a band, uint8 [ids, row_bytes]; waits for those that are on their way, which are cached then.

        Raises:
            StoreError: the store failed, or did not answer in time.
            TableCorruptError: a row is not what its checksum says.
        """
        out = begun.rows[band]
        if begun.reads is not None:
            fresh = np.empty((len(begun.missing), out.shape[1]), np.uint8)
            begun.reads.take(band, fresh)
            out[begun.places] = fresh[begun.inverse]
            self.cache.put(begun.missing, {band: fresh}, np.arange(len(fresh)))
        return out

    def stats(self) -> dict[str, Any]:
        """What the cache and the store were asked for, for metrics; any thread may ask."""
        reads = {f"store_{name.removeprefix('num_')}": count for name, count in self._objects.stats().items()}
        return {
            "cache_hits": self._num_hits,
            "cache_misses": self._num_misses,
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

    def __init__(self, store: StoreBackedRows, *, max_ids: int = DEFAULT_MAX_IDS) -> None:
        super().__init__(store, max_ids=max_ids)
        self._rows = store

    def _answer(self, ids: Ids, bands: tuple[int, ...], length: int) -> Answer | Later:
        begun = self._rows.begin(ids, bands)
        reads = begun.reads

        def answer() -> Answer:
            if reads is not None:
                reads.done.result()
            self._count(len(ids), length)
            return Answer(length, self._bands(begun))

        return answer() if reads is None else Later(reads.done, answer)

    def _bands(self, begun: Begun) -> Iterator[list[memoryview]]:
        """Band by band, so that other clients have their turn between; the first by itself, since a step waits for it
        first.
        """
        ready: list[memoryview] = []
        for number, band in enumerate(begun.rows):
            ready.append(flat(self._rows.take(begun, band)))
            size = sum(map(len, ready))
            if size and (number == 0 or size >= _PIECE_BYTES):
                yield ready
                ready = []
        if any(map(len, ready)):
            yield ready
