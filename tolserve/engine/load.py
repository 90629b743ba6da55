"""From addresses to an engine: a checkpoint's URL, a source of rows and the table that they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from tolbuild.checkpoint import Checkpoint, open_checkpoint
from tolbuild.rows import MAX_CHUNK_ROWS, compute_rows, ffn_rows
from tolbuild.table import Credentials, Table
from tolserve.engine.build import RowChecks, make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.engine import Engine
from tolserve.engine.expand import table_expansions
from tolserve.engine.local_rows import LocalRows
from tolserve.memory.source import RowSource

_LOCAL_LAYERS_PER_BAND = 2
_ROUNDING = 1e-4
"""Relative error that a row may have from rounding alone, on top of what its table states."""


def build_engine(
    checkpoint_url: str,
    source: RowSource | None,
    config: EngineConfig,
    *,
    table: Table | None = None,
    credentials: Credentials | None = None,
    base: Engine | None = None,
) -> Engine:
    """An engine that serves `checkpoint_url`.

    Args:
        source: where rows come from; None computes them all from the checkpoint and keeps them here, in full.
        table: the open table that the source's codes are of, for bases, means, scales and stated errors; its
            fingerprint must be the checkpoint's.
        base: an engine of the same checkpoint and `config` whose weights and KV cache are shared; see `make_engine`.

    Raises:
        ValueError: table and checkpoint do not belong together, or the configuration does not fit them.
    """
    checkpoint = open_checkpoint(checkpoint_url, credentials=credentials)
    shape = checkpoint.config
    if table is not None and table.manifest.model_fingerprint != checkpoint.fingerprint:
        raise ValueError(
            f"the table is of the checkpoint {table.manifest.model_fingerprint[:16]}, {checkpoint_url} is "
            f"{checkpoint.fingerprint[:16]}; give the checkpoint that the table was built from"
        )
    if shape.has_memory and source is None:
        source, table = local_rows(checkpoint), None
    expansions = None if table is None else table_expansions(table, shape.num_hidden_layers)
    checks = row_checks(checkpoint, table) if config.verify_every and shape.has_memory else None
    return make_engine(
        checkpoint,
        config,
        source=source,
        expansions=expansions,
        tokenizer=checkpoint.tokenizer(),
        checks=checks,
        base=base,
    )


def local_rows(checkpoint: Checkpoint) -> LocalRows:
    """All rows of a checkpoint, computed as a build computes them."""
    shape = checkpoint.config
    embedding_VD = checkpoint.embedding_rows(0, shape.vocab_size)

    def rows_of(layer: int) -> Tensor:
        return compute_rows(embedding_VD, checkpoint.memory_ffn(layer), chunk=MAX_CHUNK_ROWS)

    return LocalRows.computed(
        rows_of,
        vocab_size=shape.vocab_size,
        num_layers=shape.num_hidden_layers,
        width=shape.hidden_size,
        layers_per_band=_LOCAL_LAYERS_PER_BAND,
    )


def row_checks(checkpoint: Checkpoint, table: Table | None) -> RowChecks:
    """What served rows are compared with: the checkpoint's networks, within the table's stated errors."""

    def recompute(token_id: int, layer: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            row_D: Tensor = ffn_rows(checkpoint.embedding_rows(token_id, token_id + 1), checkpoint.memory_ffn(layer))[0]
        return row_D

    layers = range(checkpoint.config.num_hidden_layers)
    stated = {} if table is None else {stats.layer: stats.max_relative_error for stats in table.manifest.layer_stats}
    return RowChecks(recompute=recompute, bounds={layer: stated.get(layer, 0.0) + _ROUNDING for layer in layers})
