"""What a client does between knowing tokens and asking for their rows."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tolserve.native import compiled

Ids = NDArray[np.int64]
Index = NDArray[np.integer[Any]]
RowMap = NDArray[np.int32]
"""For each token id its row, negative where there is none."""


class Lookups(Protocol):
    """Both implementations give the same arrays."""

    def distinct(self, ids: Ids) -> Ids:
        """The ids without repetitions, ascending."""

    def look_up(self, row_of: RowMap, ids: Ids) -> tuple[RowMap, Ids, int]:
        """Rows of ids.

        Returns:
            int32 [ids]; the distinct ids that have none, ascending; and how many of `ids` those are.

        Raises:
            IndexError, TypeError: an id outside the map, ids that are not int64.
        """

    def settle(self, row_of: RowMap, ids: Ids, rows: RowMap, readers: RowMap, first: int) -> RowMap:
        """Once missing ids have a row in `row_of`: put it into `rows`, and count the cache slots among them as read.

        Args:
            readers: how often each slot is being read; slot s is row `first + s`.

        Returns:
            The slots, one for each id that has one.
        """

    def let_go(self, readers: RowMap, slots: RowMap) -> None:
        """Slots that `settle` gave are read no longer."""

    def match(self, ids: Ids, index: Index, tokens: Ids) -> tuple[Index, int] | None:
        """For each token the `index` of its place among distinct ascending `ids`, and how many tokens differ.

        None where one is not among the ids.
        """


class NumpyLookups:
    """By a few array operations."""

    def distinct(self, ids: Ids) -> Ids:
        """See `Lookups.distinct`."""
        if len(ids) < 2:
            return ids
        ordered = np.sort(ids)
        first = np.empty(len(ids), np.bool_)
        first[0] = True
        np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
        return ordered[first]

    def look_up(self, row_of: RowMap, ids: Ids) -> tuple[RowMap, Ids, int]:
        """See `Lookups.look_up`."""
        if ids.dtype != np.int64:
            raise TypeError(f"an array of {ids.dtype}; int64 is expected")
        if len(ids) and np.maximum.reduce(ids.view(np.uint64)) >= len(row_of):
            raise IndexError("an id is outside the vocabulary")
        rows = row_of[ids]
        missing = ids[rows < 0]
        return rows, self.distinct(missing), len(missing)

    def settle(self, row_of: RowMap, ids: Ids, rows: RowMap, readers: RowMap, first: int) -> RowMap:
        """See `Lookups.settle`."""
        missing = (rows < 0).nonzero()[0]
        rows[missing] = row_of[ids[missing]]
        slots = rows[rows >= first] - np.int32(first)
        np.add.at(readers, slots, 1)
        return slots

    def let_go(self, readers: RowMap, slots: RowMap) -> None:
        """See `Lookups.let_go`."""
        np.subtract.at(readers, slots, 1)

    def match(self, ids: Ids, index: Index, tokens: Ids) -> tuple[Index, int] | None:
        """See `Lookups.match`."""
        found = np.searchsorted(ids, tokens)
        if len(found) and (found.max() == len(ids) or not np.array_equal(ids[found], tokens)):
            return None
        is_used = np.zeros(len(ids), np.bool_)
        is_used[found] = True
        return index[found], int(np.count_nonzero(is_used))


class CompiledLookups:
    """By one pass in the compiled helper."""

    def __init__(self, helper: Any) -> None:
        self._distinct = helper.distinct
        self._look_up = helper.look_up
        self._settle = helper.settle
        self._match = helper.match
        self.let_go = helper.let_go

    def distinct(self, ids: Ids) -> Ids:
        """See `Lookups.distinct`."""
        if len(ids) < 2:
            return ids
        ordered = ids.copy()
        return ordered[: self._distinct(ordered)]

    def look_up(self, row_of: RowMap, ids: Ids) -> tuple[RowMap, Ids, int]:
        """See `Lookups.look_up`."""
        count = len(ids)
        rows, missing = np.empty(count, np.int32), np.empty(count, np.int64)
        num_missing, num_distinct = self._look_up(row_of, np.ascontiguousarray(ids), rows, missing)
        return rows, missing[:num_distinct], num_missing

    def settle(self, row_of: RowMap, ids: Ids, rows: RowMap, readers: RowMap, first: int) -> RowMap:
        """See `Lookups.settle`."""
        slots = np.empty(len(ids), np.int32)
        return slots[: self._settle(row_of, np.ascontiguousarray(ids), rows, readers, slots, first)]

    def match(self, ids: Ids, index: Index, tokens: Ids) -> tuple[Index, int] | None:
        """See `Lookups.match`."""
        if index.dtype != np.int32:
            return NumpyLookups().match(ids, index, tokens)
        rows = np.empty(len(tokens), np.int32)
        num_unique = self._match(ids, np.ascontiguousarray(index), np.ascontiguousarray(tokens), rows)
        return None if num_unique < 0 else (rows, num_unique)


def lookups() -> Lookups:
    """The quicker of the two that there is here."""
    helper = compiled.load()
    return NumpyLookups() if helper is None else CompiledLookups(helper)
