"""What a build will do, as frozen values made before anything runs: the vocabulary x layer grid as cells.

Pass 1 (only where the rank is cut): a `SumCell` computes one layer's rows of one segment of the vocabulary and adds up
their sum and Gram matrix; a `FitCell` adds a layer's segments in order and solves for its basis and scales. Pass 2: a
`ShardCell` turns one shard's rows of one band into codes. Nothing here depends on who works or how many they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tolbuild.build_config import BLOCK_ROWS, CODE_BYTES, BuildConfig, Codes
from tolbuild.compress.allocate import allocate_ranks
from tolbuild.config import ModelConfig
from tolbuild.rows import chunk_rows
from tolbuild.table.parquet import MAX_PAGE_BYTES

RECIPE = 1
"""Raised whenever the same options begin to give other bytes; part of every plan hash."""

MAX_SEGMENTS = 4
"""Partial sums a layer: few, so that `_build/` stays small, and fixed, so that additions happen in one order."""


READ_ROWS = 2048
"""Embedding rows read at a time: few requests to a remote store, and little memory."""


@dataclass(frozen=True, order=True)
class RowRange:
    """Token ids from `start` up to but not including `stop`."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def steps(self, size: int) -> Iterator[RowRange]:
        """The range cut at multiples of `size` from its start; the last piece may be shorter."""
        for start in range(self.start, self.stop, size):
            yield RowRange(start, min(start + size, self.stop))


@dataclass(frozen=True, order=True)
class SumCell:
    """Sum and Gram matrix of one layer's rows over one segment of the vocabulary."""

    layer: int
    segment: int

    @property
    def name(self) -> str:
        """Its name in messages and in the key of its partial sums."""
        return f"sum-{self.layer:03d}-{self.segment}"


@dataclass(frozen=True, order=True)
class FitCell:
    """Mean, basis and scales of one layer."""

    layer: int

    @property
    def name(self) -> str:
        """Its name in messages and in the key of what it fitted."""
        return f"fit-{self.layer:03d}"


@dataclass(frozen=True, order=True)
class ShardCell:
    """Codes of one band for the tokens of one shard: one object of the table and its receipt."""

    band: int
    shard: int

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"band-{self.band:03d}-shard-{self.shard:05d}"


Cell = SumCell | FitCell | ShardCell


