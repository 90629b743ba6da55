"""Making an engine: weights from a checkpoint, rows from a source, expansion from the table they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tolbuild.config import ModelConfig
from tolserve.engine.config import EngineConfig
from tolserve.engine.detokenise import Decoder
from tolserve.engine.early_exit import EarlyExit
from tolserve.engine.engine import Engine
from tolserve.engine.executor import Executor
from tolserve.engine.expand import LayerExpansion, MemoryTerms, make_terms
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.model import StepModel
from tolserve.engine.prefix import PrefixCache, prefix_root
from tolserve.engine.rows import RowFeed, codes_tensor
from tolserve.engine.verify import RecomputeRow, RowVerifier
from tolserve.engine.weights import ModelWeights, TensorSource, load_merges, load_weights
from tolserve.memory.source import CachingSource, RowSource
from tolserve.memory.spec import BandSpec, RowSpec

_PIN_ROWS = 1024
"""Rows requested at once while pinned bands are loaded."""


@dataclass(frozen=True, kw_only=True)
class RowChecks:
    """What served rows are verified against: a recomputation and, by layer, the relative error the table states."""

    recompute: RecomputeRow
    bounds: Mapping[int, float]


def make_engine(
    tensors: TensorSource,
    config: EngineConfig,
    *,
    source: RowSource | None = None,
    expansions: tuple[LayerExpansion, ...] | None = None,
    tokenizer: Decoder | None = None,
    checks: RowChecks | None = None,
    base: Engine | None = None,
) -> Engine:
    """An engine over the weights of `tensors`.

    Args:
        source: of rows; required for a model with memory and refused for one without.
        expansions: by layer, for codes that are not plain rows (`expand.table_expansions`).
        checks: required where `config.verify_every` is set.
        base: an engine of the same weights and settings over other rows; its weights and KV cache are shared, so that
            one thread may use both.

    Raises:
        ValueError: source and model do not fit each other, or the configuration does not fit the model.
    """
    shape = tensors.config
    _check_fit(shape, config, source)
    device = torch.device(config.device)
    load = load_merges if base else load_weights
    weights = load(tensors, dtype=config.torch_dtype, device=device)
    layers = weights.layers if isinstance(weights, ModelWeights) else weights
    terms: MemoryTerms | None = None
    if source is not None:
        bands = source.spec.bands
        terms, layers = make_terms(
            layers,
            bands,
            expansions,
            load_pinned(source, bands[: config.pinned_bands], device),
            alpha=config.alpha,
            drop_layers=config.drop_layers,
        )
    if isinstance(weights, ModelWeights):
        model = StepModel(shape, replace(weights, layers=layers), _cache(shape, config, device), terms)
    else:
        assert base is not None
        model = base.model.with_terms(layers, terms)
    prefix = None
    if config.prefix_cache:
        prefix = PrefixCache(model.cache, prefix_root(shape, config, None if source is None else source.spec))
    feed = RowFeed(source, model.bands) if source is not None and model.bands else None
    verifier = None
    if config.verify_every and terms is not None:
        if checks is None:
            raise ValueError("verify_every needs the checkpoint's memory networks to compare with; none were given")
        verifier = RowVerifier(terms, expansions, checks.recompute, checks.bounds, config.verify_every)
    executor = make_executor(model, feed, config, _early_exit(model, feed, source, config))
    return Engine(model, config, executor=executor, feed=feed, tokenizer=tokenizer, verifier=verifier, prefix=prefix)


def make_executor(
    model: StepModel, feed: RowFeed | None, config: EngineConfig, early_exit: EarlyExit | None = None
) -> Executor:
    """Eager execution on a CPU, captured decode steps on a GPU."""
    if model.device.type != "cuda":
        return Executor(model, feed, early_exit)
    from tolserve.engine.graphs import GraphExecutor

    return GraphExecutor(model, feed, config.max_num_seqs, early_exit)


def _early_exit(
    model: StepModel, feed: RowFeed | None, source: RowSource | None, config: EngineConfig
) -> EarlyExit | None:
    if not config.speculative_rows:
        return None
    if feed is None or not isinstance(source, CachingSource):
        raise ValueError(
            f"speculative_rows is {config.speculative_rows}, but no row of this engine has to be brought from elsewhere"
        )
    return EarlyExit(model, feed, config.speculative_rows)


def load_pinned(source: RowSource, bands: tuple[BandSpec, ...], device: torch.device) -> dict[int, Tensor]:
    """Rows as stored [V, num_items] of `bands` for every token, on the device."""
    vocab_size = source.spec.vocab_size
    parts: dict[int, list[Tensor]] = {band.index: [] for band in bands}
    if bands:
        for start in range(0, vocab_size, _PIN_ROWS):
            ids = np.arange(start, min(start + _PIN_ROWS, vocab_size), dtype=np.int64)
            handle = source.start(ids, bands=tuple(parts))
            for band in bands:
                codes = codes_tensor(source.wait(handle, band.index), band.coding)
                parts[band.index].append(codes.to(device, copy=True))
            source.release(handle)
    return {index: torch.cat(pieces) for index, pieces in parts.items()}


def requested_bands(spec: RowSpec, config: EngineConfig) -> tuple[int, ...]:
    """Bands that an engine of `config` asks a source of `spec` for: what a cache in front of it should hold."""
    return tuple(
        band.index
        for band in spec.bands[config.pinned_bands :]
        if config.alpha
        and any(rank and layer not in config.drop_layers for layer, rank in zip(band.layers, band.ranks, strict=True))
    )


def _check_fit(shape: ModelConfig, config: EngineConfig, source: RowSource | None) -> None:
    if shape.has_memory != (source is not None):
        raise ValueError(
            f"a {shape.kind} model {'needs a source of rows' if shape.has_memory else 'adds no looked-up rows'}"
        )
    if config.max_model_len > shape.max_position_embeddings:
        raise ValueError(
            f"max_model_len {config.max_model_len} is beyond the model's {shape.max_position_embeddings} positions"
        )
    if source is None:
        return
    spec = source.spec
    if spec.vocab_size != shape.vocab_size:
        raise ValueError(f"the rows are of {spec.vocab_size} tokens; the model has {shape.vocab_size}")
    if config.pinned_bands > len(spec.bands):
        raise ValueError(f"pinned_bands is {config.pinned_bands}; the table has {len(spec.bands)} bands")
    beyond = [layer for band in spec.bands for layer in band.layers if layer >= shape.num_hidden_layers]
    if beyond:
        raise ValueError(f"the rows have layers {beyond}; the model has {shape.num_hidden_layers}, counted from 0")


def _cache(shape: ModelConfig, config: EngineConfig, device: torch.device) -> KVCache:
    return KVCache(
        num_layers=shape.num_hidden_layers,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        num_rows=config.max_num_seqs,
        blocks_per_row=config.blocks_per_seq,
        dtype=config.torch_dtype,
        device=device,
    )
