"""A plan in the words of the table format."""

from __future__ import annotations

from collections.abc import Collection

from tolbuild.plan import Plan
from tolbuild.table.spec import BandSpec, TableSpec

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8", "int4": "int4"}
"""The table's names of the types of codes."""


def table_spec(plan: Plan, token_scaled: Collection[int]) -> TableSpec:
    """The table that a plan with final ranks writes.

    Args:
        token_scaled: layers whose codes have a scale by token; those of a band are needed for its layout.
    """
    assert plan.allocated, "ranks are not known before pass 1"
    return TableSpec(
        plan_hash=plan.plan_hash,
        model_fingerprint=plan.fingerprint,
        vocab_size=plan.vocab_size,
        num_layers=plan.num_layers,
        hidden_size=plan.hidden_size,
        shard_rows=plan.shard_rows,
        full_rank=plan.full_rank,
        bands=tuple(
            BandSpec(
                index=band.index,
                layers=band.layers,
                ranks=band.ranks,
                dtype=DTYPES[plan.codes],
                token_scaled=tuple(layer for layer in band.layers if layer in token_scaled),
                whole_layers=tuple(layer for layer in band.layers if plan.is_whole(layer) and not plan.full_rank),
            )
            for band in plan.bands
        ),
        dropped_layers=plan.dropped_layers,
        options=plan.options,
        format=plan.layout,
    )
