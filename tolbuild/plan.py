"""What a build will do, as frozen values made before anything runs: the vocabulary x layer grid as cells.

Nothing here depends on who works or how many they are. Where ranks follow from spectra (`energy:`, `bytes:`), the plan
before pass 1 has the largest that they can be, and the plan after it is the same with the ranks that were found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tolbuild.build_config import BLOCK_ROWS, BuildConfig, Codes
from tolbuild.compress.allocate import ByteBudget, Costs, EnergyShare, RankRule, allocate_ranks, rank_bounds
from tolbuild.config import ModelConfig
from tolbuild.grid import Cell, FitCell, RanksCell, RowRange, ScaleCell, ShardCell, SumCell, make_segments
from tolbuild.rows import chunk_rows
from tolbuild.sizes import check_pages, layer_bytes, table_costs
from tolbuild.table.coding import LARGEST_CODE
from tolbuild.table.parquet import ParquetLayout
from tolbuild.weighting import UNIFORM, Weighting

RECIPE = 1
"""Raised whenever the same options begin to give other bytes; part of every plan hash."""

READ_ROWS = 2048
"""Embedding rows read at a time: few requests to a remote store, and little memory."""


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
    """The whole grid. Two plans of equal `plan_hash` give the same table bytes on the same kind of hardware.

    rule: how ranks follow from the layers' spectra; None where they are given. allocated: whether the bands have their
    final ranks (else the largest that these can be). row_scales: whether tokens may have scales. layout: of the files
    of codes. weights: digest of the tokens' weights, empty where they are uniform. layer_weights: one a layer of the
    model; empty where all are 1.
    """

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
    rule: RankRule | None = None
    allocated: bool = True
    row_scales: bool = False
    layout: str = "zarr"
    weights: str = ""
    layer_weights: tuple[float, ...] = ()

    @property
    def options(self) -> dict[str, object]:
        """What decides the table's bytes beside the checkpoint, in the words of the command line."""
        rank = str(self.rule) if self.rule else "full" if self.full_rank else max(self.bands[0].ranks)
        return {
            "rank": rank,
            "codes": self.codes,
            "layers_per_band": self.layers_per_band,
            "shard_rows": self.shard_rows,
            "drop_layers": list(self.dropped_layers),
            **({"row_scales": "auto"} if self.row_scales else {}),
            **({"layout": self.layout} if self.layout != "zarr" else {}),
            **({"weights": f"counts:{self.weights}"} if self.weights else {}),
            **({"layer_weights": list(self.layer_weights)} if self.layer_weights else {}),
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
        return self.codes in LARGEST_CODE

    @property
    def needs_fit(self) -> bool:
        """Whether pass 2 waits for something fitted: a basis, or the scales of integer codes."""
        return not self.full_rank or self.quantised

    @property
    def costs(self) -> Costs:
        """Bytes of the table's parts."""
        return table_costs(
            vocab_size=self.vocab_size,
            width=self.hidden_size,
            num_layers=self.num_layers,
            num_kept=len(self.kept_layers),
            num_bands=len(self.bands),
            shard_rows=self.shard_rows,
            codes=self.codes,
            full_rank=self.full_rank,
            row_scales=self.row_scales,
            layout=self.layout,
            may_be_whole=self.full_rank or self.rule is not None,
        )

    def row_bytes(self, band: BandPlan) -> int:
        """Bytes of one token in a band, every layer counted with a token's scale where it may have one."""
        return sum(layer_bytes(rank, self.codes, self.row_scales) for rank in band.ranks)

    def rank(self, layer: int) -> int:
        """Columns that one kept layer has."""
        band = self.bands[self.band_of(layer)]
        return band.ranks[band.layers.index(layer)]

    def is_whole(self, layer: int) -> bool:
        """Whether a kept layer's codes are its rows as they are, without basis and mean."""
        return self.full_rank or (self.rule is not None and self.rank(layer) == self.hidden_size)

    def num_fitted(self, layer: int) -> int:
        """Components that a fit of one kept layer has to give: all where the rank is not known yet."""
        return self.rank(layer) if self.rule is None else self.hidden_size

    def with_ranks(self, ranks: Sequence[int]) -> Plan:
        """The plan after pass 1.

        Args:
            ranks: one a kept layer, in their order.
        """
        return replace(self, bands=_bands(self.kept_layers, ranks, self.layers_per_band), allocated=True)

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

    def ranks_cells(self) -> tuple[RanksCell, ...]:
        """The one cell between the passes where ranks follow from spectra."""
        return () if self.rule is None else (RanksCell(),)

    def scale_cells(self) -> tuple[ScaleCell, ...]:
        """One a kept layer where scales of integer codes wait for ranks, since they depend on the components kept."""
        return tuple(ScaleCell(layer) for layer in self.kept_layers) if self.quantised and self.rule is not None else ()

    def shard_cells(self) -> tuple[ShardCell, ...]:
        """Pass 2, band by band."""
        return tuple(ShardCell(band.index, s) for band in self.bands for s in range(self.num_shards))

    def needs(self, cell: Cell) -> tuple[Cell, ...]:
        """The cells whose results `cell` reads."""
        if isinstance(cell, FitCell) and self.needs_sums:
            return tuple(SumCell(cell.layer, s) for s in range(len(self.segments)))
        if isinstance(cell, RanksCell):
            return self.fit_cells()
        if isinstance(cell, ScaleCell):
            return (FitCell(cell.layer), *self.ranks_cells())
        if isinstance(cell, ShardCell) and self.needs_fit:
            layers = self.bands[cell.band].layers
            scales = [scale for scale in self.scale_cells() if scale.layer in layers]
            return (*(FitCell(layer) for layer in layers), *self.ranks_cells(), *scales)
        return ()


def make_plan(config: BuildConfig, model: ModelConfig, fingerprint: str, weighting: Weighting = UNIFORM) -> Plan:
    """The plan of a build.

    Args:
        model: the checkpoint's config. fingerprint: over its weights and config.
        weighting: what the config's files say of tokens and layers.

    Raises:
        ValueError: the model has no memory, a rank is above D, a budget holds no table, a dropped layer does not exist
            or all are dropped, or a shard is too large for a Parquet page.
    """
    kept, dropped = _kept_layers(config, model)
    option = config.rank_option
    rule = option if isinstance(option, (EnergyShare, ByteBudget)) else None
    ranks = allocate_ranks(option if isinstance(option, int) else "full", len(kept), model.hidden_size)
    plan = Plan(
        plan_hash=_plan_hash(config, fingerprint, dropped, model, weighting),
        fingerprint=fingerprint,
        vocab_size=model.vocab_size,
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        hidden_units=model.memory_intermediate_size,
        full_rank=config.rank == "full",
        codes=config.codes,
        bands=_bands(kept, ranks, config.layers_per_band),
        dropped_layers=dropped,
        layers_per_band=config.layers_per_band,
        shard_rows=config.shard_rows,
        chunk_rows=chunk_rows(config.shard_rows),
        segments=make_segments(model.vocab_size, config.shard_rows),
        rule=rule,
        allocated=rule is None,
        row_scales=config.scales_rows,
        layout=config.layout,
        weights=weighting.digest,
        layer_weights=weighting.layer_weights,
    )
    if rule is not None:
        _, most = rank_bounds(rule, plan.costs, len(kept), plan.hidden_size)
        plan = replace(plan.with_ranks([most] * len(kept)), allocated=False)
    if plan.layout == ParquetLayout.format:
        check_pages(max(map(plan.row_bytes, plan.bands)), plan.shard_rows, plan.vocab_size)
    return plan


def _kept_layers(config: BuildConfig, model: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers that the table holds, and those that it leaves out."""
    if not model.has_memory:
        raise ValueError(
            f"a {model.kind} model has no table: its feed-forward networks read the context; give a memory or flex one"
        )
    dropped = tuple(sorted(config.drop_layers))
    kept = tuple(layer for layer in range(model.num_hidden_layers) if layer not in dropped)
    if any(not 0 <= layer < model.num_hidden_layers for layer in dropped):
        raise ValueError(
            f"--drop-layers {' '.join(map(str, dropped))}: the model has layers 0 to {model.num_hidden_layers - 1}"
        )
    if not kept:
        raise ValueError(f"--drop-layers leaves none of the {model.num_hidden_layers} layers")
    return kept, dropped


def _bands(kept: Sequence[int], ranks: Sequence[int], layers_per_band: int) -> tuple[BandPlan, ...]:
    pairs = list(zip(kept, ranks, strict=True))
    groups = [pairs[start : start + layers_per_band] for start in range(0, len(pairs), layers_per_band)]
    return tuple(
        BandPlan(index=index, layers=tuple(layer for layer, _ in group), ranks=tuple(rank for _, rank in group))
        for index, group in enumerate(groups)
    )


def _plan_hash(
    config: BuildConfig, fingerprint: str, dropped: tuple[int, ...], model: ModelConfig, weighting: Weighting
) -> str:
    """16 hex digits over everything that decides the table's bytes; what is not asked for is not in it."""
    option = config.rank_option
    if isinstance(option, (EnergyShare, ByteBudget)):
        ranks: object = str(option)
    else:
        ranks = allocate_ranks(option, model.num_hidden_layers, model.hidden_size)
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
        **({"row_scales": True} if config.scales_rows else {}),
        **({"layout": config.layout} if config.layout != "zarr" else {}),
        **({"weights": weighting.digest} if weighting.digest else {}),
        **({"layer_weights": weighting.layer_weights} if weighting.layer_weights else {}),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