@dataclass(frozen=True, kw_only=True)
class BandPlan:
    """Consecutive kept layers stored together; `ranks[i]` columns for `layers[i]` (D at full rank)."""

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def num_columns(self) -> int:
        """Codes a token has in this band."""
        return sum(self.ranks)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole grid. Two plans of equal `plan_hash` give the same table bytes on the same kind of hardware."""

    plan_hash: str
    fingerprint: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    hidden_units: int
    full_rank: bool
    codes: Codes
    bands: tuple[BandPlan, ...]
    dropped_layers: tuple[int, ...]
    layers_per_band: int
    shard_rows: int
    chunk_rows: int
    segments: tuple[RowRange, ...]
    row_scales: bool = False
    layout: str = "zarr"

    @property
    def options(self) -> dict[str, object]:
        """What decides the table's bytes beside the checkpoint, in the words of the command line."""
        return {
            "rank": "full" if self.full_rank else max(self.bands[0].ranks),
            "codes": self.codes,
            "layers_per_band": self.layers_per_band,
            "shard_rows": self.shard_rows,
            "drop_layers": list(self.dropped_layers),
            **({"row_scales": "auto"} if self.row_scales else {}),
            **({"layout": self.layout} if self.layout != "zarr" else {}),
        }

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """Layers that the table holds, in order."""
        return tuple(layer for band in self.bands for layer in band.layers)

    @property
    def num_shards(self) -> int:
        """Shards of every band."""
        return -(-self.vocab_size // self.shard_rows)

    @property
    def needs_sums(self) -> bool:
        """Whether there is a pass 1."""
        return not self.full_rank

    @property
    def quantised(self) -> bool:
        """Whether codes are integers, which have scales."""
        return self.codes in ("int8", "int4")

    @property
    def needs_fit(self) -> bool:
        """Whether pass 2 waits for something fitted: a basis, or the scales of integer codes."""
        return not self.full_rank or self.quantised

    def rank(self, layer: int) -> int:
        """Columns that one kept layer has."""
        band = self.bands[self.band_of(layer)]
        return band.ranks[band.layers.index(layer)]

    def band_of(self, layer: int) -> int:
        """Index of the band that holds a kept layer."""
        return next(band.index for band in self.bands if layer in band.layers)

    def shard_range(self, shard: int) -> RowRange:
        """Token ids of a shard; the last one may be short."""
        return RowRange(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.vocab_size))

    def sum_cells(self) -> tuple[SumCell, ...]:
        """Pass 1, layer by layer; empty at full rank."""
        if not self.needs_sums:
            return ()
        return tuple(SumCell(layer, s) for layer in self.kept_layers for s in range(len(self.segments)))

    def fit_cells(self) -> tuple[FitCell, ...]:
        """One a kept layer where something is fitted."""
        return tuple(FitCell(layer) for layer in self.kept_layers) if self.needs_fit else ()

    def shard_cells(self) -> tuple[ShardCell, ...]:
        """Pass 2, band by band."""
        return tuple(ShardCell(band.index, s) for band in self.bands for s in range(self.num_shards))

    def needs(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells whose results `cell` reads."""
        if isinstance(cell, FitCell) and self.needs_sums:
            return tuple(SumCell(cell.layer, s) for s in range(len(self.segments)))
        if isinstance(cell, ShardCell) and self.needs_fit:
            return tuple(FitCell(layer) for layer in self.bands[cell.band].layers)
        return ()


def make_plan(config: BuildConfig, model: ModelConfig, fingerprint: str) -> Plan:
    """The plan of a build.

    Args:
        config: the options.
        model: the checkpoint's config.
        fingerprint: the checkpoint's, over weights and config.

    Raises:
        ValueError: the model has no memory, a rank is above D, a dropped layer does not exist or all are dropped, or a
            shard is too large for a Parquet page.
    """
    if not model.has_memory:
        raise ValueError(
            f"a {model.kind} model has no table: its feed-forward networks read the context; give a memory or flex one"
        )
    dropped = tuple(sorted(config.drop_layers))
    kept = [layer for layer in range(model.num_hidden_layers) if layer not in dropped]
    if any(not 0 <= layer < model.num_hidden_layers for layer in dropped):
        raise ValueError(f"--drop-layers {dropped}: the model has layers 0 to {model.num_hidden_layers - 1}")
    if not kept:
        raise ValueError(f"--drop-layers leaves none of the {model.num_hidden_layers} layers")
    ranks = allocate_ranks(config.rank, model.num_hidden_layers, model.hidden_size)
    bands = tuple(
        BandPlan(index=index, layers=tuple(layers), ranks=tuple(ranks[layer] for layer in layers))
        for index, layers in enumerate(_groups(kept, config.layers_per_band))
    )
    plan_hash = _plan_hash(config, fingerprint, dropped, ranks)
    if config.layout == "parquet":
        _check_pages(config, bands, model.vocab_size)
    return Plan(
        plan_hash=plan_hash,
        fingerprint=fingerprint,
        vocab_size=model.vocab_size,
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        hidden_units=model.memory_intermediate_size,
        full_rank=config.rank == "full",
        codes=config.codes,
        bands=bands,
        dropped_layers=dropped,
        layers_per_band=config.layers_per_band,
        shard_rows=config.shard_rows,
        chunk_rows=chunk_rows(config.shard_rows),
        segments=make_segments(model.vocab_size, config.shard_rows),
        row_scales=_has_row_scales(config),
        layout=config.layout,
    )


def make_segments(vocab_size: int, shard_rows: int) -> tuple[RowRange, ...]:
    """The vocabulary as at most 4 runs of whole shards, as even as whole shards allow."""
    num_shards = -(-vocab_size // shard_rows)
    count = min(MAX_SEGMENTS, num_shards)
    edges = [num_shards * s // count * shard_rows for s in range(count + 1)]
    return tuple(RowRange(start, min(stop, vocab_size)) for start, stop in pairwise(edges))


def _check_pages(config: BuildConfig, bands: tuple[BandPlan, ...], vocab_size: int) -> None:
    row_bytes = math.ceil(max(band.num_columns for band in bands) * CODE_BYTES[config.codes])
    fitting = MAX_PAGE_BYTES // row_bytes // BLOCK_ROWS * BLOCK_ROWS
    if min(config.shard_rows, vocab_size) > fitting:
        raise ValueError(
            f"--shard-rows {config.shard_rows} of {row_bytes:,} bytes do not fit into a Parquet page of "
            f"{MAX_PAGE_BYTES:,} bytes, at most {fitting} do"
        )


def _has_row_scales(config: BuildConfig) -> bool:
    return config.row_scales == "auto" and config.codes in ("int8", "int4")


def _plan_hash(config: BuildConfig, fingerprint: str, dropped: tuple[int, ...], ranks: tuple[int, ...]) -> str:
    """16 hex digits over everything that decides the table's bytes."""
    body = {
        "recipe": RECIPE,
        "block_rows": BLOCK_ROWS,
        "fingerprint": fingerprint,
        "full_rank": config.rank == "full",
        "ranks": ranks,
        "codes": config.codes,
        "layers_per_band": config.layers_per_band,
        "shard_rows": config.shard_rows,
        "dropped_layers": dropped,
        **({"row_scales": True} if _has_row_scales(config) else {}),
        **({"layout": config.layout} if config.layout != "zarr" else {}),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
