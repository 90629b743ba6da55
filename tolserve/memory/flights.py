"""What a fetch asks of each partition, planned before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tolserve.memory.channel import Flight
from tolserve.memory.partition import BLOCK_ROWS
from tolserve.memory.spec import Ids
from tolserve.transport.frames import Ids32


@dataclass(kw_only=True, eq=False, slots=True)
class RemoteFetch:
    """Flights to the partitions that hold its ids; see `RowFetcher.request`.

    Attributes:
        deadline: monotonic time after which rows that are still missing are an error.
    """

    bands: tuple[int, ...]
    order: Ids | None
    flights: list[Flight]
    deadline: float = 0.0


def plan_fetch(ids: Ids, bands: tuple[int, ...], *, num_partitions: int, max_ids: int) -> RemoteFetch:
    """What each partition is asked for; its rows lie together, partition behind partition."""
    if num_partitions == 1:
        return RemoteFetch(bands=bands, order=None, flights=_flights(0, ids.astype(np.uint32), bands, max_ids))
    owner = ids // BLOCK_ROWS % num_partitions
    by_owner = np.argsort(owner, kind="stable")
    order = np.empty(len(ids), np.int64)
    order[by_owner] = np.arange(len(ids))
    ids32 = ids[by_owner].astype(np.uint32)
    ends = np.cumsum(np.bincount(owner, minlength=num_partitions)).tolist()
    flights: list[Flight] = []
    for partition, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
        if stop > start:
            flights += _flights(partition, ids32[start:stop], bands, max_ids)
    return RemoteFetch(bands=bands, order=order, flights=flights)


def _flights(partition: int, ids: Ids32, bands: tuple[int, ...], most: int) -> list[Flight]:
    """The ids of one partition in their order, in as many requests as it takes: one, but for very large steps."""
    parts = [ids] if len(ids) <= most else [ids[start : start + most] for start in range(0, len(ids), most)]
    return [Flight(partition=partition, ids=part, bands=bands) for part in parts]
