"""What tests of tables share: a small random table written to any store, and the exact rows that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tolbuild.table import (
    BandSpec,
    LayerArrays,
    LayerTally,
    Manifest,
    Store,
    TableSpec,
    finish_table,
    publish,
    write_shard,
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A published table: its codes by band as stored, and the rows [V, L, D] that they stand for in fp64."""

    manifest: Manifest
    codes: list[NDArray[np.generic]]
    rows_VLD: NDArray[np.float64]


def table_spec(
    *,
    vocab_size: int = 200,
    layers: tuple[tuple[int, ...], ...] = ((0, 1), (3,)),
    dropped: tuple[int, ...] = (2,),
    width: int = 16,
    rank: int | None = None,
    dtype: str = "float16",
    shard_rows: int = 128,
    plan_hash: str = "00c0ffee00c0ffee",
    files: str = "zarr",
    token_scaled: tuple[int, ...] = (),
) -> TableSpec:
    """V 200, four layers, one of them dropped, in two bands; `rank` None is full rank, else rank, rank + 1, ..."""
    return TableSpec(
        plan_hash=plan_hash,
        model_fingerprint="f" * 64,
        vocab_size=vocab_size,
        num_layers=sum(map(len, layers)) + len(dropped),
        hidden_size=width,
        shard_rows=shard_rows,
        full_rank=rank is None,
        bands=tuple(
            BandSpec(
                index=index,
                layers=some,
                ranks=tuple(width if rank is None else rank + place for place in range(len(some))),
                dtype=dtype,
                token_scaled=tuple(layer for layer in some if layer in token_scaled),
            )
            for index, some in enumerate(layers)
        ),
        dropped_layers=dropped,
        options={"codes": dtype},
        format=files,
    )


SPECS = {
    "full fp32": table_spec(dtype="float32"),
    "full fp16": table_spec(),
    "full int8": table_spec(dtype="int8"),
    "rank fp16": table_spec(rank=5),
    "rank int8": table_spec(rank=5, dtype="int8"),
    "V 1": table_spec(vocab_size=1),
    "V 65, shards of a block": table_spec(vocab_size=65, shard_rows=64),
    "V as the shards": table_spec(vocab_size=256),
    "shard over V": table_spec(vocab_size=70, shard_rows=4096),
    "one layer": table_spec(layers=((0,),), dropped=()),
    "odd rows": table_spec(rank=3, width=7, dtype="int8"),
    "full bf16": table_spec(dtype="bfloat16"),
    "rank bf16": table_spec(rank=5, dtype="bfloat16"),
    "full int4": table_spec(dtype="int4"),
    "rank int4, odd": table_spec(rank=5, dtype="int4"),
    "int8 by token": table_spec(rank=5, dtype="int8", token_scaled=(1, 3)),
    "full int4 by token": table_spec(dtype="int4", token_scaled=(0, 1, 3)),
    "int4 by token, one column": table_spec(rank=1, dtype="int4", vocab_size=65, token_scaled=(0,)),
}
"""Tables of every kind, as zarr; see `spec_of`."""

FILES = pytest.mark.parametrize("files", ["zarr", "parquet"])


def spec_of(name: str, files: str) -> TableSpec:
    """One of SPECS in files of a format."""
    return replace(SPECS[name], format=files)


def write_table(
    store: Store,
    spec: TableSpec,
    *,
    version: int = 1,
    seed: int = 0,
    zero_rows: slice | None = None,
    single_writer: bool = False,
) -> Made:
    """Random codes for every shard, random bases, published. `zero_rows` are zeros in every band."""
    rng = np.random.default_rng(seed)
    fitted = {layer: _fitted(spec, layer, rank, rng) for band in spec.bands for layer, rank in _layers(band)}
    drawn = [_draw(spec, band, rng, zero_rows) for band in spec.bands]
    codes = [_stored(band, *parts) for band, parts in zip(spec.bands, drawn, strict=True)]
    for band in spec.bands:
        layout = spec.layout(band.index)
        for shard in range(layout.num_shards):
            part = codes[band.index][shard * spec.shard_rows : (shard + 1) * spec.shard_rows]
            tallies = [
                LayerTally(layer=layer, squared_error=0.01, squared_rows=1.0, max_relative_error=0.2)
                for layer in band.layers
            ]
            write_shard(store, spec, band.index, shard, part, tallies)
    manifest = publish(store, finish_table(store, spec, fitted, version=version), single_writer=single_writer)
    rows_VLD = np.zeros((spec.vocab_size, spec.num_layers, spec.hidden_size))
    for band in spec.bands:
        start = 0
        for layer, rank in _layers(band):
            values, scales = drawn[band.index]
            part = values[:, start : start + rank].astype(np.float64)
            rows_VLD[:, layer] = _decode(part * scales[layer][:, None] if layer in scales else part, fitted[layer])
            start += rank
    return Made(manifest=manifest, codes=codes, rows_VLD=rows_VLD)


def _layers(band: BandSpec) -> list[tuple[int, int]]:
    return list(zip(band.layers, band.ranks, strict=True))


Scales = dict[int, NDArray[np.float16]]


def _draw(
    spec: TableSpec, band: BandSpec, rng: np.random.Generator, zero_rows: slice | None
) -> tuple[NDArray[np.generic], Scales]:
    """The value of each code [V, columns], and by layer the scale of each token."""
    shape = (spec.vocab_size, sum(band.ranks))
    largest = {"int8": 127, "int4": 7}.get(band.dtype)
    if largest is not None:
        values: NDArray[np.generic] = rng.integers(-largest, largest + 1, shape).astype(np.int8)
    elif band.dtype == "bfloat16":
        values = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    else:
        values = rng.standard_normal(shape).astype(band.dtype)
    if zero_rows is not None:
        values[zero_rows] = 0
    return values, {layer: (rng.random(shape[0]) + 0.1).astype(np.float16) for layer in band.token_scaled}


def _stored(band: BandSpec, values: NDArray[np.generic], scales: Scales) -> NDArray[np.generic]:
    """Rows as the format says they are stored."""
    if band.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    if band.dtype != "int4" and not scales:
        return values
    parts: list[NDArray[np.generic]] = [scales[layer][:, None] for layer in band.layers if layer in scales]
    start = 0
    for _, rank in _layers(band):
        part = values[:, start : start + rank]
        if band.dtype == "int4":
            even = np.pad(part, ((0, 0), (0, rank % 2)))
            part = (even[:, ::2] & 15 | even[:, 1::2] << 4).astype(np.int8)
        parts.append(part)
        start += rank
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def _fitted(spec: TableSpec, layer: int, rank: int, rng: np.random.Generator) -> LayerArrays:
    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    width = spec.hidden_size
    if spec.full_rank:
        integers = spec.bands[0].dtype in ("int8", "int4")
        return LayerArrays(scale_D=np.abs(normal(width)) + 0.1 if integers else None)
    spectrum_D = np.sort(rng.random(width))[::-1]
    return LayerArrays(mean_D=normal(width), basis_RD=normal(rank, width), spectrum_D=spectrum_D)


def _decode(codes_NR: NDArray[np.float64], fitted: LayerArrays) -> NDArray[np.float64]:
    rows_ND = codes_NR if fitted.basis_RD is None else codes_NR @ fitted.basis_RD.astype(np.float64)
    if fitted.scale_D is not None:
        rows_ND = rows_ND * fitted.scale_D
    return rows_ND if fitted.mean_D is None else rows_ND + fitted.mean_D
