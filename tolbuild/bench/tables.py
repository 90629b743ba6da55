"""A table of random rows, written without computing any: what reads and writes are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.publish import publish
from tolbuild.table.receipts import LayerTally
from tolbuild.table.spec import BandSpec, TableSpec
from tolbuild.table.store import Credentials, Store, open_store
from tolbuild.table.writer import finish_table, write_shard

WIDTH, LAYERS = 1024, 12
ROW_BYTES = WIDTH * LAYERS * 2
"""24 KiB: 12 layers of 1024 values in fp16, one band."""

SHARD_ROWS = 4096

Codes = NDArray[np.float16]


def table_spec(num_shards: int) -> TableSpec:
    """A table of one band at full rank in fp16."""
    layers = tuple(range(LAYERS))
    return TableSpec(
        plan_hash="bench",
        model_fingerprint="bench",
        vocab_size=num_shards * SHARD_ROWS,
        num_layers=LAYERS,
        hidden_size=WIDTH,
        shard_rows=SHARD_ROWS,
        full_rank=True,
        bands=(BandSpec(index=0, layers=layers, ranks=(WIDTH,) * LAYERS, dtype="float16"),),
    )


def random_codes(seed: int) -> Codes:
    """Codes of one shard."""
    bits = np.random.default_rng(seed).integers(0, 256, (SHARD_ROWS, ROW_BYTES), np.uint8)
    return bits.view(np.float16)


def write_shards(store: Store, spec: TableSpec, codes_NC: Codes) -> None:
    """Every shard and its receipt, all of the same codes."""
    tallies = [
        LayerTally(layer=layer, squared_error=0.0, squared_rows=1.0, max_relative_error=0.0) for layer in range(LAYERS)
    ]
    for shard in range(spec.vocab_size // SHARD_ROWS):
        write_shard(store, spec, 0, shard, codes_NC, tallies)


def write_table(place: Path | str, num_shards: int, seed: int, credentials: Credentials | None = None) -> list[str]:
    """A published table in a folder or behind a URL; returns the keys of its shards, in order."""
    spec = table_spec(num_shards)
    store = open_store(place, credentials)
    try:
        write_shards(store, spec, random_codes(seed))
        publish(store, finish_table(store, spec, {}, version=1), single_writer=True)
    finally:
        store.close()
    return [spec.layout(0).shard_key(shard) for shard in range(num_shards)]
