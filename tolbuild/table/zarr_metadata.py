"""The zarr.json documents (zarr v3) that let any reader of that format open the arrays of a table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tolbuild.table.layout import BLOCK_ROWS, RowLayout


def group_metadata() -> bytes:
    """zarr.json of the folder of one plan's arrays."""
    return _document({"zarr_format": 3, "node_type": "group", "attributes": {}})


def sharded_metadata(layout: RowLayout) -> bytes:
    """zarr.json of an array of codes: shards of 64-row inner chunks, not compressed, index at the end."""
    inner = (BLOCK_ROWS, *layout.shape[1:])
    index_codecs = [_bytes_codec("uint64"), {"name": "crc32c"}]
    sharding = {
        "chunk_shape": inner,
        "codecs": [_bytes_codec(layout.dtype)],
        "index_codecs": index_codecs,
        "index_location": "end",
    }
    names = ["token", "layer", "value"] if len(layout.shape) == 3 else ["token", "code"]
    codec = {"name": "sharding_indexed", "configuration": sharding}
    return _array(layout.shape, layout.dtype, (layout.shard_rows, *layout.shape[1:]), codec, names)


def plain_metadata(shape: tuple[int, ...], dtype: str, names: list[str]) -> bytes:
    """zarr.json of a small array: one chunk, not compressed."""
    return _array(shape, dtype, shape, _bytes_codec(dtype), names)


def _bytes_codec(dtype: str) -> dict[str, Any]:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _array(
    shape: tuple[int, ...], dtype: str, chunk_shape: tuple[int, ...], codec: dict[str, Any], names: list[str]
) -> bytes:
    return _document(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if np.dtype(dtype).kind == "f" else 0,
            "codecs": [codec],
            "attributes": {},
            "dimension_names": names,
            "storage_transformers": [],
        }
    )


def _document(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1) + "\n").encode()
