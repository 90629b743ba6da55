"""A table to be written, before its first byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tolbuild.table.coding import RowCoding
from tolbuild.table.layout import RowLayout, ShardedLayout
from tolbuild.table.parquet import ParquetLayout
from tolbuild.table.receipts import arrays_prefix

LAYOUTS: dict[str, type[ShardedLayout] | type[ParquetLayout]] = {
    ShardedLayout.format: ShardedLayout,
    ParquetLayout.format: ParquetLayout,
}
"""How codes lie in files, by the format's name."""


@dataclass(frozen=True, kw_only=True)
class BandSpec:
    """A band to be written: `ranks[i]` codes of type `dtype` for `layers[i]`.

    token_scaled: layers whose codes have a scale by token, which stands in the row. whole_layers: those whose codes are
    their rows in a table where others have less than full rank.
    """

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    dtype: str
    token_scaled: tuple[int, ...] = ()
    whole_layers: tuple[int, ...] = ()

    @property
    def coding(self) -> RowCoding:
        """What the bytes of a row are."""
        scaled = tuple(layer in self.token_scaled for layer in self.layers)
        return RowCoding(dtype=self.dtype, ranks=self.ranks, token_scaled=scaled)


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """What is to be written.

    full_rank: codes are the rows themselves, arrays [V, layers, D]; else coefficients, [V, sum of ranks]. Packed codes
    are bytes, [V, row_bytes]. format: of the files of codes, zarr or parquet.

    Raises:
        ValueError: an unknown format.
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
    format: str = ShardedLayout.format

    def __post_init__(self) -> None:
        if self.format not in LAYOUTS:
            raise ValueError(f"the format is {self.format!r}; it must be {' or '.join(LAYOUTS)}")

    def layout(self, band: int) -> RowLayout:
        """Addresses of a band's codes."""
        spec = self.bands[band]
        whole = self.full_rank and not spec.coding.packed
        return LAYOUTS[self.format](
            prefix=f"{arrays_prefix(self.plan_hash)}/band-{band:03d}",
            shape=(self.vocab_size, *((len(spec.layers), self.hidden_size) if whole else (spec.coding.num_items,))),
            dtype=spec.coding.item,
            shard_rows=self.shard_rows,
        )
