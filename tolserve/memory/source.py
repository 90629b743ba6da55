"""The two interfaces of the row path.

A `RowSource` is what an engine asks for rows. Its rows lie in one pool a band, at addresses that do not change: a
handle says where in the pools its rows are (`index`), so that rows that are there already are never copied on the way.

A `RowFetcher` brings rows into memory that it is given: a table reader, a client of memory nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tolserve.memory.bill import MemoryBill
from tolserve.memory.spec import Ids, Index, RowSpec


class Handle(Protocol):
    """One request for rows, from `start` to `release`."""

    @property
    def index(self) -> Index:
        """Integers [ids]: the row of `token_ids[i]` is `pool(band)[index[i]]`, in every band asked for."""

    @property
    def bill(self) -> MemoryBill:
        """What it cost so far."""


@runtime_checkable
class RowSource(Protocol):
    """Where the rows of steps come from. One thread at a time uses it."""

    @property
    def spec(self) -> RowSpec:
        """What the rows look like."""

    def start(self, token_ids: Ids, *, bands: tuple[int, ...] | None = None) -> Any:
        """Ask for the rows of ids (int64), in all bands or those named; returns a `Handle` at once.

        An id may occur more than once: it is asked for once, and its places have the same index.

        Raises:
            ValueError: an id or a band that the table does not have, or more ids than the source ever stages.
            StagingFullError: the staging budget is taken.
        """

    def arrive(self, handle: Any, band: int) -> None:
        """Return when the rows of `band` are in the pool.

        Raises:
            NodesUnavailableError: they did not come before the deadline.
        """

    def pool(self, band: int) -> Any:
        """All rows of `band` that are here, uint8 [rows, row_bytes]: NumPy on a host, a tensor on a device."""

    def wait(self, handle: Any, band: int) -> Any:
        """`arrive`, then the handle's rows in the order of its ids, uint8 [ids, row_bytes], valid until `release`."""

    def release(self, handle: Any) -> None:
        """The rows are no longer read; a request that has not arrived is given up."""

    def close(self) -> None:
        """Give back connections and memory."""


@runtime_checkable
class CachingSource(RowSource, Protocol):
    """A source whose rows come from elsewhere, so that asking early can be of use."""

    def absent(self, token_ids: Ids) -> Ids:
        """Those ids whose rows are neither here nor on their way."""


class RowFetcher(Protocol):
    """Brings rows into given memory. One thread at a time uses it."""

    @property
    def spec(self) -> RowSpec:
        """What the rows look like."""

    @property
    def tier(self) -> str:
        """The name of this tier in a `MemoryBill`."""

    def request(self, ids: Ids, bands: tuple[int, ...]) -> Any:
        """Ask for the rows of distinct `ids` in `bands` (in layer order); returns at once.

        Returns:
            A fetch whose `order` is int64 [ids], the place of each id's row in what `receive` is given, or None for the
            order given.
        """

    def receive(self, fetch: Any, out: Mapping[int, memoryview]) -> None:
        """Say where the rows go, before the first `arrive`.

        Args:
            out: for each band contiguous bytes for len(ids) rows. They are written until the fetch has arrived or is
                dropped.
        """

    def arrive(self, fetch: Any, band: int) -> None:
        """Return when the rows of `band` are there; see `RowSource.arrive`."""

    def drop(self, fetch: Any) -> None:
        """The memory given is not written from now on, whether all has arrived or not."""

    def close(self) -> None:
        """Give back connections."""


class Tally(NamedTuple):
    """Where the rows of a fetch are from: rows by tier, and bytes received or read for them."""

    hits_by_tier: dict[str, int]
    num_bytes: int


@runtime_checkable
class TieredFetcher(RowFetcher, Protocol):
    """A fetcher that looks in more than one place; `tier` is the farthest."""

    def tally(self, fetch: Any, token_ids: Ids) -> Tally:
        """How many of `token_ids` (ids of the fetch, one as often as it was asked for) are from where."""
