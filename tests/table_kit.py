"""What tests of tables share: a small random table written to any store, and the exact rows that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    """A published table: its codes by band [V, columns], and the rows [V, L, D] that they stand for in fp64."""

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
            )
            for index, some in enumerate(layers)
        ),
        dropped_layers=dropped,
        options={"codes": dtype},
    )


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
    codes = [_codes(spec, band, rng, zero_rows) for band in spec.bands]
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
            part = codes[band.index][:, start : start + rank].astype(np.float64)
            rows_VLD[:, layer] = _decode(part, fitted[layer])
            start += rank
    return Made(manifest=manifest, codes=codes, rows_VLD=rows_VLD)


def _layers(band: BandSpec) -> list[tuple[int, int]]:
    return list(zip(band.layers, band.ranks, strict=True))


def _codes(spec: TableSpec, band: BandSpec, rng: np.random.Generator, zero_rows: slice | None) -> NDArray[np.generic]:
    shape = (spec.vocab_size, sum(band.ranks))
    if band.dtype == "int8":
        codes: NDArray[np.generic] = rng.integers(-127, 128, shape).astype(np.int8)
    else:
        codes = rng.standard_normal(shape).astype(band.dtype)
    if zero_rows is not None:
        codes[zero_rows] = 0
    return codes


def _fitted(spec: TableSpec, layer: int, rank: int, rng: np.random.Generator) -> LayerArrays:
    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    width = spec.hidden_size
    if spec.full_rank:
        integers = spec.bands[0].dtype == "int8"
        return LayerArrays(scale_D=np.abs(normal(width)) + 0.1 if integers else None)
    spectrum_D = np.sort(rng.random(width))[::-1]
    return LayerArrays(mean_D=normal(width), basis_RD=normal(rank, width), spectrum_D=spectrum_D)


def _decode(codes_NR: NDArray[np.float64], fitted: LayerArrays) -> NDArray[np.float64]:
    rows_ND = codes_NR if fitted.basis_RD is None else codes_NR @ fitted.basis_RD.astype(np.float64)
    if fitted.scale_D is not None:
        rows_ND = rows_ND * fitted.scale_D
    return rows_ND if fitted.mean_D is None else rows_ND + fitted.mean_D
