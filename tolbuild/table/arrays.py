"""How a manifest names an array: its folder, what it holds, its objects and their checksums."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from tolbuild.table.layout import RowLayout, ShardedLayout
from tolbuild.table.parquet import ParquetLayout
from tolbuild.table.plain import OPTIONAL

FORMATS = (ShardedLayout.format, ParquetLayout.format)
"""File formats of codes."""


@dataclass(frozen=True, kw_only=True)
class ObjectSum:
    """One object: key under the table's URL, bytes, CRC-32C of them."""

    key: str
    size: int
    crc32c: int


@dataclass(frozen=True, kw_only=True)
class ArrayRef:
    """An array of the table: its folder, what it holds, and its objects, the zarr.json of a zarr array first.

    shard_rows: of a sharded array of codes; None for an array of one chunk. format: of its files. starts: by shard, the
    byte of a Parquet file at which its first row is.

    Raises:
        ValueError: an unknown format, or not one start and object for each shard of a Parquet array.
    """

    prefix: str
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int | None
    objects: tuple[ObjectSum, ...]
    format: str = field(default="zarr", metadata=OPTIONAL)
    starts: tuple[int, ...] = field(default=(), metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"{self.prefix} has the format {self.format!r}; this reader knows {', '.join(FORMATS)}")
        if self.format == ParquetLayout.format:
            shards = self.layout.num_shards
            if not len(self.starts) == len(self.objects) == shards:
                raise ValueError(
                    f"{self.prefix} has {shards} shards, {len(self.starts)} starts and {len(self.objects)} objects"
                )

    @property
    def name(self) -> str:
        """Last part of the folder's key."""
        return self.prefix.rpartition("/")[2]

    @cached_property
    def layout(self) -> RowLayout:
        """Addresses of the rows of a sharded array."""
        if self.shard_rows is None:
            raise ValueError(f"{self.prefix} is not sharded")
        if self.format == ShardedLayout.format:
            return ShardedLayout(prefix=self.prefix, shape=self.shape, dtype=self.dtype, shard_rows=self.shard_rows)
        return ParquetLayout(
            prefix=self.prefix,
            shape=self.shape,
            dtype=self.dtype,
            shard_rows=self.shard_rows,
            starts=self.starts,
            sizes=tuple(item.size for item in self.objects),
        )
