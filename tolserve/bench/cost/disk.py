"""Rows of a store as a table on local disk, for places that read files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tolbuild.table import (
    BandSpec,
    LayerArrays,
    LayerTally,
    TableSpec,
    finish_table,
    open_store,
    publish,
    read_manifest,
    write_shard,
)
from tolbuild.table.errors import TableNotFoundError
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import RowStore

_SHARD_ROWS = 4096
_ITEMS = {"float16": np.float16, "float32": np.float32, "int8": np.int8}


def write_rows(folder: Path, rows: RowStore) -> str:
    """A published table of `rows` at `folder`, unless one stands there; bases are of no use. Returns the path."""
    store = open_store(str(folder))
    try:
        try:
            read_manifest(store)
        except TableNotFoundError:
            _write(store, rows)
    finally:
        store.close()
    return str(folder)


def _write(store: object, rows: RowStore) -> None:
    spec = rows.spec
    layout = _table_spec(spec)
    for band in spec.bands:
        tallies = [
            LayerTally(layer=layer, squared_error=0.0, squared_rows=1.0, max_relative_error=0.0)
            for layer in band.layers
        ]
        for shard, first in enumerate(range(0, spec.vocab_size, _SHARD_ROWS)):
            ids = np.arange(first, min(first + _SHARD_ROWS, spec.vocab_size), dtype=np.int64)
            part = np.empty((len(ids), band.row_bytes), np.uint8)
            rows.gather(rows.locate(ids), band.index, part)
            codes = part.view(_ITEMS[band.dtype])
            write_shard(store, layout, band.index, shard, codes, tallies)  # type: ignore[arg-type]
    width = layout.hidden_size
    fitted = {
        layer: LayerArrays(
            mean_D=np.zeros(width, np.float32),
            basis_RD=np.zeros((rank, width), np.float32),
            spectrum_D=np.zeros(width),
        )
        for band in spec.bands
        for layer, rank in zip(band.layers, band.ranks, strict=True)
    }
    publish(store, finish_table(store, layout, fitted, version=1))  # type: ignore[arg-type]


def _table_spec(spec: RowSpec) -> TableSpec:
    return TableSpec(
        plan_hash="c057c057c057c057",
        model_fingerprint="c" * 64,
        vocab_size=spec.vocab_size,
        num_layers=sum(len(band.layers) for band in spec.bands),
        hidden_size=2048,
        shard_rows=_SHARD_ROWS,
        full_rank=False,
        bands=tuple(
            BandSpec(index=band.index, layers=band.layers, ranks=band.ranks, dtype=band.dtype) for band in spec.bands
        ),
        options={"codes": spec.bands[0].dtype},
    )
