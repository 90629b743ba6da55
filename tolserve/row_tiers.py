"""The tiers that a deployment's rows pass on their way, made from its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.host_cache import HostCache
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.object_rows import ObjectFetcher, ObjectRows
from tolserve.memory.partition import Partition
from tolserve.memory.source import RowFetcher
from tolserve.memory.spec import RowSpec
from tolserve.serve_config import ServeConfig
from tolserve.transport.choose import make_transport
from tolserve.transport.link import Transport
from tolserve.transport.server import ServerConfig

_PATIENCE_S = 1.0
"""Beyond the node's own deadline: the time in which its refusal comes."""

Addresses = list[list[tuple[str, int]]]
"""For each partition, where its memory nodes listen."""


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Where rows that the device does not have come from.

    Attributes:
        fetcher: the nearest tier, which looks in those behind it.
        client: the client of the memory nodes, where there are any.
        parts: the tiers with figures of their own, by name: "host", "store".
    """

    fetcher: RowFetcher
    client: PartitionedClient | None = None
    parts: Mapping[str, HostCache | ObjectRows] = field(default_factory=dict)

    def stats(self) -> dict[str, Any]:
        """Figures by tier, for metrics; any thread may ask."""
        figures: dict[str, Any] = {} if self.client is None else {"client": self.client.stats()}
        return figures | {name: part.stats() for name, part in self.parts.items()}


def open_tiers(
    config: ServeConfig,
    table: Any,
    addresses: Addresses,
    bands: tuple[int, ...] | None,
    transport: Transport | None = None,
) -> Tiers:
    """The tiers behind an attention node's cache: host memory, then memory nodes or the object store.

    Args:
        table: an open `tolbuild.table.Table`.
        addresses: of the memory nodes, at least one a partition.
        bands: that the host cache keeps; None is all.
        transport: to reach memory nodes by; None makes the one that `config` names.

    Raises:
        ToLError: no node of a partition can be reached in time.
    """
    spec = RowSpec.from_manifest(table.manifest)
    client: PartitionedClient | None = None
    parts: dict[str, HostCache | ObjectRows] = {}
    fetcher: RowFetcher
    if config.rows == "store":
        objects = ObjectRows(table, config.store_reading)
        parts["store"] = objects
        fetcher = ObjectFetcher(objects)
    else:
        transport = transport or make_transport(config.transport, config.security)
        fetcher = client = PartitionedClient(spec, addresses, client_config(config), transport)
        client.wait_connected(config.deadline_s)
    if config.host_bytes:
        fetcher = parts["host"] = HostCache(fetcher, cache_bytes=config.host_bytes, bands=bands)
    return Tiers(fetcher=fetcher, client=client, parts=parts)


def client_config(config: ServeConfig) -> ClientConfig:
    """How memory nodes are asked. One that reads the object store may be silent for as long as the store."""
    usual = ClientConfig(deadline_s=config.deadline_s, first_node=os.getpid())
    return replace(usual, silence_s=config.store_deadline_s + _PATIENCE_S) if config.keep == "store" else usual


def node_config(config: ServeConfig, *, partition: int, version: int | None, host: str) -> NodeConfig:
    """What the memory nodes of a partition hold, and where they listen."""
    assert config.table is not None
    return NodeConfig(
        table=config.table,
        version=version,
        partition=Partition(index=partition, count=config.num_partitions),
        keep=config.keep,
        cache_bytes=config.node_cache_bytes,
        reads=config.store_reading,
        server=ServerConfig(host=host),
    )
