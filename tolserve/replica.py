"""What one attention node is made of by its configuration: settings of the engine, rows, their cache."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Literal

from tolbuild.config import ModelConfig
from tolbuild.table import Table, open_table
from tolserve.engine.build import requested_bands
from tolserve.engine.config import EngineConfig
from tolserve.memory.arena import Arena
from tolserve.memory.cached import CachedSource, arena_slots, slots_for
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.counts import read_counts
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.loading import TableStore
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.source import RowFetcher, RowSource
from tolserve.memory.spec import RowSpec
from tolserve.serve_config import ServeConfig, max_model_len

_log = logging.getLogger(__name__)

BLOCK_SIZE = 32
"""Tokens in one block of the KV cache."""

VERIFY_EVERY = 8
"""Steps from one compared row to the next."""

Addresses = list[list[tuple[str, int]]]
"""For each partition, where its memory nodes listen."""


def engine_config(config: ServeConfig, shape: ModelConfig) -> EngineConfig:
    """The engine's settings for this model."""
    automatic: Literal["bfloat16", "float32"] = "bfloat16" if config.num_gpus > 0 else "float32"
    return EngineConfig(
        block_size=BLOCK_SIZE,
        num_blocks=config.kv_cache_tokens // BLOCK_SIZE,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=max_model_len(config, shape),
        alpha=config.alpha,
        drop_layers=config.drop_layers,
        pinned_bands=config.pinned_bands,
        verify_every=VERIFY_EVERY if config.verify_rows and shape.has_memory else 0,
        dtype=automatic if config.dtype == "auto" else config.dtype,
        device=config.device,
    )


@dataclass(kw_only=True)
class Rows:
    """Where an engine's rows come from.

    Attributes:
        source: None for a model that has none, or to compute them from the checkpoint.
        table: the open table that they are of.
        client: the client of the memory nodes, where there are any.
    """

    source: RowSource | None = None
    table: Table | None = None
    client: PartitionedClient | None = None

    def close(self) -> None:
        """Give back connections and memory."""
        if self.source is not None:
            self.source.close()
        if self.table is not None:
            self.table.close()


def open_rows(config: ServeConfig, shape: ModelConfig, version: int | None, addresses: Addresses) -> Rows:
    """The rows of `config`: none, on this node, or on the memory nodes at `addresses` behind a cache that is warm.

    Raises:
        ValueError: the counts of the cache do not fit the table.
        ToLError: the table cannot be read, or no node of a partition can be reached in time.
    """
    if config.table is None:
        return Rows()
    table = open_table(config.table, version=version)
    spec = RowSpec.from_manifest(table.manifest)
    if config.num_partitions == 0:
        with_reader = CachedSource(StoreFetcher(TableStore(table)))
        return Rows(source=DeviceTable.load(with_reader, device=config.device), table=table)
    client = PartitionedClient(spec, addresses, ClientConfig(deadline_s=config.deadline_s, first_node=os.getpid()))
    client.wait_connected(config.deadline_s)
    requested = requested_bands(spec, engine_config(config, shape))
    source = cached(config, spec, client, requested)
    _log.info("the row cache starts with %d of %d rows", source.warm(), source.num_slots)
    return Rows(source=source, table=table, client=client)


def cached(config: ServeConfig, spec: RowSpec, fetcher: RowFetcher, requested: tuple[int, ...]) -> CachedSource:
    """A source over `fetcher` with the cache that `config` asks for, of the bands that will be requested."""
    budget = int(config.cache_share * spec.table_bytes) if config.cache_bytes is None else config.cache_bytes
    num_slots = slots_for(spec, budget, requested) if requested else 0
    staging = max(8192, 3 * config.max_num_batched_tokens)
    return CachedSource(
        fetcher,
        num_slots=num_slots,
        policy=cache_policy(config, spec.vocab_size, num_slots) if num_slots else None,
        bands=requested or None,
        num_staging=staging,
        arena=_arena(config, spec, staging, requested, num_slots),
    )


def cache_policy(config: ServeConfig, vocab_size: int, num_slots: int) -> CachePolicy:
    """What the cache keeps, with the counts that it starts from where there are any.

    Raises:
        ValueError: the counts cannot be read or are not of this vocabulary.
    """
    counts = None if config.cache_counts is None else read_counts(config.cache_counts, vocab_size)
    if config.cache_policy == "lru":
        return LRU(num_slots, counts)
    assert counts is not None, "checked when the configuration was made"
    return StaticByFrequency(counts)


def _arena(config: ServeConfig, spec: RowSpec, staging: int, bands: tuple[int, ...], num_slots: int) -> Arena | None:
    if config.device == "cpu":
        return None
    import torch

    from tolserve.memory.device import DeviceArena

    device = torch.device(config.device)
    return DeviceArena(spec, num_staging=staging, slots=arena_slots(bands, num_slots), device=device)
