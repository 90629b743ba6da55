"""The whole table (or some bands of it) in one place: what serving without a network is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tolserve.memory.arena import empty_rows
from tolserve.memory.bill import MemoryBill
from tolserve.memory.source import RowSource
from tolserve.memory.spec import Ids, RowSpec

_LOAD_ROWS = 2048


@dataclass(kw_only=True, eq=False)
class TableHandle:
    """Rows lie at their token's id."""

    index: Ids

    @property
    def bill(self) -> MemoryBill:
        """Rows read, all of them here."""
        count = len(self.index)
        return MemoryBill(rows_needed=count, rows_unique=len(np.unique(self.index)), hits_by_tier={"device": count})


class DeviceTable:
    """Rows of every token, by band uint8 [V, row_bytes]: NumPy arrays, or tensors on a device.

    Bands that are not in `pools` cannot be asked for.
    """

    def __init__(self, spec: RowSpec, pools: Mapping[int, Any]) -> None:
        self.spec = spec
        self._bands = spec.choose(pools)
        self._pools = dict(pools)

    @classmethod
    def load(cls, source: RowSource, *, bands: tuple[int, ...] | None = None, device: str = "cpu") -> DeviceTable:
        """Every row of another source, which stays open. `device` is a torch device; "cpu" needs no torch."""
        spec = source.spec
        chosen = spec.choose(bands)
        pools: dict[int, Any] = {}
        for band in chosen:
            pools[band] = _empty(spec.vocab_size, spec.bands[band].row_bytes, device)
        for first in range(0, spec.vocab_size, _LOAD_ROWS):
            stop = min(first + _LOAD_ROWS, spec.vocab_size)
            handle = source.start(np.arange(first, stop, dtype=np.int64), bands=chosen)
            for band in chosen:
                _copy(pools[band], first, stop, source.wait(handle, band))
            source.release(handle)
        return cls(spec, pools)

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> TableHandle:
        """See `RowSource.start`."""
        self.spec.check_ids(token_ids)
        missing = set(self._bands if bands is None else self.spec.choose(bands)) - set(self._bands)
        if missing:
            raise ValueError(f"bands {sorted(missing)} are not on the device; {list(self._bands)} are")
        return TableHandle(index=token_ids)

    def arrive(self, handle: TableHandle, band: int) -> None:
        """All rows are here."""

    def pool(self, band: int) -> Any:
        """See `RowSource.pool`: the row of a token is at its id."""
        return self._pools[band]

    def wait(self, handle: TableHandle, band: int) -> Any:
        """See `RowSource.wait`."""
        return self._pools[band][handle.index]

    def release(self, handle: TableHandle) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """The memory goes with the object."""


def _empty(num_rows: int, row_bytes: int, device: str) -> Any:
    if device == "cpu":
        return empty_rows(num_rows, row_bytes, huge_pages=True)
    import torch

    return torch.zeros((num_rows, row_bytes), dtype=torch.uint8, device=device)


def _copy(pool: Any, first: int, stop: int, rows: Any) -> None:
    if isinstance(pool, np.ndarray):
        pool[first:stop] = rows
        return
    import torch

    pool[first:stop] = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
