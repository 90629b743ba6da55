"""Writing a table: shards with receipts by any number of workers, then the small arrays and the manifest by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table import crc32c
from tolbuild.table.errors import TableCorruptError
from tolbuild.table.layout import ShardedLayout
from tolbuild.table.manifest import (
    BASIS,
    CAST,
    IDENTITY,
    MEAN,
    NONE,
    SCALED,
    ArrayRef,
    Band,
    LayerStats,
    Manifest,
    ObjectSum,
    Part,
    TokenClass,
)
from tolbuild.table.receipts import (
    LayerTally,
    ShardReceipt,
    arrays_prefix,
    encode_row_sums,
    finished_shards,
    in_parallel,
)
from tolbuild.table.stats import layer_stats
from tolbuild.table.store import Store
from tolbuild.table.zarr_metadata import group_metadata, plain_metadata, sharded_metadata


@dataclass(frozen=True, kw_only=True)
class BandSpec:
    """A band to be written: `ranks[i]` columns of type `dtype` for `layers[i]`.

    whole_layers: those whose codes are their rows in a table where others have less than full rank.
    """

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    dtype: str
    whole_layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table to be written, before its first byte.

    full_rank: codes are the rows themselves, arrays [V, layers, D]; else coefficients, [V, sum of ranks].
    """

    plan_hash: str
    model_fingerprint: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    shard_rows: int
    full_rank: bool
    bands: tuple[BandSpec, ...]
    dropped_layers: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def layout(self, band: int) -> ShardedLayout:
        """Addresses of a band's codes."""
        spec = self.bands[band]
        tail = (len(spec.layers), self.hidden_size) if self.full_rank else (sum(spec.ranks),)
        return ShardedLayout(
            prefix=f"{arrays_prefix(self.plan_hash)}/band-{band:03d}",
            shape=(self.vocab_size, *tail),
            dtype=spec.dtype,
            shard_rows=self.shard_rows,
        )


@dataclass(frozen=True, kw_only=True)
class LayerArrays:
    """What was fitted to one layer. Rows as they are have no basis, and `scale_D` for integers; else mean and basis.

    mean_D, basis_RD (an integer's scales folded in), scale_D: fp32. spectrum_D: fp64, the eigenvalues of the centred
    Gram matrix, descending.
    """

    mean_D: NDArray[np.float32] | None = None
    basis_RD: NDArray[np.float32] | None = None
    scale_D: NDArray[np.float32] | None = None
    spectrum_D: NDArray[np.float64] | None = None


def write_shard(
    store: Store, spec: TableSpec, band: int, shard: int, codes_NC: NDArray[Any], layers: Sequence[LayerTally]
) -> ShardReceipt:
    """Write one shard of one band, then its receipt; both are durable on return.

    Args:
        codes_NC: [tokens of the shard, columns of the band], contiguous, in the band's type.
        layers: the errors to put into the receipt, one a layer.

    Raises:
        ValueError: codes of another shape or type.
        StoreError: the store failed.
    """
    layout = spec.layout(band)
    expected = (layout.rows_in(shard), layout.num_columns)
    if codes_NC.shape != expected or codes_NC.dtype != layout.dtype or not codes_NC.flags.c_contiguous:
        raise ValueError(
            f"codes of band {band}, shard {shard} are {codes_NC.dtype} {list(codes_NC.shape)}; "
            f"expected contiguous {layout.dtype} {list(expected)}"
        )
    rows = codes_NC.view(np.uint8)
    ending = bytes(layout.data_bytes(shard) - rows.size) + layout.shard_index(shard)
    key = layout.shard_key(shard)
    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        written = pool.submit(store.write, key, rows, ending)
        sums = crc32c.of_rows(rows)
        written.result()
    whole = crc32c.joined(crc32c.of_joined(sums, layout.row_bytes), crc32c.value(ending), len(ending))
    receipt = ShardReceipt(
        plan_hash=spec.plan_hash,
        band=band,
        shard=shard,
        codes=ObjectSum(key=key, size=rows.size + len(ending), crc32c=whole),
        row_sums=encode_row_sums(sums),
        layers=tuple(layers),
    )
    store.write(receipt.key, receipt.to_bytes())
    return receipt


def finish_table(store: Store, spec: TableSpec, fitted: Mapping[int, LayerArrays], *, version: int) -> Manifest:
    """Write what all shards share and make the manifest, which the caller publishes. Equal input gives equal objects.

    Args:
        fitted: by kept layer; layers without anything fitted may be absent.
        version: number of the version to be.

    Raises:
        TableCorruptError: a shard or its receipt is not there, or its index is another; the message names the first.
        StoreError: the store failed.
    """
    receipts = finished_shards(store, spec.plan_hash)
    wanted = {(band.index, s): spec.layout(band.index) for band in spec.bands for s in range(_num_shards(spec))}
    missing = [layout.shard_key(shard) for (band, shard), layout in wanted.items() if (band, shard) not in receipts]
    if missing:
        named = ", ".join(missing[:3])
        raise TableCorruptError(f"{len(missing)} of {len(wanted)} shards are not finished: {named}, ...", missing)
    in_parallel(lambda place: _check_index(store, wanted[place], place[1]), wanted)
    arrays = _write_small_arrays(store, spec, fitted, receipts)
    return Manifest(
        version=version,
        plan_hash=spec.plan_hash,
        model_fingerprint=spec.model_fingerprint,
        vocab_size=spec.vocab_size,
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        bands=tuple(_finish_band(store, spec, band, fitted, receipts) for band in spec.bands),
        dropped_layers=spec.dropped_layers,
        layer_stats=tuple(_layer_stats(spec, fitted, receipts)),
        arrays=arrays,
        receipts=tuple(receipts[key].object_sum() for key in sorted(wanted)),
        metadata=(_put(store, f"{arrays_prefix(spec.plan_hash)}/zarr.json", group_metadata()),),
        options=dict(spec.options),
    )


