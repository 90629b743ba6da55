"""Codes in Parquet files that any reader opens and ours addresses by arithmetic.

A shard is one file: one row group, one non-nullable FixedSizeBinary column, PLAIN, without compression, dictionary or
statistics, and with a single data page. So the file ends its column chunk with the raw rows, one after another:

    row 0 is at  data_page_offset + total_compressed_size - rows * row_bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from tolbuild.table.errors import FormatError
from tolbuild.table.layout import RowLayout

COLUMN = "codes"
"""Name of the column: a row's bytes."""

MAX_PAGE_BYTES = 2**31 - 1
"""A page states its size in 32 bits, with a sign."""

FRAME_BYTES = 256
"""What stands around the rows of a file takes less."""

_PAGE_ROWS = 20_000
"""Arrow ends a page after as many rows unless it is told otherwise, which its older versions cannot be."""

_FILLING = 0xA5
"""Stands for every byte of the rows while a frame is made; no page header consists of it."""


@dataclass(frozen=True, kw_only=True)
class ParquetLayout(RowLayout):
    """One Parquet file a shard.

    starts, sizes: by shard, the byte of the first row and the bytes of the file, as the manifest has them; empty while
    the table is being written.

    Raises:
        ValueError: a shard too large for a page.
    """

    format: ClassVar[str] = "parquet"
    head_bytes: ClassVar[int] = 128

    starts: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        page_bytes = self.data_bytes(0)
        if page_bytes > MAX_PAGE_BYTES:
            raise ValueError(
                f"{self.prefix}: a shard of {self.rows_in(0)} rows of {self.row_bytes} bytes has {page_bytes:,}; "
                f"a Parquet page holds {MAX_PAGE_BYTES:,}"
            )

    def shard_key(self, shard: int) -> str:
        """Key of a shard's file; in order of names the files have the tokens in order."""
        return f"{self.prefix}/{shard:05d}.parquet"

    def data_start(self, shard: int) -> int:
        """See RowLayout."""
        return self.starts[shard]

    def object_bytes(self, shard: int) -> int:
        """See RowLayout."""
        return self.sizes[shard]

    def frame(self, shard: int) -> tuple[bytes, bytes]:
        """Magic number and page header; footer. They depend on the shape of the rows alone."""
        return _frame(self.rows_in(shard), self.row_bytes)

    def start_by_frame(self, shard: int, head: bytes, tail: bytes) -> int:
        """See RowLayout."""
        return find_rows(head, tail, self.rows_in(shard), self.row_bytes)


@lru_cache(maxsize=16)
def _frame(num_rows: int, row_bytes: int) -> tuple[bytes, bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    filling = np.full(num_rows * row_bytes, _FILLING, np.uint8)
    kind = pa.binary(row_bytes)
    column = pa.FixedSizeBinaryArray.from_buffers(kind, num_rows, [None, pa.py_buffer(filling)])
    schema = pa.schema([pa.field(COLUMN, kind, nullable=False)])
    sink = pa.BufferOutputStream()
    parquet.write_table(
        pa.Table.from_arrays([column], schema=schema),
        sink,
        row_group_size=num_rows,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        data_page_size=MAX_PAGE_BYTES,
        **({"max_rows_per_page": num_rows} if num_rows > _PAGE_ROWS else {}),
    )
    written = np.frombuffer(sink.getvalue(), np.uint8)
    behind = len(written) - len(filling)
    try:
        start = find_rows(written[:behind].tobytes(), written[-behind:].tobytes(), num_rows, row_bytes)
        rows = written[start : start + len(filling)]
        if len(rows) < len(filling) or rows.min() != _FILLING or rows.max() != _FILLING:
            raise ValueError("the rows are not where the footer says")
    except ValueError as error:
        raise FormatError(
            f"pyarrow {pa.__version__} writes {num_rows} rows of {row_bytes} bytes another way: {error}"
        ) from error
    return written[:start].tobytes(), written[start + len(filling) :].tobytes()


def find_rows(head: bytes, tail: bytes, num_rows: int, row_bytes: int) -> int:
    """Byte of a file at which its rows begin, one after another.

    Args:
        head: the file's beginning, page header included.
        tail: the file's end, footer included.

    Raises:
        ValueError: the file is laid out another way, or is damaged.
    """
    chunk = _only_column(tail, num_rows, row_bytes)
    data_bytes = num_rows * row_bytes
    start = int(chunk.data_page_offset + chunk.total_compressed_size - data_bytes)
    if not 0 <= chunk.data_page_offset < start <= len(head):
        raise ValueError(f"a column chunk of {chunk.total_compressed_size} bytes at {chunk.data_page_offset}")
    page_bytes = _page_bytes(head[chunk.data_page_offset : start])
    if page_bytes != data_bytes:
        raise ValueError(f"its first page has {page_bytes} bytes, not all {data_bytes} of the rows")
    return start


def _only_column(tail: bytes, num_rows: int, row_bytes: int) -> Any:
    """What the footer says of the only column chunk of a file of that shape."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        footer = parquet.read_metadata(pa.BufferReader(tail))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it has no Parquet footer: {error}") from error
    if (footer.num_row_groups, footer.num_columns, footer.num_rows) != (1, 1, num_rows):
        raise ValueError(
            f"its footer tells of {footer.num_rows} rows in {footer.num_row_groups} row groups and "
            f"{footer.num_columns} columns, not of {num_rows} in one of each"
        )
    column, chunk = footer.schema.column(0), footer.row_group(0).column(0)
    found = (column.physical_type, column.length, column.max_definition_level, chunk.compression)
    if found != ("FIXED_LEN_BYTE_ARRAY", row_bytes, 0, "UNCOMPRESSED") or chunk.has_dictionary_page:
        raise ValueError(f"its column is {found}; it must be plain bytes, {row_bytes} a row")
    return chunk


def _page_bytes(header: bytes) -> int:
    """Stored bytes of a data page, from its header: Thrift's compact form of page type, size, and size as stored."""
    values, place = [], 0
    for _ in range(3):
        if header[place : place + 1] != b"\x15":
            raise ValueError("its page header is none")
        value, shift, place = 0, 0, place + 1
        while place < len(header):
            byte = header[place]
            value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
            if byte < 0x80:
                break
        values.append(value >> 1 ^ -(value & 1))
    if values[0] != 0:
        raise ValueError(f"its first page is of type {values[0]}, no data page")
    return values[2]
