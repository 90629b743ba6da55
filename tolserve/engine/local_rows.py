"""Rows of every token in this process: the source that serves a model without a table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tolserve.engine.rows import IntArray
from tolserve.memory.bill import MemoryBill
from tolserve.memory.spec import Ids, Rows, RowSpec


class LocalHandle:
    """Rows being read: their places in the pools are their ids."""

    def __init__(self, token_ids: IntArray) -> None:
        self.index: Ids = token_ids
        num_rows = len(token_ids)
        self.bill = MemoryBill(rows_needed=num_rows, rows_unique=num_rows, hits_by_tier={"local": num_rows})


class LocalRows:
    """A `RowSource` whose pools hold every token's row: `pools[i]` is band i, uint8 [V, row_bytes]."""

    def __init__(self, spec: RowSpec, pools: list[Rows]) -> None:
        self.spec = spec
        self._pools = pools

    @classmethod
    def computed(
        cls, rows_of: Callable[[int], Tensor], *, vocab_size: int, num_layers: int, width: int, layers_per_band: int
    ) -> LocalRows:
        """Full fp32 rows, V * L * D * 4 bytes; `rows_of(layer)` gives a layer's [V, D]."""
        spec = RowSpec.uniform(
            num_layers=num_layers, layers_per_band=layers_per_band, rank=width, dtype="float32", vocab_size=vocab_size
        )
        pools: list[Rows] = []
        for band in spec.bands:
            pool = torch.empty(vocab_size, width * len(band.layers))
            for place, layer in enumerate(band.layers):
                pool[:, place * width : (place + 1) * width] = rows_of(layer)
            pools.append(pool.view(torch.uint8).numpy())
        return cls(spec, pools)

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> LocalHandle:
        """Nothing to request: the rows are here, whichever `bands` are wanted."""
        return LocalHandle(token_ids)

    def arrive(self, handle: LocalHandle, band: int) -> None:
        """They are here."""

    def pool(self, band: int) -> Rows:
        """Rows of all tokens, uint8 [V, row_bytes]."""
        return self._pools[band]

    def wait(self, handle: LocalHandle, band: int) -> Rows:
        """Rows of the handle's ids, uint8 [ids, row_bytes]."""
        rows: Rows = self._pools[band].take(handle.index, axis=0)
        return rows

    def release(self, handle: LocalHandle) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is open."""
