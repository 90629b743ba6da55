"""What a client does between knowing tokens and asking for their rows."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tolserve.native import compiled

Ids = NDArray[np.int64]
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


class CompiledLookups:
    """By one pass in the compiled helper."""

    def __init__(self, helper: Any) -> None:
        self._distinct = helper.distinct
        self._look_up = helper.look_up

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


def lookups() -> Lookups:
    """The quicker of the two that there is here."""
    helper = compiled.load()
    return NumpyLookups() if helper is None else CompiledLookups(helper)
