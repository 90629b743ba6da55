"""How often each token occurs in text like that to be served: what a cache is filled from before there are requests."""

from __future__ import annotations

import io
import json

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ToLError
from tolserve.memory.files import store_of

Counts = NDArray[np.int64]


def read_counts(url: str, vocab_size: int) -> Counts:
    """Counts by token id, int64 [V], from a .npy file or a JSON list at a path or URL.

    Raises:
        ValueError: it cannot be read, or does not hold V whole numbers that are not negative.
    """
    counts = _parse(url, _read(url))
    if counts.shape != (vocab_size,):
        raise ValueError(f"{url} has counts of shape {list(counts.shape)}; the vocabulary needs [{vocab_size}]")
    negative = np.flatnonzero(counts < 0)
    if len(negative):
        raise ValueError(f"{url} has the count {counts[negative[0]]} for token {negative[0]}; no count is negative")
    return counts.astype(np.int64)


def _read(url: str) -> bytes:
    try:
        with store_of(url) as (store, name):
            return store.read(name)
    except ToLError as error:
        raise ValueError(f"the counts at {url} cannot be read: {error}") from error


def _parse(url: str, data: bytes) -> NDArray[np.integer]:
    try:
        if url.endswith(".npy"):
            counts = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        else:
            counts = np.array(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url} holds neither .npy nor JSON counts as its name says: {error}") from error
    if counts.dtype.kind not in "iu":
        raise ValueError(f"{url} holds {counts.dtype} values; counts are whole numbers")
    return counts
