"""Random rows of every token, for benches of whole engines."""

from __future__ import annotations

import numpy as np

from tolserve.memory.partition import Partition
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import RamStore

_REPEATED_ROWS = 1024


def random_store(spec: RowSpec, partition: Partition | None = None) -> RamStore:
    """Rows of a partition, by default of every token: small numbers of the bands' type that repeat every 1,024 rows."""
    store = RamStore.empty(spec, partition or Partition())
    draw = np.random.default_rng(0)
    for band, rows in zip(spec.bands, store.bands, strict=True):
        columns = sum(band.ranks)
        values = (draw.standard_normal((_REPEATED_ROWS, columns)) * 0.02).astype(np.float32)
        part = _encode(values, band.dtype)
        for first in range(0, len(rows), _REPEATED_ROWS):
            rows[first : first + _REPEATED_ROWS] = part[: len(rows) - first]
    return store


def _encode(
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]], dtype: str
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    if dtype == "bfloat16":
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    return np.ascontiguousarray((values * 127 if dtype == "int8" else values).astype(dtype)).view(np.uint8)
