"""What the rows of a table look like: bands, bytes, and the table version that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.coding import RowCoding

Ids = NDArray[np.int64]
Index = NDArray[np.integer[Any]]
Rows = NDArray[np.uint8]
"""Codes as bytes, [rows, row_bytes]."""

IDENTITY_BYTES = 16
MAX_BANDS = 64
"""A request names its bands by the bits of one 64-bit word."""


@dataclass(frozen=True, kw_only=True)
class BandSpec:
    """Consecutive layers whose codes of one token lie together.

    Attributes:
        index: number of the band, counted from 0 in layer order.
        layers: its layers.
        ranks: columns of each of them, side by side.
        dtype: of a code: float32, bfloat16, float16, int8 or int4.
        row_bytes: bytes of one token.
        token_scaled: layers of which a row holds a scale beside the codes.

    Raises:
        ValueError: the numbers contradict each other.
    """

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    dtype: str
    row_bytes: int
    token_scaled: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_BANDS:
            raise ValueError(f"band index {self.index} is outside [0, {MAX_BANDS})")
        if len(self.layers) != len(self.ranks) or not self.layers:
            raise ValueError(f"band {self.index} has {len(self.layers)} layers and {len(self.ranks)} ranks")
        if self.row_bytes != self.coding.row_bytes:
            raise ValueError(
                f"band {self.index} states {self.row_bytes} bytes a row; its columns take {self.coding.row_bytes}"
            )

    @cached_property
    def coding(self) -> RowCoding:
        """What the bytes of a row are."""
        scaled = tuple(layer in self.token_scaled for layer in self.layers)
        return RowCoding(dtype=self.dtype, ranks=self.ranks, token_scaled=scaled)


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """All bands of one table version.

    Attributes:
        bands: in layer order, `bands[i].index == i`.
        vocab_size: V, the token ids are [0, V).
        identity: 16 bytes that name the table version; every request carries them.

    Raises:
        ValueError: bands out of order, no tokens, or an identity of another length.
    """

    bands: tuple[BandSpec, ...]
    vocab_size: int
    identity: bytes

    def __post_init__(self) -> None:
        if [band.index for band in self.bands] != list(range(len(self.bands))) or not self.bands:
            raise ValueError(f"bands are numbered {[band.index for band in self.bands]}; expected 0, 1, ...")
        if not 0 < self.vocab_size <= 2**31:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be in [1, 2^31]")
        if len(self.identity) != IDENTITY_BYTES:
            raise ValueError(f"identity has {len(self.identity)} bytes; expected {IDENTITY_BYTES}")

    @classmethod
    def from_manifest(cls, manifest: Any) -> RowSpec:
        """The spec of a published table version (`tolbuild.table.Manifest`)."""
        bands = tuple(
            BandSpec(
                index=band.index,
                layers=tuple(band.layers),
                ranks=tuple(band.ranks),
                dtype=str(band.dtype),
                row_bytes=band.row_bytes,
                token_scaled=tuple(band.token_scaled),
            )
            for band in manifest.bands
        )
        return cls(bands=bands, vocab_size=manifest.vocab_size, identity=manifest.identity)

    @classmethod
    def uniform(
        cls,
        *,
        num_layers: int,
        layers_per_band: int,
        rank: int,
        dtype: str,
        vocab_size: int,
        identity: bytes = bytes(16),
    ) -> RowSpec:
        """Equal layers in equal bands, as benches and tests use them."""
        bands = []
        for index, first in enumerate(range(0, num_layers, layers_per_band)):
            layers = tuple(range(first, min(first + layers_per_band, num_layers)))
            ranks = (rank,) * len(layers)
            coding = RowCoding(dtype=dtype, ranks=ranks, token_scaled=(False,) * len(layers))
            bands.append(BandSpec(index=index, layers=layers, ranks=ranks, dtype=dtype, row_bytes=coding.row_bytes))
        return cls(bands=tuple(bands), vocab_size=vocab_size, identity=identity)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one token over all bands."""
        return sum(band.row_bytes for band in self.bands)

    @property
    def table_bytes(self) -> int:
        """Bytes of all tokens as stored."""
        return self.row_bytes * self.vocab_size

    def choose(self, bands: Iterable[int] | None) -> tuple[int, ...]:
        """Band numbers in layer order; None is all of them.

        Raises:
            ValueError: there is no such band.
        """
        if bands is None:
            return tuple(range(len(self.bands)))
        chosen = tuple(sorted(set(bands)))
        if not chosen or chosen[0] < 0 or chosen[-1] >= len(self.bands):
            raise ValueError(f"bands {chosen} of a table that has bands 0 to {len(self.bands) - 1}")
        return chosen

    def check_ids(self, ids: Ids) -> None:
        """Refuse ids outside the vocabulary.

        Raises:
            ValueError: the ids are not int64, or the first bad one.
        """
        if ids.dtype != np.int64:
            raise ValueError(f"token ids are {ids.dtype}; expected int64")
        if len(ids) and np.maximum.reduce(ids.view(np.uint64)) >= self.vocab_size:
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(f"token id {bad} is outside the vocabulary of {self.vocab_size}")
