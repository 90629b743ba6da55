"""Where rows can live. A place is a context manager over a fetcher; adding one is a function and a line in `PLACES`."""

from __future__ import annotations

import importlib.util
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
from tolserve.bench.cost.objects import Objects
from tolserve.bench.cost.objects import missing as no_objects
from tolserve.bench.cost.point import Point
from tolserve.bench.cost.streams import CHECKPOINT
from tolserve.bench.transports import RAY_MISSING
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.hedge import ReadConfig
from tolserve.memory.host_cache import HostCache
from tolserve.memory.loading import TableStore
from tolserve.memory.local import LocalFetch, StoreFetcher
from tolserve.memory.object_rows import ObjectFetcher, ObjectRows
from tolserve.memory.partition import Partition
from tolserve.memory.source import RowFetcher
from tolserve.memory.spec import Ids, Rows, RowSpec
from tolserve.transport.choose import make_transport
from tolserve.transport.delayed import Delayed
from tolserve.transport.link import Address, Transport
from tolserve.transport.security import Security
from tolserve.transport.tcp import TcpTransport

_SPIN_US = 5000
_CONNECT_S = 60.0
HOST_SHARE = 0.3
"""Of the table, in the host cache: three times what the base points have on the device."""
_FILL_ROWS = 4096
_STORE_DEADLINE_S = 30.0
_SILENCE_S = 5.0
"""A node that another process keeps from its core is late, not lost."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a place is asked for.

    Attributes:
        material: the rows of `point`.
        fleet: has memory nodes.
        objects: has object stores.
        counts: int64 [V], of tokens in other text of the kind; what is kept nearer than the rest goes by them.
    """

    point: Point
    material: Material
    fleet: Fleet
    objects: Objects | None = None
    counts: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """How a place is opened, and what the report calls it.

    Attributes:
        open: gives a fetcher of the rows; whoever enters it closes the fetcher.
        holder: whose memory the whole table takes: "device", "host", "nodes", or "disk".
        missing: why a point cannot be measured here; empty where it can.
    """

    label: str
    open: Callable[[Asked], AbstractContextManager[RowFetcher]]
    holder: str
    missing: Callable[[Point], str] = lambda point: ""


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
    yield _client(asked, _addresses(asked, asked.material.node), TcpTransport())


@contextmanager
def flight_nodes(asked: Asked) -> Iterator[RowFetcher]:
    """Over Arrow Flight; the nodes are the same but for that."""
    addresses = _addresses(asked, {**asked.material.node, "transport": "flight"})
    yield _client(asked, addresses, make_transport("flight", Security()))


@contextmanager
def ray_nodes(asked: Asked) -> Iterator[RowFetcher]:
    """By calls of Ray actors, on a cluster that ends with the place and is no burden to the others."""
    from tolserve.on_ray.cost_bench import ray_nodes

    with ray_nodes(asked.material.node, asked.point.num_nodes, asked.fleet.core) as (addresses, transport):
        yield _client(asked, addresses, transport)


@contextmanager
def host_cached(asked: Asked) -> Iterator[RowFetcher]:
    """The tokens that are likeliest in host memory, the others on memory nodes over TCP."""
    with memory_nodes(asked) as nodes:
        cache = HostCache(nodes, cache_bytes=host_cache_bytes(asked.material.spec))
        assert asked.counts is not None
        likeliest = np.argsort(-asked.counts, kind="stable")[: cache.rows.num_slots]
        for part in np.array_split(np.sort(likeliest).astype(np.int64), -(-len(likeliest) // _FILL_ROWS)):
            _pass(cache, part)
        yield cache


@contextmanager
def object_store(asked: Asked) -> Iterator[RowFetcher]:
    """Ranges of objects of an S3 server on this machine, read when a row is asked for."""
    assert asked.objects is not None
    url, credentials = asked.objects.table(asked.material.url)
    config = ReadConfig(deadline_s=_STORE_DEADLINE_S)
    yield ObjectFetcher(ObjectRows(open_table(url, credentials=credentials, wait_s=config.deadline_s), config))


@contextmanager
def computed(asked: Asked) -> Iterator[RowFetcher]:
    """Computed by the memory networks for the distinct tokens of each step: the dense FFN in the place of a table."""
    yield StoreFetcher(ComputedStore(open_checkpoint(CHECKPOINT), asked.material.spec), tier="computed")


def host_cache_bytes(spec: RowSpec) -> int:
    """What the place "host-cached" keeps in host memory."""
    return round(HOST_SHARE * spec.table_bytes)


def _no_ray(point: Point) -> str:
    return RAY_MISSING if importlib.util.find_spec("ray") is None else ""


def _addresses(asked: Asked, node: dict[str, Any]) -> list[Address]:
    return asked.fleet.addresses(node, asked.material.spec, num_nodes=asked.point.num_nodes, link=asked.point.link)


def _client(asked: Asked, addresses: list[Address], transport: Transport) -> PartitionedClient:
    """Connected to a node of each partition, behind a delaying transport where the point says so."""
    point = asked.point
    if point.round_trip_ms or point.gbit_per_s:
        transport = Delayed(transport, round_trip_s=point.round_trip_ms * 1e-3, bytes_per_s=point.gbit_per_s * 1e9 / 8)
    config = ClientConfig(spin_us=_SPIN_US, silence_s=_SILENCE_S)
    client = PartitionedClient(asked.material.spec, [[address] for address in addresses], config, transport)
    client.wait_connected(_CONNECT_S)
    return client


def _pass(cache: HostCache, ids: Ids) -> None:
    """Fetch rows that nobody reads: what is behind the cache comes into it."""
    bands = cache.spec.choose(None)
    fetch = cache.request(ids, bands)
    cache.receive(fetch, {band: memoryview(bytearray(len(ids) * cache.spec.bands[band].row_bytes)) for band in bands})
    for band in bands:
        cache.arrive(fetch, band)
    cache.drop(fetch)


PLACES: Mapping[str, Place] = {
    "computed": Place(label="computed (dense FFN)", open=computed, holder="device"),
    "host": Place(label="host memory", open=host_memory, holder="host"),
    "mapped": Place(label="local disk, memory-mapped", open=mapped, holder="disk"),
    "cold": Place(label="local disk, cold preadv", open=cold_reads, holder="disk"),
    "nodes": Place(label="memory nodes over TCP", open=memory_nodes, holder="nodes"),
    "flight": Place(label="memory nodes over Arrow Flight", open=flight_nodes, holder="nodes"),
    "ray": Place(label="memory nodes by Ray actor calls", open=ray_nodes, holder="nodes", missing=_no_ray),
    "host-cached": Place(label="host cache before memory nodes", open=host_cached, holder="nodes"),
    "store": Place(label="object store (S3 on this machine)", open=object_store, holder="disk", missing=no_objects),
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
        held["host"] = host_cache_bytes(spec) if point.place == "host-cached" else 0
        held["memory_nodes"] = [spec.table_bytes // point.num_nodes] * point.num_nodes
    else:
        held[holder] = spec.table_bytes
    return held
