"""What one attention node is made of by its configuration: settings of the engine, rows, their cache."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from tolbuild.config import ModelConfig
from tolbuild.table import Table, open_table
from tolserve.engine.build import requested_bands
from tolserve.engine.config import EngineConfig
from tolserve.memory.arena import Arena
from tolserve.memory.cached import CachedSource, arena_slots, slots_for
from tolserve.memory.counts import read_counts
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.loading import TableStore
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO
from tolserve.memory.source import RowFetcher, RowSource
from tolserve.memory.spec import RowSpec
from tolserve.memory.state import StateKeeper, read_state
from tolserve.row_tiers import Addresses, Tiers, open_tiers
from tolserve.serve_config import ServeConfig, max_model_len
from tolserve.transport.link import Transport

_log = logging.getLogger(__name__)

BLOCK_SIZE = 32
"""Tokens in one block of the KV cache."""

VERIFY_EVERY = 8
"""Steps from one compared row to the next."""


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
        prefix_cache=config.prefix_cache,
        speculative_rows=config.speculative_rows,
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
        tiers: where rows come from that the engine's cache does not have.
        keeper: saves what the cache holds, where that was asked for.
    """

    source: RowSource | None = None
    table: Table | None = None
    tiers: Tiers | None = None
    keeper: StateKeeper | None = None

    def close(self) -> None:
        """Give back connections and memory; what the cache holds is saved first where that was asked for."""
        if self.keeper is not None:
            self.keeper.stop()
        if self.source is not None:
            self.source.close()
        if self.table is not None:
            self.table.close()


def open_rows(
    config: ServeConfig,
    shape: ModelConfig,
    version: int | None,
    addresses: Addresses,
    transport: Transport | None = None,
) -> Rows:
    """The rows of `config`: none, on this node, or behind a cache that is warm, from the memory nodes at `addresses` or
    the table's place.

    `transport` is what memory nodes are reached by, where `config` does not name one that this process can make.

    Raises:
        ValueError: the cache's counts or its saved state do not fit the table.
        ToLError: the table cannot be read, or no node of a partition can be reached in time.
    """
    if config.table is None:
        return Rows()
    from_store = config.rows == "store"
    table = open_table(config.table, version=version, wait_s=config.store_deadline_s if from_store else None)
    spec = RowSpec.from_manifest(table.manifest)
    if config.num_partitions == 0 and not from_store:
        with_reader = CachedSource(StoreFetcher(TableStore(table)))
        return Rows(source=DeviceTable.load(with_reader, device=config.device), table=table)
    requested = requested_bands(spec, engine_config(config, shape))
    tiers = open_tiers(config, table, addresses, requested or None, transport)
    source = cached(config, spec, tiers.fetcher, requested)
    _log.info("the row cache starts with %d of %d rows", warm(config, source), source.num_slots)
    return Rows(source=source, table=table, tiers=tiers, keeper=state_keeper(config, source))


def cached(config: ServeConfig, spec: RowSpec, fetcher: RowFetcher, requested: tuple[int, ...]) -> CachedSource:
    """A source over `fetcher` with the cache that `config` asks for, of the bands that will be requested."""
    budget = int(config.cache_share * spec.table_bytes) if config.cache_bytes is None else config.cache_bytes
    num_slots = slots_for(spec, budget, requested) if requested else 0
    staging = max(8192, 3 * config.max_num_batched_tokens) + config.speculative_rows * config.max_num_seqs
    return CachedSource(
        fetcher,
        num_slots=num_slots,
        policy=cache_policy(config, spec.vocab_size, num_slots) if num_slots else None,
        bands=requested or None,
        num_staging=staging,
        arena=_arena(config, spec, staging, requested, num_slots),
    )


def warm(config: ServeConfig, source: CachedSource) -> int:
    """Fill the cache with what a node before this one saved, most wanted first, then by counts; the rows it has now.

    With the policy "frequency" the counts alone decide.

    Raises:
        ValueError: the saved state is of another vocabulary, or the file is none.
    """
    if config.cache_state is None or config.cache_policy == "frequency":
        return source.warm()
    ids = read_state(config.cache_state, source.spec.vocab_size)
    if ids is None:
        _log.warning("there is no cache state at %s yet; the cache starts without", config.cache_state)
    return source.warm(ids)


def state_keeper(config: ServeConfig, source: CachedSource) -> StateKeeper | None:
    """What saves the cache's ids while and after it is used; None where it is not asked for."""
    if config.cache_state is None or source.num_slots == 0:
        return None
    return StateKeeper(config.cache_state, source.cached_ids, source.spec.vocab_size)


def cache_policy(config: ServeConfig, vocab_size: int, num_slots: int) -> CachePolicy:
    """What the cache keeps, with the counts that it starts from where there are any.

    Raises:
        ValueError: the counts cannot be read or are not of this vocabulary.
    """
    counts = None if config.cache_counts is None else read_counts(config.cache_counts, vocab_size)
    if config.cache_policy == "lru":
        return LRU(num_slots, counts)
    if config.cache_policy == "s3fifo":
        return S3FIFO(num_slots, vocab_size, counts)
    assert counts is not None, "checked when the configuration was made"
    return StaticByFrequency(counts)


def _arena(config: ServeConfig, spec: RowSpec, staging: int, bands: tuple[int, ...], num_slots: int) -> Arena | None:
    if config.device == "cpu":
        return None
    import torch

    from tolserve.memory.device import DeviceArena

    device = torch.device(config.device)
    return DeviceArena(spec, num_staging=staging, slots=arena_slots(bands, num_slots), device=device)
