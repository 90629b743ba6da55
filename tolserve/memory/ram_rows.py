"""A bounded number of rows in host memory, by token: the cache of a tier that lies behind another or before a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.arena import empty_rows
from tolserve.memory.cached import slots_for
from tolserve.memory.policy import LRU, CachePolicy
from tolserve.memory.spec import Ids, Rows, RowSpec

MakePolicy = Callable[[int], CachePolicy]
"""A policy for so many slots."""

Slots = NDArray[np.int64]


class RamRows:
    """Rows by token. One of them may have some bands only: those that were asked for when it came.

    Memory is taken as rows come, so that bands which nobody asks for cost nothing. One thread uses it.

    Args:
        cache_bytes: of rows over `bands`; less than a row caches nothing.
        bands: those that are kept, all by default.
        policy: what is kept; the rows used last by default.

    Raises:
        ValueError: `cache_bytes` is negative, or there is no such band.
    """

    def __init__(
        self,
        spec: RowSpec,
        *,
        cache_bytes: int,
        bands: tuple[int, ...] | None = None,
        policy: MakePolicy = LRU,
    ) -> None:
        if cache_bytes < 0:
            raise ValueError(f"a cache of {cache_bytes} bytes; the number must not be negative")
        self.bands = spec.choose(bands)
        self.num_slots = slots_for(spec, cache_bytes, self.bands)
        self._policy = policy(self.num_slots)
        self._pools = {band: empty_rows(self.num_slots, spec.bands[band].row_bytes) for band in self.bands}
        self._slot_of = np.full(spec.vocab_size, -1, np.int32)
        self._token_of = np.full(self.num_slots, -1, np.int64)
        self._here = np.zeros(self.num_slots, np.uint64)
        self._readers = np.zeros(self.num_slots, np.int32)
        self._num_filled = 0

    @property
    def num_rows(self) -> int:
        """Slots that hold a row."""
        return self._num_filled

    def find(self, ids: Ids, bands: tuple[int, ...]) -> Slots:
        """Where the rows of `ids` are in all of `bands`; -1 for others. They count as used."""
        if self.num_slots == 0 or not set(bands) <= set(self.bands):
            return np.full(len(ids), -1, np.int64)
        slots = self._slot_of[ids].astype(np.int64)
        mask = _mask(bands)
        slots[(self._here[slots] & mask) != mask] = -1  # -1 stays -1 whatever the last slot has
        found = slots[slots >= 0]
        if len(found):
            self._policy.used(found)
        return slots

    def hold(self, slots: Slots) -> None:
        """Distinct slots stay as they are until `let_go`."""
        self._readers[slots] += 1

    def let_go(self, slots: Slots) -> None:
        """The rows that `hold` was told of may go."""
        self._readers[slots] -= 1

    def copy(self, band: int, slots: Slots, out: Rows) -> None:
        """Rows of `band` into `out`, uint8 [slots, row_bytes]."""
        self._pools[band].take(slots, axis=0, out=out, mode="clip")

    def put(self, ids: Ids, rows: Mapping[int, Rows], places: Slots) -> None:
        """Keep what the policy has room for: the rows of distinct `ids` are `rows[band][places]`, uint8."""
        kept = {band: part for band, part in rows.items() if band in self._pools}
        if self.num_slots == 0 or not kept or len(ids) == 0:
            return
        slots = self._slot_of[ids].astype(np.int64)
        new = np.flatnonzero(slots < 0)
        admitted, given = self._room(ids[new], slots[slots >= 0])
        self._settle(ids[new[admitted]], given)
        slots[new[admitted]] = given
        chosen = np.flatnonzero((slots >= 0) & (self._readers[slots] == 0))
        slots = slots[chosen]
        for band, part in kept.items():
            self._pools[band][slots] = part[places[chosen]]
        self._here[slots] |= _mask(tuple(kept))

    def _room(self, new_ids: Ids, keep: Slots) -> tuple[Ids, Slots]:
        """Places in `new_ids` of those that the policy lets in, and their slots, none of them in `keep`."""
        count = len(new_ids)
        fresh = np.arange(self._num_filled, min(self._num_filled + count, self.num_slots))
        free = self._readers == 0
        free[self._num_filled :] = False
        free[keep] = False
        return self._policy.admit(new_ids, fresh, free)

    def _settle(self, ids: Ids, slots: Slots) -> None:
        """These slots are those of `ids` now and hold nothing yet."""
        old = self._token_of[slots]
        self._slot_of[old[old >= 0]] = -1
        self._token_of[slots] = ids
        self._slot_of[ids] = slots
        self._here[slots] = 0
        self._num_filled += int(np.count_nonzero(old < 0))


def _mask(bands: tuple[int, ...]) -> np.uint64:
    return np.uint64(reduce(lambda mask, band: mask | 1 << band, bands, 0))
