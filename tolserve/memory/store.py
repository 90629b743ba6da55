"""Rows that are in this process, by band: what a memory node answers from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.arena import empty_rows
from tolserve.memory.partition import Partition
from tolserve.memory.spec import Ids, Rows, RowSpec


class RowStore(Protocol):
    """Rows of one partition."""

    @property
    def spec(self) -> RowSpec:
        """What the rows look like."""

    @property
    def partition(self) -> Partition:
        """Which ids are here."""

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """Where own ids lie, for `gather`."""

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """Copy rows of `band` into `out`, uint8 [len(places), row_bytes]."""

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """Rows of `band` where they lie; None where they are not in this process's memory."""

    def close(self) -> None:
        """Give back what is open."""


class RamStore:
    """A partition in memory, one array a band, its blocks one after another.

    `bands[i]` is uint8 [blocks * 64, row_bytes]; rows of the last block behind the vocabulary's end are never read.
    """

    num_cyclic = 0

    def __init__(self, spec: RowSpec, partition: Partition, bands: list[Rows]) -> None:
        self.spec = spec
        self.partition = partition
        self.bands = bands
        self._flat = [flat(rows) for rows in bands]

    @classmethod
    def empty(cls, spec: RowSpec, partition: Partition) -> RamStore:
        """Room for the partition's blocks, in huge pages where the system gives them."""
        return cls.beside(spec, partition, {})

    @classmethod
    def beside(cls, spec: RowSpec, partition: Partition, shared: Mapping[int, Rows]) -> RamStore:
        """The same, but the bands in `shared` are another store's."""
        num_rows = len(partition.blocks(spec.vocab_size)) * 64
        bands = [
            shared[band.index] if band.index in shared else empty_rows(num_rows, band.row_bytes, huge_pages=True)
            for band in spec.bands
        ]
        return cls(spec, partition, bands)

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """See `RowStore.locate`."""
        return self.partition.local_rows(ids)

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """See `RowStore.gather`."""
        self.bands[band].take(places, axis=0, out=out, mode="clip")

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """See `RowStore.views`."""
        return views_of(self._flat[band], self.bands[band].shape[1], places)

    def close(self) -> None:
        """The memory goes with the object."""


class CyclicStore:
    """A memory larger than the machine, for measuring: row(id) = a physical row chosen by id modulo their number.

    Distinct ids share bytes, nothing else differs: what is looked up, gathered and sent is as much as with a real
    table.
    """

    def __init__(self, spec: RowSpec, *, num_rows: int, seed: int) -> None:
        self.spec = spec
        self.partition = Partition()
        self.num_cyclic = min(num_rows, spec.vocab_size)
        rng = np.random.default_rng(seed)
        self.bands = [empty_rows(self.num_cyclic, band.row_bytes, huge_pages=True) for band in spec.bands]
        for band in self.bands:
            for first in range(0, self.num_cyclic, 1024):
                part = band[first : first + 1024]
                part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
        self._flat = [flat(band) for band in self.bands]

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """See `RowStore.locate`."""
        return ids % self.num_cyclic

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """See `RowStore.gather`."""
        self.bands[band].take(places, axis=0, out=out, mode="clip")

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """See `RowStore.views`."""
        return views_of(self._flat[band], self.bands[band].shape[1], places)

    def close(self) -> None:
        """The memory goes with the object."""


def flat(rows: Rows) -> memoryview:
    """The bytes of a contiguous array."""
    return memoryview(rows.reshape(-1).view(np.uint8))


def views_of(flat_rows: memoryview, row_bytes: int, places: NDArray[np.int64]) -> list[memoryview]:
    """The chosen rows, without a copy."""
    return [flat_rows[start : start + row_bytes] for start in (places * row_bytes).tolist()]
