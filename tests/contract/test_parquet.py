"""Tables in Parquet files: other readers, the address of row 0, what is no such file. test_tables has the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from table_kit import SPECS, spec_of, write_table

from tolbuild.table import ParquetLayout, finished_shards, open_store, open_table


@pytest.mark.parametrize("name", SPECS)
def test_other_parquet_readers_agree_byte_for_byte(name: str, tmp_path: Path) -> None:
    spec = spec_of(name, "parquet")
    made = write_table(open_store(tmp_path), spec, zero_rows=slice(64, 128))
    for band in made.manifest.bands:
        folder = tmp_path / band.layout.prefix
        expected = made.codes[band.index].tobytes()
        column = parquet.read_table(folder).column("codes")
        assert column.null_count == 0 and b"".join(column.to_pylist()) == expected
        files = f"read_parquet('{folder}/*.parquet', filename = true, file_row_number = true)"
        rows = duckdb.sql(f"select codes from {files} order by filename, file_row_number").fetchall()
        assert b"".join(row for (row,) in rows) == expected


@settings(max_examples=30, deadline=None)
@given(num_rows=st.integers(1, 30_000), row_bytes=st.integers(1, 300))
def test_parquet_rows_are_where_the_footer_says(num_rows: int, row_bytes: int) -> None:
    shard_rows = -(-num_rows // 64) * 64
    layout = ParquetLayout(prefix="p", shape=(num_rows, row_bytes), dtype="uint8", shard_rows=shard_rows)
    head, tail = layout.frame(0)
    rows = np.random.default_rng(num_rows).bytes(num_rows * row_bytes)
    file = head + rows + tail
    chunk = parquet.read_metadata(pa.BufferReader(file)).row_group(0).column(0)
    assert len(head) == chunk.data_page_offset + chunk.total_compressed_size - num_rows * row_bytes
    assert layout.start_by_frame(0, file[:128], tail) == len(head)
    assert b"".join(parquet.read_table(pa.BufferReader(file)).column(0).to_pylist()) == rows


def test_parquet_files_laid_out_another_way_are_refused() -> None:
    def written(kind: pa.DataType, *, nullable: bool = False, **options: object) -> bytes:
        rows = pa.array([bytes([i % 251] * 8) for i in range(640)], kind)
        table = pa.table([rows], schema=pa.schema([pa.field("codes", kind, nullable=nullable)]))
        sink = pa.BufferOutputStream()
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
        parquet.write_table(table, sink, **plain | options)
        return sink.getvalue().to_pybytes()

    layout = ParquetLayout(prefix="p", shape=(640, 8), dtype="uint8", shard_rows=640)
    fixed = pa.binary(8)
    assert layout.start_by_frame(0, *2 * [written(fixed)]) > 0
    others = {
        "in 2 row groups": written(fixed, row_group_size=320),
        "first page has": written(fixed, data_page_size=64, write_batch_size=64),
        "its column is": written(fixed, compression="snappy"),
        "must be plain bytes": written(fixed, use_dictionary=True),
        "BYTE_ARRAY": written(pa.binary()),
        "0, 'UNCOMPRESSED'|1, 'UNCOMPRESSED'": written(fixed, nullable=True),
        "no Parquet footer": b"PAR1" + bytes(8000) + b"PAR1",
    }
    for message, data in others.items():
        with pytest.raises(ValueError, match=message):
            layout.start_by_frame(0, data, data)
    with pytest.raises(ValueError, match="a Parquet page holds"):
        ParquetLayout(prefix="p", shape=(2**20, 2**12), dtype="uint8", shard_rows=2**20)


def test_row_checksums_and_receipts_do_not_depend_on_the_files(tmp_path: Path) -> None:
    spec, kinds = SPECS["int8 by token"], ("zarr", "parquet")
    stores = [open_store(tmp_path / files) for files in kinds]
    first, second = [
        write_table(store, spec_of("int8 by token", files)) for store, files in zip(stores, kinds, strict=True)
    ]
    with open_table(tmp_path / "zarr") as one, open_table(tmp_path / "parquet") as other:
        assert np.array_equal(one.row_checksums, other.row_checksums)
    receipts = [finished_shards(store, spec.plan_hash) for store in stores]
    assert list(receipts[0]) == list(receipts[1])
    for place, receipt in receipts[0].items():
        assert replace(receipts[1][place], codes=receipt.codes) == receipt
    assert first.manifest.layer_stats == second.manifest.layer_stats
