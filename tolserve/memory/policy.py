"""Which rows a cache keeps. A policy names slots to give up; the cache asks only for slots that no step is using."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.spec import Ids, Index

Mask = NDArray[np.bool_]


class CachePolicy(Protocol):
    """Made for a fixed number of slots; the cache tells it what happens. Arguments are arrays, no call is per token."""

    def warm_ids(self, num_slots: int) -> Ids:
        """Ids to load before serving, most wanted first, at most `num_slots`; none for a cold start."""

    def used(self, slots: Index) -> None:
        """A step reads these slots."""

    def admit(self, ids: Ids, fresh: Ids, free: Mask) -> tuple[Ids, Ids]:
        """The rows of `ids`, distinct and none of them cached, have come: which go in, and where.

        Args:
            fresh: slots that never had a row, for the first of `ids`; all that there are or as many as there are ids.
            free: bool [slots], the others that may be given up.

        Returns:
            Places in `ids` and as many distinct slots, the fresh ones first; a row that gets none is not cached.
        """

    def worth(self, slots: Ids, ids: Ids) -> NDArray[np.int64]:
        """How much the rows in `slots` (those of `ids`) are worth keeping; more is better. Any thread may ask."""


def most_frequent(counts: NDArray[np.int64], num_ids: int) -> Ids:
    """The `num_ids` ids with the largest counts, largest first; equal ones by id."""
    order: Ids = np.argsort(-counts, kind="stable")[:num_ids]
    return order


class StaticByFrequency:
    """The most frequent tokens, loaded once: for independent requests no online policy does better (NUMBERS.md).

    `counts` is int64 [V], how often each token was seen in text like that to be served.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self._counts = counts

    def warm_ids(self, num_slots: int) -> Ids:
        """The most frequent ids."""
        return most_frequent(self._counts, num_slots)

    def used(self, slots: Index) -> None:
        """Use changes nothing."""

    def admit(self, ids: Ids, fresh: Ids, free: Mask) -> tuple[Ids, Ids]:
        """While there are fresh slots; what is in stays in."""
        return np.arange(len(fresh)), fresh

    def worth(self, slots: Ids, ids: Ids) -> NDArray[np.int64]:
        """Their counts."""
        return self._counts[ids]


class LRU:
    """The rows used last.

    Victims are chosen in batches: a batch stays right until its slots are used again, since every slot outside it is
    younger.

    `counts` (int64 [V], optional) gives a warm start.
    """

    _BATCH = 64

    def __init__(self, num_slots: int, counts: NDArray[np.int64] | None = None) -> None:
        self._counts = counts
        self._clock = 0
        self._stamps = np.zeros(num_slots, np.int64)
        self._queue: Ids = np.empty(0, np.int64)
        self._queue_stamps: Ids = np.empty(0, np.int64)

    def warm_ids(self, num_slots: int) -> Ids:
        """The most frequent ids where counts were given."""
        return np.empty(0, np.int64) if self._counts is None else most_frequent(self._counts, num_slots)

    def used(self, slots: Index) -> None:
        """They become the youngest."""
        self._clock += 1
        self._stamps[slots] = self._clock

    def admit(self, ids: Ids, fresh: Ids, free: Mask) -> tuple[Ids, Ids]:
        """In place of the oldest; new rows are as young as used ones."""
        slots = fresh
        if len(fresh) < len(ids):
            slots = np.concatenate([fresh, self.victims(len(ids) - len(fresh), free)])
        self.used(slots)
        return np.arange(len(slots)), slots

    def worth(self, slots: Ids, ids: Ids) -> NDArray[np.int64]:
        """When they were used last."""
        return self._stamps[slots]

    def victims(self, count: int, free: Mask) -> Ids:
        """The `count` free slots whose last use is longest ago."""
        queue = self._valid(free)
        if len(queue) < count:
            self._refill(max(count, min(self._BATCH * count, len(self._stamps) // 16)), free)
            queue = self._valid(free)
        return queue[:count]

    def _valid(self, free: Mask) -> Ids:
        keep = self._stamps[self._queue] == self._queue_stamps
        self._queue, self._queue_stamps = self._queue[keep], self._queue_stamps[keep]
        return self._queue[free[self._queue]]

    def _refill(self, wanted: int, free: Mask) -> None:
        """Queue the oldest slots, `wanted` free ones among them, and those in use for when they are free again."""
        wanted += len(free) - int(np.count_nonzero(free))
        stamps = self._stamps
        slots = np.argpartition(stamps, wanted)[:wanted] if wanted < len(stamps) else np.arange(len(stamps))
        self._queue = slots[np.argsort(stamps[slots], kind="stable")]
        self._queue_stamps = stamps[self._queue]