def _check_index(store: Store, layout: ShardedLayout, shard: int) -> None:
    """Readers trust base + i * stride: the index that stands in the store must say the same."""
    expected = layout.shard_index(shard)
    found = np.empty(len(expected), np.uint8)
    key = layout.shard_key(shard)
    store.read_scattered(key, np.array([layout.object_bytes(shard) - len(expected)]), [found])
    if found.tobytes() != expected:
        raise TableCorruptError(f"{store.url}/{key}: the shard index is not what was written; run again", [key])


Receipts = Mapping[tuple[int, int], ShardReceipt]


def _num_shards(spec: TableSpec) -> int:
    return spec.layout(0).num_shards


def _finish_band(
    store: Store, spec: TableSpec, band: BandSpec, fitted: Mapping[int, LayerArrays], receipts: Receipts
) -> Band:
    layout = spec.layout(band.index)
    metadata = _put(store, f"{layout.prefix}/zarr.json", sharded_metadata(layout))
    shards = [receipts[band.index, shard].codes for shard in range(layout.num_shards)]
    codes = ArrayRef(
        prefix=layout.prefix,
        shape=layout.shape,
        dtype=layout.dtype,
        shard_rows=layout.shard_rows,
        objects=(metadata, *shards),
    )
    scaled = np.dtype(band.dtype).kind == "i"
    whole = band.layers if spec.full_rank else band.whole_layers
    bases = tuple(IDENTITY if layer in whole else _basis_name(layer) for layer in band.layers)
    reduced = len(whole) < len(band.layers)
    return Band(
        index=band.index,
        layers=band.layers,
        ranks=band.ranks,
        transform=Part(name=BASIS, arrays=bases) if reduced else Part(name=IDENTITY),
        predictor=Part(name=MEAN, arrays=("means",)) if reduced else Part(name=NONE),
        quantiser=Part(name=SCALED, arrays=("scales",) if whole else ()) if scaled else Part(name=CAST),
        classes=(TokenClass(name="all", codes=codes),),
    )


def _basis_name(layer: int) -> str:
    return f"basis-{layer:03d}"


def _write_small_arrays(
    store: Store, spec: TableSpec, fitted: Mapping[int, LayerArrays], receipts: Receipts
) -> tuple[ArrayRef, ...]:
    sums = [
        np.concatenate([receipts[band.index, shard].row_crc32c for shard in range(_num_shards(spec))])
        for band in spec.bands
    ]
    refs = [write_array(store, spec, "row_crc32c", np.stack(sums, axis=1), ["token", "band"])]
    by_layer: dict[str, dict[int, NDArray[Any]]] = {
        "means": {layer: arrays.mean_D for layer, arrays in fitted.items() if arrays.mean_D is not None},
        "scales": {layer: arrays.scale_D for layer, arrays in fitted.items() if arrays.scale_D is not None},
        "spectra": {layer: arrays.spectrum_D for layer, arrays in fitted.items() if arrays.spectrum_D is not None},
    }
    for name, vectors in by_layer.items():
        if vectors:
            whole = np.zeros((spec.num_layers, spec.hidden_size), next(iter(vectors.values())).dtype)
            for layer, vector in vectors.items():
                whole[layer] = vector
            refs.append(write_array(store, spec, name, whole, ["layer", "value"]))

    def write_basis(layer: int) -> ArrayRef:
        basis_RD = fitted[layer].basis_RD
        assert basis_RD is not None
        return write_array(store, spec, _basis_name(layer), basis_RD, ["code", "value"])

    layers = [layer for layer in sorted(fitted) if fitted[layer].basis_RD is not None]
    return (*refs, *in_parallel(write_basis, layers))


def write_array(store: Store, spec: TableSpec, name: str, array: NDArray[Any], axes: list[str]) -> ArrayRef:
    """Write a small array under the plan's folder as a zarr array of one chunk."""
    prefix = f"{arrays_prefix(spec.plan_hash)}/{name}"
    dtype = array.dtype.name
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    chunk_key = f"{prefix}/c" + "/0" * array.ndim
    metadata = _put(store, f"{prefix}/zarr.json", plain_metadata(array.shape, dtype, axes))
    return ArrayRef(
        prefix=prefix,
        shape=array.shape,
        dtype=dtype,
        shard_rows=None,
        objects=(metadata, _put(store, chunk_key, data)),
    )


def _put(store: Store, key: str, data: bytes) -> ObjectSum:
    store.write(key, data)
    return ObjectSum(key=key, size=len(data), crc32c=crc32c.value(data))


def _layer_stats(spec: TableSpec, fitted: Mapping[int, LayerArrays], receipts: Receipts) -> list[LayerStats]:
    ranks = [pair for band in spec.bands for pair in zip(band.layers, band.ranks, strict=True)]
    spectra = {layer: arrays.spectrum_D for layer, arrays in fitted.items() if arrays.spectrum_D is not None}
    return layer_stats(ranks, spectra, receipts)
