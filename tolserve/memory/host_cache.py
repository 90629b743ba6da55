"""A cache in host memory behind the device's: rows that are not there are looked for here before they are fetched.

It keeps what came from behind it, so that a row that the device's cache gives up is usually still here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.policy import LRU
from tolserve.memory.ram_rows import MakePolicy, RamRows
from tolserve.memory.source import RowFetcher, Tally
from tolserve.memory.spec import Ids, Rows, RowSpec

TIER = "host"


@dataclass(kw_only=True, eq=False)
class HostFetch:
    """Rows from two places: those of `held` slots come first in the memory given, those of `fetch` behind them.

    Attributes:
        ids: ascending; `is_here` tells which of them are in this cache.
        fetch: for the others; None where all are here.
        left: bands that have not arrived.
    """

    ids: Ids
    bands: tuple[int, ...]
    is_here: NDArray[np.bool_]
    held: NDArray[np.int64]
    fetch: Any
    order: NDArray[np.int64]
    out: dict[int, Rows]
    left: set[int]


class HostCache:
    """A `RowFetcher` with a cache of `cache_bytes` in front of another, which it closes.

    Rows stay when their request is dropped, which is after the step that read them: a step waits for no copy but that
    of rows found here.
    """

    def __init__(
        self,
        fetcher: RowFetcher,
        *,
        cache_bytes: int,
        bands: tuple[int, ...] | None = None,
        policy: MakePolicy = LRU,
    ) -> None:
        self.spec: RowSpec = fetcher.spec
        self.tier = fetcher.tier
        self.rows = RamRows(fetcher.spec, cache_bytes=cache_bytes, bands=bands, policy=policy)
        self._fetcher = fetcher
        self._num_hits = self._num_misses = 0

    def stats(self) -> dict[str, int]:
        """Distinct rows found here and not, rows kept, and room for them; for metrics, any thread may ask."""
        return {
            "num_hits": self._num_hits,
            "num_misses": self._num_misses,
            "num_rows": self.rows.num_rows,
            "num_slots": self.rows.num_slots,
        }

    def request(self, ids: Ids, bands: tuple[int, ...]) -> HostFetch:
        """See `RowFetcher.request`; only what is not here is asked for."""
        slots = self.rows.find(ids, bands)
        is_here = slots >= 0
        held = slots[is_here]
        fetch = self._fetcher.request(ids[~is_here], bands) if len(held) < len(ids) else None
        self.rows.hold(held)
        self._num_hits += len(held)
        self._num_misses += len(ids) - len(held)
        order = np.empty(len(ids), np.int64)
        order[is_here] = np.arange(len(held))
        if fetch is not None:
            behind = np.arange(len(ids) - len(held)) if fetch.order is None else fetch.order
            order[~is_here] = behind + len(held)
        return HostFetch(
            ids=ids, bands=bands, is_here=is_here, held=held, fetch=fetch, order=order, out={}, left=set(bands)
        )

    def receive(self, fetch: HostFetch, out: Mapping[int, memoryview]) -> None:
        """See `RowFetcher.receive`."""
        widths = {band: self.spec.bands[band].row_bytes for band in fetch.bands}
        fetch.out = {band: np.frombuffer(out[band], np.uint8).reshape(-1, width) for band, width in widths.items()}
        if fetch.fetch is not None:
            behind = {band: out[band][len(fetch.held) * width :] for band, width in widths.items()}
            self._fetcher.receive(fetch.fetch, behind)

    def arrive(self, fetch: HostFetch, band: int) -> None:
        """See `RowFetcher.arrive`: what is here is copied while the rest is on its way."""
        if band not in fetch.left:
            return
        if len(fetch.held):
            self.rows.copy(band, fetch.held, fetch.out[band][: len(fetch.held)])
        if fetch.fetch is not None:
            self._fetcher.arrive(fetch.fetch, band)
        fetch.left.discard(band)

    def drop(self, fetch: HostFetch) -> None:
        """See `RowFetcher.drop`; rows that came in full are kept."""
        self.rows.let_go(fetch.held)
        fetch.held = fetch.held[:0]
        if fetch.fetch is None:
            return
        if not fetch.left:
            self.rows.put(fetch.ids[~fetch.is_here], fetch.out, fetch.order[~fetch.is_here])
        self._fetcher.drop(fetch.fetch)
        fetch.fetch = None
        fetch.out = {}

    def tally(self, fetch: HostFetch, token_ids: Ids) -> Tally:
        """See `TieredFetcher.tally`."""
        num_here = int(np.count_nonzero(fetch.is_here[np.searchsorted(fetch.ids, token_ids)]))
        hits = {TIER: num_here, self.tier: len(token_ids) - num_here}
        row_bytes = sum(self.spec.bands[band].row_bytes for band in fetch.bands)
        num_fetched = int(np.count_nonzero(~fetch.is_here))
        return Tally({tier: count for tier, count in hits.items() if count}, num_fetched * row_bytes)

    def close(self) -> None:
        """Close the fetcher behind it."""
        self._fetcher.close()
