"""Checkpoints of random weights at any size, drawn and written piece by piece: memory does not grow with the model."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tolbuild.checkpoint.files import INDEX, TORCH_DTYPES
from tolbuild.checkpoint.header import ITEM_BYTES, make_header
from tolbuild.checkpoint.shapes import expected_shapes
from tolbuild.checkpoint.writer import (
    DEFAULT_SHARD_BYTES,
    config_json,
    plan_shards,
    remove_other_files,
    remove_scratch,
    weights_index,
)
from tolbuild.config import ModelConfig
from tolbuild.model import initial_distribution
from tolbuild.table.local_store import LocalStore

PIECE_VALUES = 1 << 20
"""Values drawn at a time: 4 MiB in fp32."""

FORMAT_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types that weights are drawn in, with the file format's names."""

Shapes = Mapping[str, tuple[int, ...]]


def write_synthetic(
    folder: str | Path, config: ModelConfig, *, seed: int = 0, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> int:
    """Write a checkpoint of a new, untrained model in the config's `torch_dtype`; returns the bytes of its weights.

    Each weight follows its `initial_distribution`, drawn in fp32 from a stream of its own (seed and name), so that the
    same seed gives the same weights however the files are cut. There is no tokenizer. config.json comes last.

    Args:
        folder: of this machine.
        max_shard_bytes: weights beyond this go to numbered files with an index. A tensor is never cut.

    Raises:
        ValueError: a type that weights are not drawn in, or a checkpoint is there already.
        StoreError: the folder cannot be written, or its disk is full.
    """
    if config.torch_dtype not in FORMAT_DTYPES:
        raise ValueError(f"torch_dtype is {config.torch_dtype!r}; it must be one of {', '.join(FORMAT_DTYPES)}")
    store = LocalStore(Path(folder).absolute())
    if (store.root / "config.json").exists():
        raise ValueError(f"{store.root} holds a checkpoint already; remove it or choose another folder")
    dtype = FORMAT_DTYPES[config.torch_dtype]
    shapes = expected_shapes(config)
    sizes = {name: math.prod(shape) * ITEM_BYTES[dtype] for name, shape in shapes.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    remove_other_files(store, {*shards, *([INDEX] if len(shards) > 1 else [])})
    for key, names in shards.items():
        store.write_pieces(key, _file(config, shapes, sorted(names), dtype, seed))
    if len(shards) > 1:
        store.write(INDEX, weights_index(sizes, shards))
    store.write("config.json", config_json(config))
    remove_scratch(store)
    return sum(sizes.values())


def _file(
    config: ModelConfig, shapes: Shapes, names: Sequence[str], dtype: str, seed: int
) -> Iterator[bytes | NDArray[np.uint8]]:
    """A safetensors file from its header to its last byte."""
    yield make_header({name: (dtype, shapes[name]) for name in names})
    for name in names:
        yield from _values(initial_distribution(config, name), name, math.prod(shapes[name]), dtype, seed)


def _values(
    distribution: tuple[float, float], name: str, count: int, dtype: str, seed: int
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of one tensor. numpy draws them: its normal numbers are the same on every machine."""
    mean, std = distribution
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, count, PIECE_VALUES):
        size = min(PIECE_VALUES, count - start)
        values = draw.standard_normal(size, np.float32) if std else np.zeros(size, np.float32)
        values *= np.float32(std)
        values += np.float32(mean)
        stored = torch.from_numpy(values).to(TORCH_DTYPES[dtype])
        yield stored.view(torch.uint8).numpy()
