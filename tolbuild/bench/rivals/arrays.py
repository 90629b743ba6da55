"""Rows in zarr arrays: our reader, tensorstore and zarr-python, on our table's own array and on one made for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolbuild.bench.rivals.modes import Ids, Mode, Reader, Rows, load
from tolbuild.bench.tables import LAYERS, SHARD_ROWS, WIDTH, table_spec, write_table
from tolbuild.table.reader import open_table

COLUMNS = LAYERS * WIDTH


def modes() -> list[Mode]:
    """Every way to read rows from arrays."""
    own = partial(Mode, dataset="our table", write=_write_table)
    made = partial(Mode, dataset="one-row chunks", write=_write_one_row_chunks)
    found = [
        own(rival="ours", module="", text="positioned reads into one buffer", open=partial(_open_ours, checked=False)),
        own(rival="ours_checked", module="", text="and row checksums", open=partial(_open_ours, checked=True)),
    ]
    for rival, open_array in (("tensorstore", _open_tensorstore), ("zarr", _open_zarr)):
        found.append(own(rival=rival, module=rival, text="our table's own array, chunks of 64 rows", open=open_array))
        found.append(made(rival=rival, module=rival, text="sharded, chunks of one row", open=open_array))
    return found


def _write_table(path: Path, rows: Rows) -> None:
    write_table(path, rows.num_shards, rows.seed)


def _write_one_row_chunks(path: Path, rows: Rows) -> None:
    array = load("zarr").create_array(
        path,
        shape=(len(rows), COLUMNS),
        dtype="float16",
        chunks=(1, COLUMNS),
        shards=(SHARD_ROWS, COLUMNS),
        compressors=None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    for index, codes_NC in enumerate(rows.shards()):
        array[index * SHARD_ROWS : (index + 1) * SHARD_ROWS] = codes_NC


def _open_ours(path: Path, num_ids: int, *, checked: bool) -> Reader:
    table = open_table(path, check_rows=checked)
    out = np.empty((num_ids, COLUMNS), np.float16)

    def read(ids: Ids) -> NDArray[np.float16]:
        table.codes_into(ids, 0, out)
        return out

    return Reader(read=read, close=table.close)


def _open_zarr(path: Path, num_ids: int) -> Reader:
    array = load("zarr").open_array(_array_folder(path), mode="r")

    def read(ids: Ids) -> NDArray[np.float16]:
        return np.ascontiguousarray(array.oindex[ids])

    return Reader(read=read)


def _open_tensorstore(path: Path, num_ids: int) -> Reader:
    library = load("tensorstore")
    kvstore = {"driver": "file", "path": str(_array_folder(path))}
    array = library.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    out = np.empty((num_ids, *array.shape[1:]), np.float16)
    target = library.array(out)

    def read(ids: Ids) -> NDArray[np.float16]:
        target.write(array[ids]).result()
        return out

    return Reader(read=read)


def _array_folder(path: Path) -> Path:
    """The standard array of a data set: the whole of it, or that of our table's band."""
    return path if (path / "zarr.json").exists() else path / table_spec(1).layout(0).prefix
