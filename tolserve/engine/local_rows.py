"""Rows of every token in this process, in full and as fp32: the source that serves a model without a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolserve.engine.rows import IntArray


@dataclass(frozen=True, kw_only=True)
class LocalBand:
    """Consecutive layers, each with its full width of fp32 columns."""

    index: int
    layers: tuple[int, ...]
    ranks: tuple[int, ...]
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one token in this band."""
        return 4 * sum(self.ranks)


@dataclass(frozen=True, kw_only=True)
class LocalSpec:
    """What a source says of its rows; a local one names no table."""

    bands: tuple[LocalBand, ...]
    vocab_size: int
    identity: bytes = bytes(16)


@dataclass(kw_only=True)
class LocalBill:
    """Rows read here cost no wire."""

    hits_by_tier: dict[str, int]
    bytes_moved: int = 0
    fetch_ms: float = 0.0


@dataclass(kw_only=True)
class LocalHandle:
    """Ids being read."""

    token_ids: IntArray
    bill: LocalBill = field(init=False)

    def __post_init__(self) -> None:
        self.bill = LocalBill(hits_by_tier={"local": len(self.token_ids)})


class LocalRows:
    """All rows in host memory: V * L * D * 4 bytes, computed once when made.

    `rows_of(layer)` gives fp32 rows [V, D] of one layer.
    """

    def __init__(
        self, rows_of: Callable[[int], Tensor], *, vocab_size: int, num_layers: int, width: int, layers_per_band: int
    ) -> None:
        bands = []
        for index, first in enumerate(range(0, num_layers, layers_per_band)):
            layers = tuple(range(first, min(first + layers_per_band, num_layers)))
            bands.append(LocalBand(index=index, layers=layers, ranks=(width,) * len(layers)))
        self.spec = LocalSpec(bands=tuple(bands), vocab_size=vocab_size)
        self._rows = [torch.cat([rows_of(layer) for layer in band.layers], dim=1).float().numpy() for band in bands]

    def start(self, token_ids: IntArray, *, bands: tuple[int, ...] | None = None) -> LocalHandle:
        """Nothing to request: the rows are here, whichever `bands` are wanted."""
        return LocalHandle(token_ids=token_ids)

    def wait(self, handle: LocalHandle, band: int) -> NDArray[np.float32]:
        """Rows [ids, layers * D] of a band."""
        rows: NDArray[np.float32] = self._rows[band].take(handle.token_ids, axis=0)
        return rows

    def release(self, handle: LocalHandle) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""
