"""Rows read in this process: a fetcher over a `RowStore`, which may be a table reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.partition import Partition
from tolserve.memory.spec import Ids, RowSpec
from tolserve.memory.store import RowStore


@dataclass(kw_only=True, eq=False)
class LocalFetch:
    """Places to read and where to put them; see `RowFetcher.request`."""

    places: NDArray[np.int64]
    out: dict[int, memoryview]
    order: NDArray[np.int64] | None = None


class StoreFetcher:
    """Reads rows when a step waits for them; the store holds every id.

    Raises:
        ValueError: the store holds one partition of several.
    """

    def __init__(self, store: RowStore, *, tier: str = "table") -> None:
        if store.partition != Partition():
            raise ValueError(
                f"the store holds partition {store.partition.index}/{store.partition.count}; "
                "one that holds all is needed"
            )
        self.spec: RowSpec = store.spec
        self.tier = tier
        self._store = store

    def request(self, ids: Ids, bands: tuple[int, ...]) -> LocalFetch:
        """Note what is wanted."""
        return LocalFetch(places=self._store.locate(ids), out={})

    def receive(self, fetch: LocalFetch, out: Mapping[int, memoryview]) -> None:
        """Note where it goes."""
        fetch.out.update(out)

    def arrive(self, fetch: LocalFetch, band: int) -> None:
        """Read the rows of `band`."""
        view = fetch.out.pop(band, None)
        if view is not None:
            rows = np.frombuffer(view, np.uint8).reshape(len(fetch.places), self.spec.bands[band].row_bytes)
            self._store.gather(fetch.places, band, rows)

    def drop(self, fetch: LocalFetch) -> None:
        """Forget what has not been read."""
        fetch.out.clear()

    def close(self) -> None:
        """Close the store."""
        self._store.close()
