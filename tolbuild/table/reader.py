"""Reading a table: codes as stored, by memory map, positioned reads or remote ranges, and rows rebuilt from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tolbuild.table import crc32c
from tolbuild.table.access import Access, open_access
from tolbuild.table.arrays import ArrayRef
from tolbuild.table.errors import ObjectNotFoundError, TableCorruptError
from tolbuild.table.layout import BLOCK_ROWS, Ids, RowLayout, check_ids
from tolbuild.table.manifest import MEAN, Band, Manifest
from tolbuild.table.publish import read_manifest
from tolbuild.table.store import Credentials, Store, open_store

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
How = Literal["auto", "mmap", "pread", "range"]


def open_table(
    url: str | Path,
    *,
    version: int | None = None,
    credentials: Credentials | None = None,
    access: How = "auto",
    check_rows: bool = True,
    wait_s: float | None = None,
) -> Table:
    """Open a published version of a table for reading.

    Args:
        url: a path, file://, s3://bucket/prefix, memory://name, or what else fsspec reads (https://, ...).
        version: None is the latest.
        credentials: for s3://; None takes them from the environment.
        access: "mmap" and "pread" for files of this machine, "range" for any store; "auto" chooses.
        check_rows: whether every row that is read is compared with its own checksum.
        wait_s: see `open_store`.

    Raises:
        ValueError: a URL or an access that there is none of.
        TableNotFoundError: nothing is published there, or not that version.
        TableCorruptError, FormatError: manifest or row checksums are damaged, or of another format.
        StoreError: the place cannot be reached.
    """
    store = open_store(url, credentials, wait_s=wait_s)
    try:
        return Table(store, read_manifest(store, version), access=access, check_rows=check_rows)
    except BaseException:
        store.close()
        raise


class Table:
    """One version of a table. Methods may be called from several threads; `close` ends what they hold."""

    def __init__(self, store: Store, manifest: Manifest, *, access: How = "auto", check_rows: bool = True) -> None:
        self.manifest = manifest
        self._store = store
        self._access: Access = open_access(store, access)
        self._check_rows = check_rows
        self.row_checksums: NDArray[np.uint32] = self.array("row_crc32c")
        """CRC-32C of each token's row in each band, uint32 [V, bands]."""
        expected = (manifest.vocab_size, len(manifest.bands))
        if self.row_checksums.shape != expected:
            keys = [item.key for item in manifest.array("row_crc32c").objects]
            raise TableCorruptError(f"row_crc32c has shape {self.row_checksums.shape}; expected {expected}", keys)
        self._vector = lru_cache(maxsize=None)(self.array)

    @property
    def url(self) -> str:
        """Where the table is."""
        return self._store.url

    def codes(self, token_ids: Sequence[int] | Ids, band: int) -> NDArray[Any]:
        """Codes of tokens as stored: [n, columns] of the band's array, in its type. See `codes_into`.

        The bits of bfloat16 are uint16; packed codes are bytes, [n, row_bytes] (`manifest.bands[band].coding`).
        """
        ids = as_ids(token_ids)
        layout = self._band(band).layout
        out = np.empty((len(ids), layout.num_columns), layout.dtype)
        self.codes_into(ids, band, out)
        return out

    def codes_into(self, token_ids: Ids, band: int, out: NDArray[Any]) -> None:
        """The same into `out`: contiguous, [n, columns] in the array's type or uint8 [n, row_bytes].

        Raises:
            ValueError: an id outside the vocabulary, no such band, or an `out` that does not fit.
            TableCorruptError: a row is not what its checksum says, or its object is not there or too short.
            StoreError: the store failed.
        """
        layout = self._band(band).layout
        rows = _as_rows(out, len(token_ids), layout.row_bytes)
        shards, starts = layout.locate(token_ids)
        self._access.gather(layout, shards, starts, rows)
        if self._check_rows:
            self._check(band, token_ids, rows)

    def read_blocks_into(self, band: int, block_ids: Ids, out: NDArray[Any]) -> None:
        """Whole blocks (64 tokens each), for loading in bulk.

        Args:
            out: contiguous, uint8 [64 * n, row_bytes] (or the array's type); rows behind V become zeros.

        Raises:
            ValueError, TableCorruptError, StoreError: as `codes_into`.
        """
        layout = self._band(band).layout
        check_ids(block_ids, layout.num_blocks)
        rows = _as_rows(out, len(block_ids) * BLOCK_ROWS, layout.row_bytes)
        self._gather_blocks(layout, block_ids, rows)
        if self._check_rows:
            ids = (block_ids[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).reshape(-1)
            inside = int(np.count_nonzero(ids < layout.vocab_size))
            if inside == len(ids):
                self._check(band, ids, rows)
            else:
                self._check(band, ids[ids < layout.vocab_size], rows[ids < layout.vocab_size])

    def rows(self, token_ids: Sequence[int] | Ids, layers: Sequence[int] | None = None) -> Floats:
        """Rows rebuilt from their codes: fp32 [n, layers, D]; zeros for dropped layers.

        row = mean + codes @ basis at reduced rank, codes (times their scale) at full rank; codes times their token's
        scale where the row has one.

        Args:
            layers: which and in what order; None is all of the model's, in order.

        Raises:
            ValueError: no such token or layer.
            TableCorruptError, StoreError: as `codes_into`.
        """
        ids = as_ids(token_ids)
        wanted = list(range(self.manifest.num_layers)) if layers is None else [int(layer) for layer in layers]
        rows_NLD = np.zeros((len(ids), len(wanted), self.manifest.hidden_size), np.float32)
        codes: dict[int, NDArray[Any]] = {}
        for place, layer in enumerate(wanted):
            band = self.manifest.band_of(layer)
            if band is not None:
                if band.index not in codes:
                    codes[band.index] = self.codes(ids, band.index)
                self._rebuild(band, layer, codes[band.index], rows_NLD[:, place])
        return rows_NLD

    def basis(self, layer: int) -> Floats | None:
        """[R, D] fp32 with an integer's scales folded in; None at full rank and for a dropped layer."""
        band = self.manifest.band_of(layer)
        name = None if band is None else band.basis_of(layer)
        return None if name is None else self._vector(name)

    def mean(self, layer: int) -> Floats | None:
        """[D] fp32; None at full rank and for a dropped layer."""
        band = self.manifest.band_of(layer)
        if band is None or band.predictor.name != MEAN or band.basis_of(layer) is None:
            return None
        return self._by_layer(band.predictor.arrays[0], layer)

    def scale(self, layer: int) -> Floats | None:
        """[D] fp32, one a component of integer codes at full rank; None where there is nothing to multiply with."""
        band = self.manifest.band_of(layer)
        if band is None or not band.quantiser.arrays or band.basis_of(layer) is not None:
            return None
        return self._by_layer(band.quantiser.arrays[0], layer)

    def array(self, name: str) -> NDArray[Any]:
        """One of the small arrays by name, checked against its checksum.

        Raises:
            KeyError: there is none of that name.
            TableCorruptError: it is missing or damaged.
        """
        return read_array(self._store, self.manifest.array(name))

    def close(self) -> None:
        """Give back maps, descriptors and connections; arrays that were returned stay."""
        self._access.close()
        self._store.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _band(self, band: int) -> Band:
        if not 0 <= band < len(self.manifest.bands):
            raise ValueError(f"band {band}: the table has bands 0 to {len(self.manifest.bands) - 1}")
        return self.manifest.bands[band]

    def _by_layer(self, name: str, layer: int) -> Floats:
        row: Floats = self._vector(name)[layer]
        return row

    def _gather_blocks(self, layout: RowLayout, block_ids: Ids, rows: Bytes) -> None:
        """Whole blocks are one read each; the last one may end early, and what is behind V is zeros."""
        short = layout.vocab_size // BLOCK_ROWS
        first = 0
        for place in [*np.flatnonzero(block_ids == short).tolist(), len(block_ids)]:
            whole = rows[first * BLOCK_ROWS : place * BLOCK_ROWS]
            shards, starts = layout.locate(block_ids[first:place] * BLOCK_ROWS)
            self._access.gather(layout, shards, starts, whole.reshape(place - first, layout.block_bytes))
            ids = np.arange(short * BLOCK_ROWS, layout.vocab_size)
            own = rows[place * BLOCK_ROWS : (place + 1) * BLOCK_ROWS]
            if len(own):
                self._access.gather(layout, *layout.locate(ids), own[: len(ids)])
                own[len(ids) :] = 0
            first = place + 1

    def _rebuild(self, band: Band, layer: int, codes_NC: NDArray[Any], out_ND: Floats) -> None:
        part_NR = band.values(layer, codes_NC)
        basis_RD, mean_D, scale_D = self.basis(layer), self.mean(layer), self.scale(layer)
        out_ND[:] = part_NR if basis_RD is None else part_NR.astype(np.float32) @ basis_RD
        if scale_D is not None:
            out_ND *= scale_D
        if mean_D is not None:
            out_ND += mean_D

    def _check(self, band: int, ids: Ids, rows: Bytes) -> None:
        bad = np.flatnonzero(crc32c.of_rows(rows) != self.row_checksums[ids, band])
        if len(bad):
            layout = self._band(band).layout
            keys = sorted({layout.shard_key(int(ids[place]) // layout.shard_rows) for place in bad.tolist()})
            raise TableCorruptError(
                f"{self.url}: rows of {len(bad)} of {len(ids)} tokens in band {band} are not what their checksums say, "
                f"token {ids[bad[0]]} first; damaged: {', '.join(keys[:3])}. Check with python -m tolbuild.verify",
                keys,
            )


def read_array(store: Store, ref: ArrayRef) -> NDArray[Any]:
    """A small array of one chunk, checked.

    Raises:
        TableCorruptError: it is missing or damaged.
    """
    stored = ref.objects[-1]
    try:
        data = store.read(stored.key)
    except ObjectNotFoundError as error:
        raise TableCorruptError(f"{stored.key}: the manifest names it and it is not there", [stored.key]) from error
    if len(data) != stored.size or crc32c.value(data) != stored.crc32c:
        raise TableCorruptError(
            f"{stored.key}: {len(data)} bytes with CRC-32C {crc32c.value(data):08x}; "
            f"the manifest says {stored.size} with {stored.crc32c:08x}",
            [stored.key],
        )
    array = np.frombuffer(data, np.dtype(ref.dtype).newbyteorder("<")).reshape(ref.shape)
    return array.astype(ref.dtype, copy=False)


def as_ids(token_ids: Sequence[int] | Ids) -> Ids:
    """Token ids as int64 [n].

    Raises:
        ValueError: they are no whole numbers.
    """
    array = np.asarray(token_ids)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token ids are {array.dtype}; expected whole numbers")
    return array.astype(np.int64, copy=False)


def _as_rows(out: NDArray[Any], count: int, row_bytes: int) -> Bytes:
    if not out.flags.c_contiguous or out.nbytes != count * row_bytes or not out.flags.writeable:
        raise ValueError(f"out has {out.nbytes} bytes; expected {count} contiguous, writable rows of {row_bytes}")
    rows: Bytes = out.reshape(-1).view(np.uint8).reshape(count, row_bytes)
    return rows
