"""An arena on a GPU: rows are received into pinned host memory and copied to the pools without anybody waiting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tolserve.memory.spec import Ids, Index, RowSpec


class DeviceArena:
    """Pools as uint8 tensors on `device`; all work goes to its current stream, in order with what reads the pools."""

    def __init__(self, spec: RowSpec, *, num_staging: int, slots: Mapping[int, int], device: torch.device) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._pools: dict[int, Tensor] = {}
        self._inboxes: dict[int, Tensor] = {}
        for band in spec.bands:
            shape = (num_staging + slots.get(band.index, 0), band.row_bytes)
            self._pools[band.index] = torch.zeros(shape, dtype=torch.uint8, device=device)
            inbox = torch.zeros((num_staging, band.row_bytes), dtype=torch.uint8, pin_memory=pinned)
            self._inboxes[band.index] = inbox
        self._copied: dict[int, torch.cuda.Event] = {}

    def pool(self, band: int) -> Tensor:
        """uint8 [rows, row_bytes] on the device."""
        return self._pools[band]

    def inbox(self, band: int, start: int, stop: int) -> memoryview:
        """Pinned host memory for these staging rows."""
        return memoryview(self._inboxes[band][start:stop].numpy()).cast("B")

    def deliver(self, band: int, start: int, stop: int) -> None:
        """Queue the copy of these rows to the device."""
        self._pools[band][start:stop].copy_(self._inboxes[band][start:stop], non_blocking=True)
        if self._device.type == "cuda":
            event = self._copied.setdefault(start, torch.cuda.Event())
            event.record(torch.cuda.current_stream(self._device))

    def reclaim(self, start: int, stop: int) -> None:
        """Wait until the copy of the rows that begin at `start` has read its inbox."""
        event = self._copied.get(start)
        if event is not None:
            event.synchronize()

    def move(self, band: int, sources: Ids, targets: Ids) -> None:
        """Copy rows of a pool to other places of it."""
        pool = self._pools[band]
        pool[self._index(targets)] = pool[self._index(sources)]

    def gather(self, band: int, index: Index) -> Tensor:
        """Rows `index` of a pool, on the device."""
        return self._pools[band].index_select(0, self._index(index))

    def _index(self, index: Index) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(index)).to(self._device)
