"""Requests of a cached source while they are open, and the staging rows that they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tolserve.memory.bill import MemoryBill
from tolserve.memory.spec import Ids
from tolserve.native.lookups import RowMap


@dataclass(kw_only=True, eq=False, slots=True)
class Stretch:
    """Staging rows of one fetch. It lives while handles read it; `users` counts them.

    Attributes:
        ids, rows: distinct token ids and where their rows come to lie.
        shared: later requests may find its rows.
    """

    start: int
    ids: Ids
    rows: Ids
    bands: tuple[int, ...]
    fetch: Any
    shared: bool
    num_bytes: int
    users: int = 1
    arrived: set[int] = field(default_factory=set)


@dataclass(kw_only=True, eq=False, slots=True)
class CachedHandle:
    """One request; see `tolserve.memory.source.Handle`."""

    index: RowMap
    stretches: list[Stretch]
    slots: RowMap | None
    hits_by_tier: dict[str, int]
    bytes_moved: int
    began: float
    fetch_s: float = 0.0
    stall_s: float = 0.0
    open: bool = True

    @property
    def bill(self) -> MemoryBill:
        """What it cost so far; made when it is asked for, since a step that waits for rows has better things to do."""
        return MemoryBill(
            rows_needed=len(self.index),
            rows_unique=len(np.unique(self.index)),
            hits_by_tier=self.hits_by_tier,
            bytes_moved=self.bytes_moved,
            fetch_ms=self.fetch_s * 1e3,
            stall_ms=self.stall_s * 1e3,
        )
