"""A trace through the cache that serves: everything but the rows' bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.cached import CachedSource
from tolserve.memory.policy import CachePolicy
from tolserve.memory.spec import Ids, Index, RowSpec
from tolserve.study.traces import Trace


@dataclass(kw_only=True, eq=False)
class _Fetch:
    order: Ids | None = None


class _NoRows:
    """A fetcher whose rows have no bytes and an arena that keeps none."""

    tier = "fetched"

    def __init__(self, vocab_size: int) -> None:
        self.spec = RowSpec.uniform(num_layers=1, layers_per_band=1, rank=1, dtype="int8", vocab_size=vocab_size)

    def request(self, ids: Ids, bands: tuple[int, ...]) -> _Fetch:
        return _Fetch()

    def receive(self, fetch: _Fetch, out: Mapping[int, memoryview]) -> None:
        pass

    def arrive(self, fetch: _Fetch, band: int) -> None:
        pass

    def drop(self, fetch: _Fetch) -> None:
        pass

    def close(self) -> None:
        pass

    def pool(self, band: int) -> Any:
        return None

    def inbox(self, band: int, start: int, stop: int) -> memoryview:
        return memoryview(b"")

    def deliver(self, band: int, start: int, stop: int) -> None:
        pass

    def reclaim(self, start: int, stop: int) -> None:
        pass

    def move(self, band: int, sources: Ids, targets: Ids) -> None:
        pass

    def gather(self, band: int, index: Index) -> NDArray[np.uint8]:
        return np.empty((len(index), 0), np.uint8)


def replay(trace: Trace, policy: CachePolicy, num_slots: int) -> int:
    """Rows that the trace finds in a cache of `num_slots`, which starts with what the policy wants.

    Steps come one after another; a row that is still arriving for the step before is none that is found.
    """
    nothing = _NoRows(trace.vocab_size)
    most = max(map(len, trace.steps))
    source = CachedSource(nothing, num_slots=num_slots, policy=policy, num_staging=max(2048, 2 * most), arena=nothing)
    source.warm()
    hits = 0
    for ids in trace.steps:
        handle = source.start(ids)
        source.arrive(handle, 0)
        source.release(handle)
        hits += handle.hits_by_tier.get("cache", 0)
    return hits
