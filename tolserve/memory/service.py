"""What a memory node answers: it checks a request against its store and sends the rows.

Long rows that are in memory are sent from where they lie, others are gathered into a buffer, a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.spec import Ids, Rows
from tolserve.memory.store import CyclicStore, RamStore, RowStore
from tolserve.transport.errors import RefusedError
from tolserve.transport.frames import Hello, Ids32, RequestHeader, Status, bands_of
from tolserve.transport.lanes import Lanes, RowMemory
from tolserve.transport.session import Answer, Later

DEFAULT_MAX_IDS = 16384
_PIECE_BYTES = 256 << 10
"""Gathered before it is sent: small enough to be read again from a core's own cache by the system's copy."""
_DIRECT_BYTES = 8 << 10
"""A row of a band that is at least so long is cheaper sent from its place than copied first."""
_MAX_VIEWS = 512
"""Buffers handed to the system at once; it takes 1,024."""
_FIRST_BYTES = 64 << 10
"""A first band of so many bytes is sent by itself, since a step waits for it first."""


@dataclass(kw_only=True)
class ServedCounters:
    """What a node has done since it was made.

    Attributes:
        num_requests: requests answered with rows.
        num_rows: rows in those answers, a token in all bands asked for as one.
        num_bytes: bytes of them.
        refused: other answers, by the name of their status.
    """

    num_requests: int = 0
    num_rows: int = 0
    num_bytes: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Served:
    """Counts of one responder, or of several together, with what lanes answer in their stead.

    Attributes:
        own: answered by Python.
        lanes: theirs are added.
    """

    def __init__(self) -> None:
        self.own = ServedCounters()
        self.lanes: list[Lanes] = []

    def total(self) -> ServedCounters:
        """What was answered until now; any thread may ask."""
        own = self.own
        requests, rows, num_bytes = (
            sum(each) for each in zip((0, 0, 0), *(lanes.counters() for lanes in self.lanes), strict=True)
        )
        return replace(
            own,
            num_requests=own.num_requests + requests,
            num_rows=own.num_rows + rows,
            num_bytes=own.num_bytes + num_bytes,
        )


class RowService:
    """A `Responder` over a store; used by one thread. Every answer on its way has one of a few reused buffers.

    Args:
        counts: where answers are counted; a service by itself has its own.
    """

    def __init__(self, store: RowStore, *, max_ids: int = DEFAULT_MAX_IDS, counts: Served | None = None) -> None:
        self.max_ids = max_ids
        self._counts = counts or Served()
        self._store = store
        self._spec = store.spec
        self._num_bands = len(store.spec.bands)
        self._row_bytes = [band.row_bytes for band in store.spec.bands]
        self._buffer_bytes = max(_PIECE_BYTES, max(band.row_bytes for band in self._spec.bands))
        self._free: list[Rows] = []

    @property
    def served(self) -> ServedCounters:
        """What was answered until now; any thread may ask."""
        return self._counts.total()

    def share(self, lanes: Lanes) -> bool:
        """See `Sharing.share`."""
        memory = self.row_memory()
        if memory is None:
            return False
        lanes.hold(**vars(memory))
        if lanes not in self._counts.lanes:
            self._counts.lanes.append(lanes)
        return True

    def row_memory(self) -> RowMemory | None:
        """The rows where they are in memory. Subclasses, here and of the store, may do more than give bytes from it."""
        store = self._store
        if type(self) is not RowService or not (type(store) is RamStore or type(store) is CyclicStore):
            return None
        return RowMemory(
            identity=self._spec.identity,
            vocab_size=self._spec.vocab_size,
            partition=(store.partition.index, store.partition.count),
            bands=store.bands,
            num_cyclic=store.num_cyclic,
        )

    def hello(self, identity: bytes) -> Hello:
        """See `Responder.hello`."""
        self._check_identity(identity)
        return Hello(
            partition=self._store.partition.index,
            num_partitions=self._store.partition.count,
            vocab_size=self._spec.vocab_size,
            max_ids=self.max_ids,
            row_bytes=tuple(band.row_bytes for band in self._spec.bands),
        )

    def rows(self, header: RequestHeader, ids: Ids32) -> Answer | Later:
        """See `Responder.rows`."""
        self._check_identity(header.identity)
        mask = header.band_mask
        if mask == 0 or mask >> self._num_bands:
            raise RefusedError(
                Status.BAD_BANDS, f"band mask {mask:#x} of a table that has bands 0 to {self._num_bands - 1}"
            )
        own = ids.astype(np.int64)
        self._check_ids(own)
        bands = bands_of(mask)
        length = len(own) * sum([self._row_bytes[band] for band in bands])
        return self._answer(own, bands, length)

    def _answer(self, ids: Ids, bands: tuple[int, ...], length: int) -> Answer | Later:
        """The answer to a request that is in order."""
        self._count(len(ids), length)
        places = self._store.locate(ids)
        views = self._views(places, bands)
        if views is None:
            return Answer(length, self._gathered(places, bands))
        return Answer(length, self._direct(views), lasting=True)

    def _count(self, num_rows: int, num_bytes: int) -> None:
        own = self._counts.own
        own.num_requests += 1
        own.num_rows += num_rows
        own.num_bytes += num_bytes

    def refused(self, status: Status) -> None:
        """See `Responder.refused`."""
        name = status.name.lower()
        refused = self._counts.own.refused
        refused[name] = refused.get(name, 0) + 1

    def _views(self, places: NDArray[np.int64], bands: tuple[int, ...]) -> list[list[memoryview]] | None:
        """Rows where they lie, by band; None where they are to be gathered."""
        if min([self._row_bytes[band] for band in bands]) < _DIRECT_BYTES:
            return None
        views = [self._store.views(places, band) for band in bands]
        return [part or [] for part in views] if all(part is not None for part in views) else None

    def _direct(self, views: list[list[memoryview]]) -> Iterator[list[memoryview]]:
        waiting: list[memoryview] = []
        for number, part in enumerate(views):
            waiting += part
            is_large = number == 0 and sum(map(len, part)) >= _FIRST_BYTES
            while len(waiting) > _MAX_VIEWS or (is_large and waiting):
                yield waiting[:_MAX_VIEWS]
                del waiting[:_MAX_VIEWS]
        if waiting:
            yield waiting

    def _gathered(self, places: NDArray[np.int64], bands: tuple[int, ...]) -> Iterator[list[memoryview]]:
        buffer = self._free.pop() if self._free else np.empty(self._buffer_bytes, np.uint8)
        try:
            for piece in self._gather(places, bands, buffer):
                yield [piece]
        finally:
            self._free.append(buffer)

    def _gather(self, places: NDArray[np.int64], bands: tuple[int, ...], buffer: Rows) -> Iterator[memoryview]:
        """Rows band by band: the first band by itself, since a step waits for it first; then what fits together."""
        view = memoryview(buffer)
        filled = 0
        num_places = len(places)
        for band in bands:
            row_bytes = self._row_bytes[band]
            done = 0
            while done < num_places:
                room = (len(buffer) - filled) // row_bytes
                if room == 0:
                    yield view[:filled]
                    filled = 0
                    continue
                part = places if done == 0 and room >= num_places else places[done : done + room]
                size = len(part) * row_bytes
                self._store.gather(part, band, buffer[filled : filled + size].reshape(-1, row_bytes))
                filled += size
                done += len(part)
            if band == bands[0]:
                yield view[:filled]
                filled = 0
        if filled:
            yield view[:filled]

    def _check_identity(self, identity: bytes) -> None:
        if identity != self._spec.identity:
            raise RefusedError(
                Status.WRONG_IDENTITY,
                f"this node holds table version {self._spec.identity.hex()}; the request is for {identity.hex()}",
            )

    def _check_ids(self, ids: Ids) -> None:
        if len(ids) == 0:
            return
        if np.maximum.reduce(ids) >= self._spec.vocab_size:
            raise RefusedError(
                Status.BAD_IDS, f"token id {ids.max()} is outside the vocabulary of {self._spec.vocab_size}"
            )
        partition = self._store.partition
        if partition.count > 1:
            own = partition.owns(ids)
            if not own.all():
                raise RefusedError(
                    Status.BAD_IDS,
                    f"token id {ids[~own][0]} is not in partition {partition.index}/{partition.count} of this node",
                )
