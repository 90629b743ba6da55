"""Where rows can live. A place is a context manager over a fetcher; adding one is a function and a line in `PLACES`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolbuild.checkpoint import Checkpoint, open_checkpoint
from tolbuild.rows import BLOCK_ROWS, compute_rows
from tolbuild.table import open_table
from tolserve.bench.cost.material import Material
from tolserve.bench.cost.nodes import Fleet
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.streams import CHECKPOINT
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.loading import TableStore
from tolserve.memory.local import LocalFetch, StoreFetcher
from tolserve.memory.partition import Partition
from tolserve.memory.source import RowFetcher
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.transport.delayed import Delayed
from tolserve.transport.link import Transport
from tolserve.transport.tcp import TcpTransport

_SPIN_US = 5000
_CONNECT_S = 60.0
_SILENCE_S = 5.0
"""A node that another process keeps from its core is late, not lost."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a place is asked for: the rows of `point`, which are `material`; `fleet` has memory nodes."""

    point: Point
    material: Material
    fleet: Fleet


@dataclass(frozen=True, kw_only=True)
class Place:
    """How a place is opened, and what the report calls it.

    Attributes:
        open: gives a fetcher of the rows; whoever enters it closes the fetcher.
        holder: whose memory the whole table takes: "device", "host", "nodes", or "disk".
    """

    label: str
    open: Callable[[Asked], AbstractContextManager[RowFetcher]]
    holder: str


@contextmanager
def host_memory(asked: Asked) -> Iterator[RowFetcher]:
    """Copied from this process's memory when a band is waited for."""
    yield StoreFetcher(asked.material.store, tier="host")


@contextmanager
def mapped(asked: Asked) -> Iterator[RowFetcher]:
    """Copied out of memory maps of local files, in the page cache as far as the system keeps them there."""
    yield StoreFetcher(TableStore(open_table(asked.material.url, access="mmap")), tier="disk")


@contextmanager
def cold_reads(asked: Asked) -> Iterator[RowFetcher]:
    """Positioned reads of local files whose pages are dropped after each fetch."""
    yield _ColdFetcher(TableStore(open_table(asked.material.url, access="pread")), Path(asked.material.url))


@contextmanager
def memory_nodes(asked: Asked) -> Iterator[RowFetcher]:
    """Over TCP, behind a delaying transport where the point says so."""
    point, spec = asked.point, asked.material.spec
    addresses = asked.fleet.addresses(asked.material.node, spec, num_nodes=point.num_nodes, link=point.link)
    transport: Transport = TcpTransport()
    if point.round_trip_ms or point.gbit_per_s:
        transport = Delayed(transport, round_trip_s=point.round_trip_ms * 1e-3, bytes_per_s=point.gbit_per_s * 1e9 / 8)
    client = PartitionedClient(
        spec, [[address] for address in addresses], ClientConfig(spin_us=_SPIN_US, silence_s=_SILENCE_S), transport
    )
    client.wait_connected(_CONNECT_S)
    yield client


@contextmanager
def computed(asked: Asked) -> Iterator[RowFetcher]:
    """Computed by the memory networks for the distinct tokens of each step: the dense FFN in the place of a table."""
    yield StoreFetcher(ComputedStore(open_checkpoint(CHECKPOINT), asked.material.spec), tier="computed")


PLACES: Mapping[str, Place] = {
    "computed": Place(label="computed (dense FFN)", open=computed, holder="device"),
    "host": Place(label="host memory", open=host_memory, holder="host"),
    "mapped": Place(label="local disk, memory-mapped", open=mapped, holder="disk"),
    "cold": Place(label="local disk, cold preadv", open=cold_reads, holder="disk"),
    "nodes": Place(label="memory nodes over TCP", open=memory_nodes, holder="nodes"),
}
"""By name; "device" besides these is the table in the engine's own memory."""


class ComputedStore:
    """Rows of the shipped checkpoint, fp32 at full rank, computed when they are gathered."""

    def __init__(self, checkpoint: Checkpoint, spec: RowSpec) -> None:
        self.spec = spec
        self.partition = Partition()
        self._embedding_VD = checkpoint.embedding_rows(0, spec.vocab_size)
        self._networks = {layer: checkpoint.memory_ffn(layer) for band in spec.bands for layer in band.layers}

    def locate(self, ids: Ids) -> NDArray[np.int64]:
        """See `RowStore.locate`."""
        return ids

    def gather(self, places: NDArray[np.int64], band: int, out: Rows) -> None:
        """See `RowStore.gather`: row_L(v) = FFN_L(LN_L(E[v]))."""
        embedding_ND = self._embedding_VD[torch.from_numpy(places)]
        layers = self.spec.bands[band].layers
        rows = [compute_rows(embedding_ND, self._networks[layer], chunk=BLOCK_ROWS) for layer in layers]
        out[:] = torch.cat(rows, dim=1).numpy().view(np.uint8)

    def views(self, places: NDArray[np.int64], band: int) -> list[memoryview] | None:
        """None: rows lie nowhere."""
        return None

    def close(self) -> None:
        """The memory goes with the object."""


class _ColdFetcher(StoreFetcher):
    """Drops the table's pages from the system's cache when a fetch is done."""

    def __init__(self, store: TableStore, folder: Path) -> None:
        super().__init__(store, tier="disk")
        self._files = [
            os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in sorted(folder.rglob("*")) if path.is_file()
        ]
        self._drop_pages()

    def drop(self, fetch: LocalFetch) -> None:
        """See `RowFetcher.drop`."""
        super().drop(fetch)
        self._drop_pages()

    def close(self) -> None:
        """See `RowFetcher.close`."""
        super().close()
        while self._files:
            os.close(self._files.pop())

    def _drop_pages(self) -> None:
        for descriptor in self._files:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(point: Point, spec: RowSpec, rows_on_device: int) -> dict[str, Any]:
    """Bytes of rows by who holds them.

    Args:
        rows_on_device: bytes of cached rows and pinned bands.
    """
    holder = "device" if point.place == "device" else PLACES[point.place].holder
    held: dict[str, Any] = {"attention_node": rows_on_device, "memory_nodes": [], "host": 0, "disk": 0}
    if holder == "device":
        held["attention_node"] = 0 if point.place == "computed" else spec.table_bytes
    elif holder == "nodes":
        held["memory_nodes"] = [spec.table_bytes // point.num_nodes] * point.num_nodes
    else:
        held[holder] = spec.table_bytes
    return held
