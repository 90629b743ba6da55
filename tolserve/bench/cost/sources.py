"""A point's rows as an engine asks for them: a place, behind the cache and the pinned bands that the point has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost.places import PLACES, Asked
from tolserve.memory.arena import Arena
from tolserve.memory.cached import CachedSource
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO
from tolserve.memory.source import RowSource
from tolserve.memory.spec import Ids, RowSpec

NUM_STAGING = 4096

Counts = NDArray[np.int64]

POLICIES: Mapping[str, Callable[[int, Counts], CachePolicy]] = {
    "static": lambda num_slots, counts: StaticByFrequency(counts),
    "lru": lambda num_slots, counts: LRU(num_slots, counts),
    "s3fifo": lambda num_slots, counts: S3FIFO(num_slots, len(counts), counts),
}
"""Cache policies by name, made from the number of slots and the counts of tokens in other text of the kind."""

MakeArena = Callable[[RowSpec], Arena]


class FetchBeforeStep:
    """A source whose requests return when all their rows are there: what a step without overlap waits for."""

    def __init__(self, inner: CachedSource) -> None:
        self.spec = inner.spec
        self._inner = inner

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> Any:
        """See `RowSource.start`; the rows have come."""
        handle = self._inner.start(token_ids, bands=bands)
        for band in self.spec.choose(bands):
            self._inner.arrive(handle, band)
        return handle

    def arrive(self, handle: Any, band: int) -> None:
        """They are here."""

    def pool(self, band: int) -> Any:
        """See `RowSource.pool`."""
        return self._inner.pool(band)

    def wait(self, handle: Any, band: int) -> Any:
        """See `RowSource.wait`."""
        return self._inner.wait(handle, band)

    def release(self, handle: Any) -> None:
        """See `RowSource.release`."""
        self._inner.release(handle)

    def close(self) -> None:
        """See `RowSource.close`."""
        self._inner.close()


def requested_bands(asked: Asked) -> tuple[int, ...]:
    """The bands that are not pinned."""
    return tuple(range(min(asked.point.pinned_bands, len(asked.material.spec.bands)), len(asked.material.spec.bands)))


def num_slots(asked: Asked) -> int:
    """Tokens whose rows the device caches."""
    return round(asked.point.cache_share * asked.material.spec.vocab_size)


def device_bytes(asked: Asked) -> int:
    """Bytes of rows on the device: every token of the pinned bands, the cached tokens of the others."""
    spec, requested = asked.material.spec, requested_bands(asked)
    pinned = sum(band.row_bytes for band in spec.bands if band.index not in requested) * spec.vocab_size
    cached = sum(spec.bands[band].row_bytes for band in requested) * num_slots(asked)
    return pinned + cached


@contextmanager
def cached_source(asked: Asked, counts: Counts, make_arena: MakeArena | None = None) -> Iterator[CachedSource]:
    """The point's rows behind its cache, which is warm.

    Args:
        counts: int64 [V], for the policy.
        make_arena: memory of the rows that are here; host memory by default.
    """
    bands, slots = requested_bands(asked), num_slots(asked)
    with PLACES[asked.point.place].open(asked) as fetcher:
        source = CachedSource(
            fetcher,
            num_slots=slots if bands else 0,
            policy=POLICIES[asked.point.policy](slots, counts) if slots and bands else None,
            bands=bands or None,
            num_staging=NUM_STAGING,
            arena=make_arena(fetcher.spec) if make_arena else None,
        )
        try:
            source.warm()
            yield source
        finally:
            source.close()


@contextmanager
def bare_source(asked: Asked) -> Iterator[CachedSource]:
    """The point's place without a cache: what an isolated fetch is measured on."""
    with PLACES[asked.point.place].open(asked) as fetcher:
        source = CachedSource(fetcher, num_staging=NUM_STAGING)
        try:
            yield source
        finally:
            source.close()


def as_asked(point_overlaps: bool, source: CachedSource) -> RowSource:
    """The source as steps use it: with overlap, or waited for before each step."""
    return source if point_overlaps else FetchBeforeStep(source)


def host_source(asked: Asked) -> CachedSource:
    """The same rows read from this process's memory."""
    return CachedSource(StoreFetcher(asked.material.store, tier="host"), num_staging=NUM_STAGING)
