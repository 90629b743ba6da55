"""Bytes of the documents around a table's arrays: receipts, manifest, and zarr metadata."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tolbuild.plan import Plan
from tolbuild.sizes import METADATA_BYTES
from tolbuild.table.arrays import ObjectSum
from tolbuild.table.layout import ShardedLayout
from tolbuild.table.receipts import LayerTally, ShardReceipt, encode_row_sums
from tolbuild.table.spec import TableSpec
from tolbuild.table.zarr_metadata import group_metadata, plain_metadata, sharded_metadata
from tolbuild.worker.table_spec import table_spec

_SOME_NUMBER = 0.12345678901234567
_SOME_SUM = ObjectSum(key="", size=100_000, crc32c=2**32 - 1)

_MANIFEST_BYTES = 1100
_BAND_BYTES, _LAYER_BYTES, _ARRAY_BYTES = 700, 290, 130
"""Of a manifest's JSON for the version, each band, layer and array, beside the objects that it names."""

_ARRAY_DEPTH, _SHARD_DEPTH, _RECEIPT_DEPTH = 5, 8, 3
"""Spaces before a named object."""


def document_bytes(plan: Plan) -> int:
    """Receipts and manifest, and by how much metadata is less than tolbuild.sizes counts for it (so it may be < 0)."""
    spec = table_spec(replace(plan, allocated=True), plan.kept_layers if plan.row_scales else ())
    last = plan.num_shards - 1
    receipts = sum(last * _receipt_bytes(spec, band, 0) + _receipt_bytes(spec, band, last) for band in _bands(spec))
    metadata = _metadata(plan, spec)
    named_shards = plan.num_shards * (_named(spec.layout(0).shard_key(last), _SHARD_DEPTH))
    named_receipts = plan.num_shards * _named(_receipt(spec, 0, last).key, _RECEIPT_DEPTH)
    manifest = (
        _MANIFEST_BYTES
        + len(spec.bands) * (_BAND_BYTES + named_shards + named_receipts)
        + len(plan.kept_layers) * _LAYER_BYTES
        + len(metadata) * (_ARRAY_BYTES + 2 * _named(f"arrays/{plan.plan_hash}/row_crc32c/c/0/0", _ARRAY_DEPTH))
    )
    return receipts + manifest + sum(map(len, metadata)) - len(metadata) * METADATA_BYTES


def _bands(spec: TableSpec) -> range:
    return range(len(spec.bands))


def _receipt(spec: TableSpec, band: int, shard: int) -> ShardReceipt:
    layout = spec.layout(band)
    weighted = _SOME_NUMBER if "weights" in spec.options else None
    tallies = [
        LayerTally(
            layer=layer,
            squared_error=_SOME_NUMBER,
            squared_rows=_SOME_NUMBER,
            max_relative_error=_SOME_NUMBER,
            weighted_error=weighted,
            weighted_rows=weighted,
        )
        for layer in spec.bands[band].layers
    ]
    return ShardReceipt(
        plan_hash=spec.plan_hash,
        band=band,
        shard=shard,
        codes=replace(_SOME_SUM, key=layout.shard_key(shard)),
        row_sums=encode_row_sums(np.zeros(layout.rows_in(shard), np.uint32)),
        layers=tuple(tallies),
    )


def _receipt_bytes(spec: TableSpec, band: int, shard: int) -> int:
    return len(_receipt(spec, band, shard).to_bytes())


def _named(key: str, depth: int) -> int:
    """Bytes of an object's name, size and sum in a manifest."""
    lines = ("{", f' "crc32c": {_SOME_SUM.crc32c},', f' "key": "{key}",', f' "size": {_SOME_SUM.size}', "},")
    return sum(depth + len(line) + 1 for line in lines)


def _metadata(plan: Plan, spec: TableSpec) -> list[bytes]:
    """The zarr.json of every array that tolbuild.sizes counts."""
    by_layer = (plan.num_layers, plan.hidden_size)
    found = [group_metadata(), plain_metadata((plan.vocab_size, len(spec.bands)), "uint32", ["token", "band"])]
    layouts = [spec.layout(band) for band in _bands(spec)]
    found += [sharded_metadata(layout) for layout in layouts if isinstance(layout, ShardedLayout)]
    if plan.quantised and (plan.full_rank or plan.rule is not None):
        found.append(plain_metadata(by_layer, "float32", ["layer", "value"]))
    if not plan.full_rank:
        found += [plain_metadata(by_layer, dtype, ["layer", "value"]) for dtype in ("float32", "float64")]
        shapes = [(plan.rank(layer), plan.hidden_size) for layer in plan.kept_layers]
        found += [plain_metadata(shape, "float32", ["code", "value"]) for shape in shapes]
    return found
