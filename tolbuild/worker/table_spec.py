"""A plan in the words of the table format."""

from __future__ import annotations

from tolbuild.plan import Plan
from tolbuild.table.spec import BandSpec, TableSpec

DTYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""NumPy's names of the types of codes."""


def table_spec(plan: Plan) -> TableSpec:
    """The table that a plan writes."""
    return TableSpec(
        plan_hash=plan.plan_hash,
        model_fingerprint=plan.fingerprint,
        vocab_size=plan.vocab_size,
        num_layers=plan.num_layers,
        hidden_size=plan.hidden_size,
        shard_rows=plan.shard_rows,
        full_rank=plan.full_rank,
        bands=tuple(
            BandSpec(index=band.index, layers=band.layers, ranks=band.ranks, dtype=DTYPES[plan.codes])
            for band in plan.bands
        ),
        dropped_layers=plan.dropped_layers,
        options=plan.options,
    )
