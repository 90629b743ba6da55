"""Rows in files of records: Lance, DuckDB on Parquet, EngramDB."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tolbuild.bench.rivals.modes import Ids, MissingError, Mode, Reader, Rows, load
from tolbuild.bench.tables import ROW_BYTES

GROUP_ROWS = 128
"""Rows of a Parquet row group: fewer to read around each wanted row, at the price of a longer footer."""

LANCE_VERSION = "2.1"
"""Of Lance's file format: the newest that is stable."""

PAGE_BYTES = 8192
"""EngramDB's page reader takes powers of two; a row is three of these."""


def modes() -> list[Mode]:
    """Every way to read rows from records."""
    lance = partial(Mode, rival="lance", module="lance")
    parquet = partial(Mode, rival="duckdb", module="duckdb", dataset="rows.parquet", write=_write_parquet)
    raw = partial(Mode, rival="engramdb", module="engramdb", dataset="engramdb", write=_write_raw)
    return [
        lance(text="take, fixed-size binary", dataset="binary.lance", write=_write_binary, open=_open_lance),
        lance(text="take, lists of fp16", dataset="lists.lance", write=_write_lists, open=_open_lance),
        parquet(text=f"file_row_number IN, row groups of {GROUP_ROWS}", open=partial(_open_duckdb, _BY_NUMBER)),
        parquet(text=f"join on an id column, row groups of {GROUP_ROWS}", open=partial(_open_duckdb, _BY_JOIN)),
        raw(text="Store.fetch", open=_open_store),
        raw(text=f"IoUringPageReader, {ROW_BYTES // PAGE_BYTES} pages a row", open=_open_pages),
    ]


def _write_binary(path: Path, rows: Rows) -> None:
    _write_lance(path, rows, pa.binary(ROW_BYTES))


def _write_lists(path: Path, rows: Rows) -> None:
    _write_lance(path, rows, pa.list_(pa.float16(), ROW_BYTES // 2))


def _write_lance(path: Path, rows: Rows, kind: pa.DataType) -> None:
    lance = load("lance")
    for index, codes_NC in enumerate(rows.shards()):
        table = pa.table({"row": _column(codes_NC, kind)})
        lance.write_dataset(table, path, mode="append" if index else "create", data_storage_version=LANCE_VERSION)


def _write_parquet(path: Path, rows: Rows) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), False), pa.field("row", pa.binary(ROW_BYTES), False)])
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": ["id"]}
    with pq.ParquetWriter(path, schema, **plain) as writer:
        for index, codes_NC in enumerate(rows.shards()):
            ids = np.arange(index * len(codes_NC), (index + 1) * len(codes_NC))
            table = pa.table([pa.array(ids), _column(codes_NC, schema.field("row").type)], schema=schema)
            writer.write_table(table, row_group_size=GROUP_ROWS)


def _write_raw(path: Path, rows: Rows) -> None:
    path.mkdir()
    for index, codes_NC in enumerate(rows.shards()):
        codes_NC.tofile(path / f"shard_{index:03d}.bin")


def _column(codes_NC: NDArray[np.float16], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(codes_NC.reshape(-1)), kind.list_size)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(codes_NC), [None, pa.py_buffer(codes_NC)])


def _open_lance(path: Path, num_ids: int) -> Reader:
    dataset = load("lance").dataset(path)

    def read(ids: Ids) -> NDArray[np.uint8]:
        return _bytes_of(dataset.take(ids.tolist(), columns=["row"]).column("row"))

    return Reader(read=read)


def _bytes_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The rows of a column in its order, without copying where it is in one piece."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        flat: NDArray[np.uint8] = array.flatten().to_numpy().view(np.uint8)
        return flat
    if not pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary(ROW_BYTES))
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * ROW_BYTES, array.offset * ROW_BYTES)


_BY_NUMBER = (
    "SELECT file_row_number AS id, row FROM read_parquet($path, file_row_number = true) "
    "WHERE file_row_number IN ({ids})"
)
_BY_JOIN = "SELECT id, row FROM read_parquet($path) JOIN wanted USING (id)"


def _open_duckdb(query: str, path: Path, num_ids: int) -> Reader:
    """Without the cache of file contents: what is cold has to come from the disk, as with the others."""
    connection = load("duckdb").connect()
    for setting in ("enable_external_file_cache = false", "parquet_metadata_cache = true"):
        connection.execute(f"SET {setting}")

    def read(ids: Ids) -> NDArray[np.uint8]:
        distinct, places = np.unique(ids, return_inverse=True)
        connection.register("wanted", pa.table({"id": distinct}))
        text = query.format(ids=", ".join(map(str, distinct.tolist())))
        found = connection.sql(text, params={"path": str(path)}).to_arrow_table()
        rows = _bytes_of(found.column("row")).reshape(-1, ROW_BYTES)
        return rows[np.argsort(found.column("id").to_numpy())[places]]

    return Reader(read=read, close=connection.close)


def _open_store(path: Path, num_ids: int) -> Reader:
    shards = sorted(path.iterdir())
    per_shard = shards[0].stat().st_size // ROW_BYTES
    store = load("engramdb").Store(str(path), shards=len(shards), rows_per_shard=per_shard, width=ROW_BYTES)

    def read(ids: Ids) -> NDArray[np.uint8]:
        return np.frombuffer(store.fetch(ids), np.uint8)

    return Reader(read=read, close=store.close)


def _open_pages(path: Path, num_ids: int) -> Reader:
    try:
        pages = load("engramdb").IoUringPageReader(page_size=PAGE_BYTES)
    except (AttributeError, OSError, RuntimeError) as error:
        raise MissingError(f"io_uring cannot be used here: {error}") from error
    descriptors = np.array([os.open(shard, os.O_RDONLY) for shard in sorted(path.iterdir())])
    per_shard = os.fstat(int(descriptors[0])).st_size // ROW_BYTES
    within_row = np.arange(0, ROW_BYTES, PAGE_BYTES)

    def read(ids: Ids) -> NDArray[np.uint8]:
        shards, index = np.divmod(ids, per_shard)
        starts = (index[:, None] * ROW_BYTES + within_row).reshape(-1)
        got: Any = pages.read_pages(np.repeat(descriptors[shards], len(within_row)).tolist(), starts.tolist())
        return np.frombuffer(got if isinstance(got, bytes) else b"".join(got), np.uint8)

    def close() -> None:
        for descriptor in descriptors.tolist():
            os.close(descriptor)

    return Reader(read=read, close=close)
