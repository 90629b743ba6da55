"""One attention node: engine, rows and the link that gateways connect to. Plain; `on_ray` runs it in a deployment."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

from tolbuild.checkpoint import open_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.table import Table, open_table
from tolserve.edition_engine import EditionEngine, added
from tolserve.engine.build import requested_bands
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.link.server import LinkServer
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
from tolserve.rollout import Edition
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


class AttentionReplica:
    """Loads a model when made and serves it to gateways until `stop`.

    Args:
        host: interface that the link listens on.
        edition: what it computes with at first; `prepare` adds another, `drop` gives one up.
        addresses: of the memory nodes, at least one a partition.

    Raises:
        ValueError: checkpoint, table and settings do not fit each other.
        ToLError: checkpoint or table cannot be read, or memory nodes cannot be reached.
    """

    def __init__(self, config: ServeConfig, *, host: str, edition: Edition, addresses: Addresses) -> None:
        self._config = config
        self._opened: dict[Edition, OpenEdition] = {}
        self._past_client: dict[str, Any] = {}
        first = open_edition(config, edition, addresses)
        self._engine = EditionEngine(edition, first.engine)
        self._opened[edition] = first
        self._link = LinkServer(
            self._engine,
            host=host,
            hello={"model": config.name, "version": edition.version, "editions": self._named()},
            more_stats=self._more_stats,
            place=self._engine.place,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where gateways connect."""
        return self._link.address

    @property
    def failure(self) -> Exception | None:
        """Why the engine does not run any more."""
        return self._link.failure

    @property
    def editions(self) -> tuple[Edition, ...]:
        """What it can compute with."""
        return tuple(self._opened)

    @property
    def num_open(self) -> int:
        """Generations that run or wait here."""
        return self._link.num_open

    def prepare(self, edition: Edition, addresses: Addresses) -> None:
        """Be able to compute with another edition too, while generations go on. One thread at a time.

        Raises:
            ValueError, ToLError: as when it was made; nothing has changed then.
        """
        base = next(iter(self._opened.values())).engine
        made = open_edition(self._config, edition, addresses, base=base, alone=self._engine.between_steps())
        self._opened = {**self._opened, edition: made}
        self._engine.put(edition, made.engine)

    def drop(self, edition: Edition) -> bool:
        """Give up an edition, with its cache and connections; False while a generation is of it."""
        if edition not in self._opened or not self._engine.drop(edition):
            return False
        opened = self._opened
        self._opened = {known: one for known, one in opened.items() if known != edition}
        gone = opened[edition].client_stats()
        gone.pop("num_connected", None)
        self._past_client = added(self._past_client, gone)
        opened[edition].close()
        return True

    def update_addresses(self, edition: Edition, addresses: Sequence[Sequence[tuple[str, int]]]) -> None:
        """Use these memory nodes for an edition from now on."""
        if edition in self._opened:
            self._opened[edition].update_addresses(addresses)

    def drain(self) -> None:
        """Tell gateways to send nothing more; what they sent goes on."""
        self._link.drain()

    def _named(self) -> dict[str, str]:
        return {edition.key: one.fingerprint for edition, one in self._opened.items()}

    def _more_stats(self) -> dict[str, Any]:
        client = self._past_client
        for one in list(self._opened.values()):
            client = added(client, one.client_stats())
        return {"editions": self._named(), **({"client": client} if client else {})}

    def stop(self) -> None:
        """End the link and the engine, and give the rows back."""
        self._link.stop()
        for one in self._opened.values():
            one.close()


@dataclass(kw_only=True)
class OpenEdition:
    """One edition on this node: its rows and the engine over them.

    Attributes:
        fingerprint: what answers name it by; empty where there is no table.
        known: where its memory nodes were last said to be.
    """

    rows: Rows
    engine: Engine
    fingerprint: str
    known: Addresses

    def update_addresses(self, addresses: Sequence[Sequence[tuple[str, int]]]) -> None:
        """Use these memory nodes from now on."""
        new = [[(str(host), int(port)) for host, port in nodes] for nodes in addresses]
        if self.rows.client is not None and new != self.known:
            _log.info("memory nodes are now at %s", new)
            self.rows.client.update_addresses(new)
            self.known = new

    def client_stats(self) -> dict[str, Any]:
        """Of its client, for metrics; empty where it has none."""
        return {} if self.rows.client is None else dict(self.rows.client.stats())

    def close(self) -> None:
        """Give the rows back."""
        self.rows.close()


def open_edition(
    config: ServeConfig,
    edition: Edition,
    addresses: Addresses,
    *,
    base: Engine | None = None,
    alone: AbstractContextManager[Any] | None = None,
) -> OpenEdition:
    """Rows of an edition and an engine over them.

    Args:
        base: an engine of the same configuration; see `build_engine`.
        alone: entered while an engine on a GPU is made.

    Raises:
        ValueError, ToLError: see `AttentionReplica`.
    """
    own = replace(config, memory_nodes=edition.num_partitions) if config.table else config
    shape = open_checkpoint(own.checkpoint).config
    rows = open_rows(own, shape, edition.version, addresses)
    try:
        with alone if alone and own.device != "cpu" else contextlib.nullcontext():
            engine = build_engine(own.checkpoint, rows.source, engine_config(own, shape), table=rows.table, base=base)
    except BaseException:
        rows.close()
        raise
    identity = "" if rows.table is None else f"v{edition.version}-{rows.table.manifest.identity.hex()[:16]}"
    return OpenEdition(rows=rows, engine=engine, fingerprint=identity, known=addresses)
