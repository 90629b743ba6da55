"""Where the bytes of a row are, by arithmetic alone: shard objects with the rows one after another in each.

What stands before the first row and behind the last is the file format's: `ShardedLayout` is zarr's, ParquetLayout
(tolbuild.table.parquet) the other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tolbuild.table import crc32c

BLOCK_ROWS = 64
"""Token ids in a block: zarr's inner chunk, the unit of placement and of bulk reads."""

DTYPES = ("float32", "float16", "int8", "uint16", "uint8")
"""Types of stored arrays: of codes, of the bits of bfloat16, of packed rows (see tolbuild.table.coding)."""

_ABSENT = 2**64 - 1
"""What the index says of a block that lies wholly behind the array's end."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RowLayout(ABC):
    """An array of codes, [V, ...] cut along the tokens into shard objects; row i of a shard is at start + i * stride.

    prefix: key of the array's folder. shape: of the whole array. dtype: one of DTYPES. shard_rows: tokens in one shard,
    a multiple of 64.

    Raises:
        ValueError: no rows or columns, an unknown type, or shards that are not whole blocks.
    """

    format: ClassVar[str]
    """Name of the file format."""
    head_bytes: ClassVar[int] = 0
    """No more than these bytes stand before a shard object's first row."""

    prefix: str
    shape: tuple[int, ...]
    dtype: str
    shard_rows: int

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise ValueError(f"{self.prefix} has shape {self.shape}; expected [V, ...] without an empty axis")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.prefix} has type {self.dtype!r}; arrays of codes are {', '.join(DTYPES)}")
        if self.shard_rows < BLOCK_ROWS or self.shard_rows % BLOCK_ROWS:
            raise ValueError(f"shard_rows is {self.shard_rows}; it must be a positive multiple of {BLOCK_ROWS}")

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.shape[0]

    @cached_property
    def num_columns(self) -> int:
        """Values in a row."""
        return math.prod(self.shape[1:])

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row: the stride."""
        return self.num_columns * np.dtype(self.dtype).itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of a whole block."""
        return BLOCK_ROWS * self.row_bytes

    @property
    def num_shards(self) -> int:
        """Shard objects of the array."""
        return -(-self.vocab_size // self.shard_rows)

    @property
    def num_blocks(self) -> int:
        """Blocks of the array; the last one may reach beyond V."""
        return -(-self.vocab_size // BLOCK_ROWS)

    def rows_in(self, shard: int) -> int:
        """Tokens of a shard; only the last one may be short.

        Raises:
            ValueError: there is no such shard.
        """
        if not 0 <= shard < self.num_shards:
            raise ValueError(f"{self.prefix} has shards 0 to {self.num_shards - 1}, not {shard}")
        return min(self.shard_rows, self.vocab_size - shard * self.shard_rows)

    def data_bytes(self, shard: int) -> int:
        """Bytes of a shard's rows."""
        return self.rows_in(shard) * self.row_bytes

    def locate(self, token_ids: Ids) -> tuple[Ids, Ids]:
        """Shard number of each row, and its offset in bytes behind the shard's first row.

        Raises:
            ValueError: an id outside [0, V), or ids that are no integers.
        """
        check_ids(token_ids, self.vocab_size)
        shards = token_ids // self.shard_rows
        return shards, (token_ids - shards * self.shard_rows) * self.row_bytes

    @abstractmethod
    def shard_key(self, shard: int) -> str:
        """Key of a shard object."""

    @abstractmethod
    def data_start(self, shard: int) -> int:
        """Byte of a shard object where its first row is."""

    @cached_property
    def data_starts(self) -> Ids:
        """`data_start` of every shard, int64 [shards]."""
        return np.array([self.data_start(shard) for shard in range(self.num_shards)], np.int64)

    @abstractmethod
    def object_bytes(self, shard: int) -> int:
        """Bytes of a shard object."""

    @abstractmethod
    def frame(self, shard: int) -> tuple[bytes, bytes]:
        """What a writer puts before a shard's rows, and what it puts behind them."""

    @abstractmethod
    def start_by_frame(self, shard: int, head: bytes, tail: bytes) -> int:
        """Where the object itself says that its first row is.

        Args:
            head: its first `head_bytes` bytes, or more.
            tail: all that stands behind its last row.

        Raises:
            ValueError: it says that rows are not one after another, or are not all there.
        """


class ShardedLayout(RowLayout):
    """zarr: the rows of whole blocks, zeros behind V, then the shard index of its sharding codec.

    The index has offset and length (uint64, little endian) of every block, then the CRC-32C of those.
    """

    format = "zarr"

    def object_bytes(self, shard: int) -> int:
        """Bytes of a shard object: its blocks, 16 bytes of index for every block that a full one has, and 4."""
        return self._blocks_in(shard) * self.block_bytes + 16 * (self.shard_rows // BLOCK_ROWS) + 4

    def shard_key(self, shard: int) -> str:
        """Key of a shard object, as zarr names it."""
        return f"{self.prefix}/c/{shard}" + "/0" * (len(self.shape) - 1)

    def data_start(self, shard: int) -> int:
        """Rows come first."""
        return 0

    def frame(self, shard: int) -> tuple[bytes, bytes]:
        """Behind the rows: zeros up to the block's end, then the index."""
        padding = bytes(self._blocks_in(shard) * self.block_bytes - self.data_bytes(shard))
        return b"", padding + self.shard_index(shard)

    def start_by_frame(self, shard: int, head: bytes, tail: bytes) -> int:
        """See RowLayout."""
        if not tail.endswith(self.shard_index(shard)):
            raise ValueError("its shard index does not say that rows lie one after another")
        return 0

    def shard_index(self, shard: int) -> bytes:
        """The index that ends a shard object: every block that holds a token is there, all-zero ones too."""
        present = self._blocks_in(shard)
        index = np.full((self.shard_rows // BLOCK_ROWS, 2), _ABSENT, "<u8")
        index[:present, 0] = np.arange(present, dtype=np.uint64) * np.uint64(self.block_bytes)
        index[:present, 1] = self.block_bytes
        body = index.tobytes()
        return body + crc32c.value(body).to_bytes(4, "little")

    def _blocks_in(self, shard: int) -> int:
        return -(-self.rows_in(shard) // BLOCK_ROWS)


def check_ids(token_ids: Ids, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        ValueError: the first bad id, or a type or shape that ids cannot have.
    """
    if token_ids.dtype != np.int64 or token_ids.ndim != 1:
        raise ValueError(f"token ids are {token_ids.dtype} {list(token_ids.shape)}; expected int64 [n]")
    if len(token_ids) and int(token_ids.view(np.uint64).max()) >= vocab_size:
        bad = token_ids[(token_ids < 0) | (token_ids >= vocab_size)][0]
        raise ValueError(f"token id {bad} is outside the vocabulary of {vocab_size}")
