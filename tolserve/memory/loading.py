"""Bringing a partition of a table into memory: blocks by parallel range reads, every row checked as it comes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.partition import BLOCK_ROWS, Partition
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.memory.store import RamStore

_READ_BYTES = 8 << 20
"""Bytes of one read: enough for a store's bandwidth, little enough for many at once."""
_NUM_READERS = 8


@dataclass(frozen=True, kw_only=True)
class BlockRead:
    """Blocks of one band to read into `[first * 64, ...)` of the partition's rows."""

    band: int
    blocks: Ids
    first: int


def plan_reads(spec: RowSpec, partition: Partition) -> Iterator[BlockRead]:
    """The reads that load a partition, each of at most 8 MiB (at least one block)."""
    blocks = partition.blocks(spec.vocab_size)
    for band in spec.bands:
        step = max(1, _READ_BYTES // (band.row_bytes * BLOCK_ROWS))
        for first in range(0, len(blocks), step):
            yield BlockRead(band=band.index, blocks=blocks[first : first + step], first=first)


def load_partition(table: Any, partition: Partition, shared: Mapping[int, Rows] | None = None) -> RamStore:
    """The partition's rows of an open `tolbuild.table.Table`.

    Args:
        shared: by band, rows of this partition that are in memory already and are not read again.

    Raises:
        TableCorruptError: a row is not what its checksum says.
        StoreError: a read failed.
    """
    present = shared or {}
    store = RamStore.beside(RowSpec.from_manifest(table.manifest), partition, present)

    def load(read: BlockRead) -> None:
        start = read.first * BLOCK_ROWS
        stop = start + len(read.blocks) * BLOCK_ROWS
        table.read_blocks_into(read.band, read.blocks, store.bands[read.band][start:stop])

    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="load") as pool:
        reads = (read for read in plan_reads(store.spec, partition) if read.band not in present)
        running = {pool.submit(load, read) for read in itertools.islice(reads, 2 * _NUM_READERS)}
        while running:
            done = next(iter(running))
            done.result()
            running.remove(done)
            running |= {pool.submit(load, read) for read in itertools.islice(reads, 1)}
    return store


class TableStore:
    """Rows read from an open table when they are asked for, by the access it was opened with, and checked each time."""

    def __init__(self, table: Any, partition: Partition | None = None) -> None:
        self.spec = RowSpec.from_manifest(table.manifest)
        self.partition = partition or Partition()
        self._table = table

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """See `RowStore.locate`."""
        return ids

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """See `RowStore.gather`."""
        self._table.codes_into(places, band, out)

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """None: every row is checked on its way; see `RowStore.views`."""
        return None

    def close(self) -> None:
        """Close the table."""
        self._table.close()
