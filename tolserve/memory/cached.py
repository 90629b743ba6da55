"""A row cache in front of a fetcher. With no slots it only stages, which is how a bare fetcher becomes a source."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tolserve.memory.arena import Arena, HostArena, StagingRows
from tolserve.memory.bill import MemoryBill
from tolserve.memory.errors import StagingFullError
from tolserve.memory.policy import CachePolicy
from tolserve.memory.source import RowFetcher
from tolserve.memory.spec import Ids, RowSpec

DEFAULT_STAGING_ROWS = 8192


@dataclass(kw_only=True, eq=False)
class _Stretch:
    """Staging rows of one fetch. It lives while handles read it; `users` counts them."""

    start: int
    ids: Ids
    bands: tuple[int, ...]
    fetch: Any
    rows: Ids
    users: int = 1
    shared: bool = False
    arrived: set[int] = field(default_factory=set)


@dataclass(kw_only=True, eq=False)
class CachedHandle:
    """One request; see `tolserve.memory.source.Handle`."""

    index: Ids
    bill: MemoryBill
    stretches: list[_Stretch]
    slots: Ids | None
    began: float
    open: bool = True


class CachedSource:
    """A `RowSource`: rows that are cached, being fetched for an earlier request, or fetched now.

    The map from token to row is a dense int32 [V]: a row below `num_staging` is a staging row that is arriving, one
    above is a cache slot, -1 is neither. Slots that an open handle reads are never given up, and rows that arrived
    become slots when their last reader releases them.

    Args:
        fetcher: brings the rows that are not here; closed with the source.
        num_slots: rows to cache, from `slots_for`; 0 caches nothing.
        policy: required where `num_slots` is positive.
        bands: the bands that are cached, all by default; give those that will be asked for.
        num_staging: rows that may be in flight or in use beside the cache; more are refused (`StagingFullError`).
        arena: memory for `arena_slots(...)`; host memory by default.
    """

    def __init__(
        self,
        fetcher: RowFetcher,
        *,
        num_slots: int = 0,
        policy: CachePolicy | None = None,
        bands: tuple[int, ...] | None = None,
        num_staging: int = DEFAULT_STAGING_ROWS,
        arena: Arena | None = None,
    ) -> None:
        spec = fetcher.spec
        if num_slots and policy is None:
            raise ValueError(f"a cache of {num_slots} rows needs a policy; none was given")
        if num_slots < 0 or num_staging < 1:
            raise ValueError(f"num_slots {num_slots} must not be negative, num_staging {num_staging} must be positive")
        self.spec: RowSpec = spec
        self.num_slots = num_slots
        self.num_staging = num_staging
        self._bands = spec.choose(bands)
        self._fetcher = fetcher
        self._policy = policy
        self._arena = arena or HostArena(spec, num_staging=num_staging, slots=arena_slots(self._bands, num_slots))
        self._staging = StagingRows(num_staging)
        self._row_of = np.full(spec.vocab_size, -1, np.int32)
        self._token_of = np.full(num_slots, -1, np.int64)
        self._readers = np.zeros(num_slots, np.int32)
        self._num_filled = 0
        self._arriving: list[_Stretch] = []

    @property
    def num_cached(self) -> int:
        """Slots that hold a row."""
        return self._num_filled

    @property
    def num_staged(self) -> int:
        """Staging rows in flight or in use."""
        return self._staging.num_taken

    def warm(self) -> int:
        """Load the rows that the policy wants before serving; how many there are now."""
        if self._policy is None:
            return 0
        ids = self._policy.warm_ids(self.num_slots)
        step = max(1, min(self.num_staging // 2, 1024))
        for first in range(0, len(ids), step):
            handle = self.start(ids[first : first + step], bands=self._bands)
            for band in self._bands:
                self.arrive(handle, band)
            self.release(handle)
        return self._num_filled

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> CachedHandle:
        """See `RowSource.start`."""
        began = time.perf_counter()
        self.spec.check_ids(token_ids)
        wanted = self._bands if bands is None or bands == self._bands else self.spec.choose(bands)
        bill = MemoryBill(rows_needed=len(token_ids), rows_unique=len(token_ids))
        handle = CachedHandle(index=token_ids, bill=bill, stretches=[], slots=None, began=began)
        if not set(wanted) <= set(self._bands):
            handle.index = np.full(len(token_ids), -1, np.int64)
            self._fetch(handle, np.arange(len(token_ids)), token_ids, wanted, shared=False)
            return handle
        rows = self._row_of[token_ids].astype(np.int64)
        num_here = int(np.count_nonzero(rows >= 0))
        handle.index = rows
        if num_here < len(rows):
            missing = np.flatnonzero(rows < 0)
            self._fetch(handle, missing, token_ids[missing], wanted, shared=wanted == self._bands)
        if num_here:
            self._use(handle, rows, num_here)
        return handle

    def arrive(self, handle: CachedHandle, band: int) -> None:
        """See `RowSource.arrive`."""
        for stretch in handle.stretches:
            if band not in stretch.arrived:
                self._receive(handle, stretch, band)

    def pool(self, band: int) -> Any:
        """See `RowSource.pool`."""
        return self._arena.pool(band)

    def wait(self, handle: CachedHandle, band: int) -> Any:
        """See `RowSource.wait`."""
        self.arrive(handle, band)
        return self._arena.gather(band, handle.index)

    def release(self, handle: CachedHandle) -> None:
        """See `RowSource.release`; releasing twice changes nothing."""
        if not handle.open:
            return
        handle.open = False
        if handle.slots is not None:
            self._readers[handle.slots] -= 1
        for stretch in handle.stretches:
            stretch.users -= 1
            if stretch.users == 0:
                self._retire(stretch)

    def close(self) -> None:
        """Close the fetcher."""
        self._fetcher.close()

    def _fetch(self, handle: CachedHandle, places: Ids, ids: Ids, bands: tuple[int, ...], *, shared: bool) -> None:
        """Stage `ids`, whose places among the handle's rows are `places`; `shared` lets later requests find them."""
        count = len(ids)
        start = self._take(count)
        out = {band: self._arena.inbox(band, start, start + count) for band in bands}
        try:
            fetch = self._fetcher.fetch(ids, out)
        except BaseException:
            self._staging.give_back(start, count)
            raise
        rows = np.arange(start, start + count) if fetch.order is None else fetch.order + start
        handle.index[places] = rows
        stretch = _Stretch(start=start, ids=ids, bands=bands, fetch=fetch, rows=rows, shared=shared)
        if shared:
            self._row_of[ids] = rows
            self._arriving.append(stretch)
        handle.stretches.append(stretch)
        handle.bill.hits_by_tier[self._fetcher.tier] = count
        handle.bill.bytes_moved += sum(len(view) for view in out.values())

    def _take(self, count: int) -> int:
        if count > self.num_staging:
            raise ValueError(f"{count} rows at once; this source stages {self.num_staging} (num_staging): ask in parts")
        start = self._staging.take(count)
        if start is None:
            raise StagingFullError(
                f"{count} rows do not fit beside the {self.num_staged} of {self.num_staging} staging rows in use"
            )
        return start

    def _use(self, handle: CachedHandle, rows: Ids, num_here: int) -> None:
        """Hold what was here when the request came: cache slots, and staging rows of earlier requests."""
        slots = rows[rows >= self.num_staging] - self.num_staging
        num_slots = len(slots)
        if num_slots:
            self._readers[slots] += 1
            handle.slots = slots
            handle.bill.hits_by_tier["cache"] = num_slots
            assert self._policy is not None
            self._policy.used(slots)
        if num_slots == num_here:
            return
        handle.bill.hits_by_tier["flight"] = num_here - num_slots
        own = handle.stretches[0] if handle.stretches else None
        for stretch in self._arriving:
            inside = (rows >= stretch.start) & (rows < stretch.start + len(stretch.ids))
            if stretch is not own and inside.any():
                stretch.users += 1
                handle.stretches.append(stretch)

    def _receive(self, handle: CachedHandle, stretch: _Stretch, band: int) -> None:
        began = time.perf_counter()
        if band not in stretch.bands:
            raise ValueError(f"band {band} was not asked for; this request has bands {stretch.bands}")
        self._fetcher.arrive(stretch.fetch, band)
        self._arena.deliver(band, stretch.start, stretch.start + len(stretch.ids))
        stretch.arrived.add(band)
        now = time.perf_counter()
        handle.bill.stall_ms += (now - began) * 1e3
        handle.bill.fetch_ms = (now - handle.began) * 1e3

    def _retire(self, stretch: _Stretch) -> None:
        """The last reader has gone: rows that came in full may become slots, the staging rows are free."""
        if stretch.shared:
            self._arriving.remove(stretch)
            self._row_of[stretch.ids] = -1
        if stretch.shared and self.num_slots and len(stretch.arrived) == len(stretch.bands):
            self._promote(stretch)
        self._fetcher.drop(stretch.fetch)
        self._arena.reclaim(stretch.start, stretch.start + len(stretch.ids))
        self._staging.give_back(stretch.start, len(stretch.ids))

    def _promote(self, stretch: _Stretch) -> None:
        assert self._policy is not None
        count = len(stretch.ids)
        fresh = np.arange(self._num_filled, min(self._num_filled + count, self.num_slots))
        slots = fresh
        if len(fresh) < count:
            free = self._readers == 0
            free[self._num_filled :] = False
            slots = np.concatenate([fresh, self._policy.victims(count - len(fresh), free)])
        if len(slots) == 0:
            return
        self._num_filled += len(fresh)
        ids, rows = stretch.ids[: len(slots)], stretch.rows[: len(slots)]
        old = self._token_of[slots]
        self._row_of[old[old >= 0]] = -1
        self._token_of[slots] = ids
        self._row_of[ids] = slots + self.num_staging
        self._policy.filled(slots)
        for band in self._bands:
            self._arena.move(band, rows, slots + self.num_staging)


def arena_slots(bands: tuple[int, ...], num_slots: int) -> Mapping[int, int]:
    """Cache slots by band, as an arena is made with."""
    return dict.fromkeys(bands, num_slots)


def slots_for(spec: RowSpec, budget_bytes: int, bands: tuple[int, ...] | None = None) -> int:
    """Rows of `bands` that fit into `budget_bytes`, at most one for each token."""
    chosen = spec.choose(bands)
    row_bytes = sum(spec.bands[band].row_bytes for band in chosen)
    return min(spec.vocab_size, max(0, budget_bytes) // row_bytes)
