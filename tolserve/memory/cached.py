"""A row cache in front of a fetcher. With no slots it only stages, which is how a bare fetcher becomes a source."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tolserve.memory.arena import Arena, HostArena, StagingRows
from tolserve.memory.errors import StagingFullError
from tolserve.memory.handles import CachedHandle, Stretch
from tolserve.memory.policy import CachePolicy
from tolserve.memory.source import RowFetcher, Tally, TieredFetcher
from tolserve.memory.spec import Ids, RowSpec
from tolserve.native.lookups import Lookups, RowMap, lookups

DEFAULT_STAGING_ROWS = 8192


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
        self._tiered = fetcher if isinstance(fetcher, TieredFetcher) else None
        self._policy = policy
        self._arena = arena or HostArena(spec, num_staging=num_staging, slots=arena_slots(self._bands, num_slots))
        self._staging = StagingRows(num_staging)
        self._row_of = np.full(spec.vocab_size, -1, np.int32)
        self._lookups: Lookups = lookups()
        self._token_of = np.full(num_slots, -1, np.int64)
        self._readers = np.zeros(num_slots, np.int32)
        self._row_bytes = [band.row_bytes for band in spec.bands]
        self._num_filled = 0
        self._arriving: list[Stretch] = []

    @property
    def num_cached(self) -> int:
        """Slots that hold a row."""
        return self._num_filled

    @property
    def num_staged(self) -> int:
        """Staging rows in flight or in use."""
        return self._staging.num_taken

    def cached_ids(self) -> Ids:
        """Token ids that have a slot, most wanted first. Any thread may ask."""
        token_of = self._token_of.copy()
        slots = np.flatnonzero(token_of >= 0)
        if self._policy is None or len(slots) == 0:
            return np.empty(0, np.int64)
        ids = token_of[slots]
        return ids[np.argsort(-self._policy.worth(slots, ids), kind="stable")]

    def warm(self, first: Ids | None = None) -> int:
        """Load rows before serving, the ids of `first` and then those that the policy wants; how many are there now."""
        if self._policy is None:
            return 0
        ids = self._policy.warm_ids(self.num_slots)
        if first is not None:
            ids = np.concatenate([first, ids[~np.isin(ids, first)]])[: self.num_slots]
        step = max(1, min(self.num_staging // 2, 1024))
        for begin in reversed(range(0, len(ids), step)):  # the most wanted last: to an LRU they are the youngest
            handle = self.start(ids[begin : begin + step], bands=self._bands)
            for band in self._bands:
                self.arrive(handle, band)
            self.release(handle)
        return self._num_filled

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> CachedHandle:
        """See `RowSource.start`. The request leaves before anything else is done."""
        began = time.perf_counter()
        whole = bands == self._bands
        wanted = self._bands if whole else self.spec.choose(bands)
        whole = whole or wanted == self._bands
        if whole or set(wanted) <= set(self._bands):
            rows, missing, num_missing = self._look_up(token_ids)
        else:
            self.spec.check_ids(token_ids)
            num_missing = len(token_ids)
            rows, missing = np.full(num_missing, -1, np.int32), self._lookups.distinct(token_ids)
        handle = CachedHandle(index=rows, stretches=[], slots=None, hits_by_tier={}, bytes_moved=0, began=began)
        if num_missing:
            stretch = self._fetch(missing, wanted, shared=whole)
            handle.hits_by_tier, handle.bytes_moved = self._tally(stretch, token_ids, rows, num_missing)
            self._place(rows, token_ids, stretch)
            handle.stretches.append(stretch)
        self._use(handle, token_ids, rows, len(token_ids) - num_missing)
        return handle

    def absent(self, token_ids: Ids) -> Ids:
        """See `CachingSource.absent`."""
        return token_ids[self._row_of[token_ids] < 0]

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
            self._lookups.let_go(self._readers, handle.slots)
        for stretch in handle.stretches:
            stretch.users -= 1
            if stretch.users == 0:
                self._retire(stretch)

    def close(self) -> None:
        """Close the fetcher."""
        self._fetcher.close()

    def _look_up(self, token_ids: Ids) -> tuple[RowMap, Ids, int]:
        try:
            return self._lookups.look_up(self._row_of, token_ids)
        except (IndexError, TypeError):
            self.spec.check_ids(token_ids)  # says which
            raise

    def _fetch(self, ids: Ids, bands: tuple[int, ...], *, shared: bool) -> Stretch:
        """Ask for distinct ids that are not here and stage them."""
        count = len(ids)
        start = self._take(count)
        stop = start + count
        try:
            fetch = self._fetcher.request(ids, bands)
        except BaseException:
            self._staging.give_back(start, count)
            raise
        self._fetcher.receive(fetch, {band: self._arena.inbox(band, start, stop) for band in bands})
        rows = np.arange(start, stop) if fetch.order is None else fetch.order + start
        num_bytes = count * sum([self._row_bytes[band] for band in bands])
        return Stretch(start=start, ids=ids, rows=rows, bands=bands, fetch=fetch, shared=shared, num_bytes=num_bytes)

    def _tally(self, stretch: Stretch, token_ids: Ids, rows: RowMap, num_missing: int) -> Tally:
        if self._tiered is None:
            return Tally({self._fetcher.tier: num_missing}, stretch.num_bytes)
        return self._tiered.tally(stretch.fetch, token_ids[rows < 0])

    def _place(self, rows: RowMap, token_ids: Ids, stretch: Stretch) -> None:
        """Tell where the missing rows come to lie: in `rows` or, if they are shared, in the map for all requests."""
        if not stretch.shared:
            missing = (rows < 0).nonzero()[0]
            rows[missing] = stretch.rows[np.searchsorted(stretch.ids, token_ids[missing])]
            return
        self._row_of[stretch.ids] = stretch.rows
        self._arriving.append(stretch)

    def _take(self, count: int) -> int:
        if count > self.num_staging:
            raise ValueError(f"{count} rows at once; this source stages {self.num_staging} (num_staging): ask in parts")
        start = self._staging.take(count)
        if start is None:
            raise StagingFullError(
                f"{count} rows do not fit beside the {self.num_staged} of {self.num_staging} staging rows in use"
            )
        return start

    def _use(self, handle: CachedHandle, token_ids: Ids, rows: RowMap, num_here: int) -> None:
        """Hold what was here when the request came: cache slots, and staging rows of earlier requests."""
        slots = self._lookups.settle(self._row_of, token_ids, rows, self._readers, self.num_staging)
        num_slots = len(slots)
        if num_slots:
            handle.slots = slots
            handle.hits_by_tier["cache"] = num_slots
            assert self._policy is not None
            self._policy.used(slots)
        if num_slots == num_here:
            return
        handle.hits_by_tier["flight"] = num_here - num_slots
        own = handle.stretches[0] if handle.stretches else None
        for stretch in self._arriving:
            inside = (rows >= stretch.start) & (rows < stretch.start + len(stretch.ids))
            if stretch is not own and inside.any():
                stretch.users += 1
                handle.stretches.append(stretch)

    def _receive(self, handle: CachedHandle, stretch: Stretch, band: int) -> None:
        began = time.perf_counter()
        if band not in stretch.bands:
            raise ValueError(f"band {band} was not asked for; this request has bands {stretch.bands}")
        self._fetcher.arrive(stretch.fetch, band)
        self._arena.deliver(band, stretch.start, stretch.start + len(stretch.ids))
        stretch.arrived.add(band)
        now = time.perf_counter()
        handle.stall_s += now - began
        handle.fetch_s = now - handle.began

    def _retire(self, stretch: Stretch) -> None:
        """The last reader has gone: rows that came in full may become slots, the staging rows are free."""
        if stretch.shared:
            self._arriving.remove(stretch)
            self._row_of[stretch.ids] = -1
        if stretch.shared and self.num_slots and len(stretch.arrived) == len(stretch.bands):
            self._promote(stretch)
        self._fetcher.drop(stretch.fetch)
        self._arena.reclaim(stretch.start, stretch.start + len(stretch.ids))
        self._staging.give_back(stretch.start, len(stretch.ids))

    def _promote(self, stretch: Stretch) -> None:
        assert self._policy is not None
        fresh = np.arange(self._num_filled, min(self._num_filled + len(stretch.ids), self.num_slots))
        free = self._readers == 0
        free[self._num_filled :] = False
        places, slots = self._policy.admit(stretch.ids, fresh, free)
        if len(slots) == 0:
            return
        self._num_filled += len(fresh)
        ids, rows = stretch.ids[places], stretch.rows[places]
        old = self._token_of[slots]
        self._row_of[old[old >= 0]] = -1
        self._token_of[slots] = ids
        self._row_of[ids] = slots + self.num_staging
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
