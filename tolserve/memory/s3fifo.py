"""S3-FIFO, a policy that text read once does not flush: three first-in-first-out queues, for whole steps at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.policy import Mask, most_frequent
from tolserve.memory.spec import Ids, Index

_SMALL_SHARE = 0.1
_MOST_USES = 3
_USES_TO_STAY = 2
"""Uses in the small queue that bring a row into the main one."""
_ONE_MORE = np.minimum(np.arange(_MOST_USES + 1) + 1, _MOST_USES).astype(np.uint8)
_WINDOW = 64
"""Least rows of a queue that are looked at together."""


class S3FIFO:
    """Rows pass a small queue first; those used there again, or asked for again soon after, enter the main one.

    Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, with the paper's numbers: a tenth of the
    slots are the small queue, two uses there lead to the main queue, where a row goes round once for each of at most
    three uses, and as many ids that left the small queue are remembered as the main one has slots. As in the authors'
    libCacheSim, a small queue that is full before the cache is lets new rows into the main one.

    A step counts as one use of a row. Its new rows are admitted together, with the outcome of one after another; where
    they are more than the small queue has, those that others of the step would have pushed out again get no slot and
    are remembered.

    Args:
        vocab_size: V; ids are below it.
        counts: int64 [V], gives a warm start.
    """

    def __init__(self, num_slots: int, vocab_size: int, counts: NDArray[np.int64] | None = None) -> None:
        self._counts = counts
        self._num_small = max(1, int(_SMALL_SHARE * num_slots))
        self._num_remembered = num_slots - self._num_small
        self._uses = np.zeros(num_slots, np.uint8)
        self._in_main = np.zeros(num_slots, np.bool_)
        self._id_of = np.full(num_slots, -1, np.int64)
        self._small, self._main = _Queue(num_slots), _Queue(num_slots)
        self._num_left = 0
        self._never = -1 - num_slots
        self._left_at = np.full(vocab_size, self._never, np.int64)

    def warm_ids(self, num_slots: int) -> Ids:
        """The most frequent ids where counts were given."""
        return np.empty(0, np.int64) if self._counts is None else most_frequent(self._counts, num_slots)

    def used(self, slots: Index) -> None:
        """One more use of each."""
        self._uses[slots] = _ONE_MORE[self._uses[slots]]

    def worth(self, slots: Ids, ids: Ids) -> NDArray[np.int64]:
        """The main queue before the small one, then by uses."""
        return self._uses[slots] + (_MOST_USES + 1) * self._in_main[slots].astype(np.int64)

    def admit(self, ids: Ids, fresh: Ids, free: Mask) -> tuple[Ids, Ids]:
        """Slots at the small queue's end that were not used again, and as many of the main queue's as it gains."""
        count = len(fresh)
        if count:
            to_main = np.arange(count) >= self._num_small - self._small.count
            self._fill(fresh, ids[:count], to_main)
        rest = ids[count:]
        if len(rest) == 0:
            return np.arange(count), fresh
        known = self._known(rest)
        slots = self._victims(len(rest), int(np.count_nonzero(known)), free)
        places = _taken(known, len(slots))
        if len(slots) < len(rest):
            refused = np.ones(len(rest), np.bool_)
            refused[places] = False
            self._leave(rest[refused])
        self._fill(slots, rest[places], known[places])
        if count:
            return np.concatenate([np.arange(count), places + count]), np.concatenate([fresh, slots])
        return places, slots

    def _known(self, ids: Ids) -> Mask:
        """Ids that are still remembered when their turn comes: each unknown one before them takes a memory away."""
        ages = self._num_left - self._left_at[ids]
        known: Mask = ages <= self._num_remembered
        if np.count_nonzero(ages <= self._num_remembered - len(ids)) < np.count_nonzero(known):
            for _ in range(2):
                known = ages + _sums(~known)[:-1] <= self._num_remembered
        return known

    def _fill(self, slots: Ids, ids: Ids, to_main: Mask) -> None:
        self._left_at[ids] = self._never
        self._id_of[slots] = ids
        self._uses[slots] = 0
        self._in_main[slots] = to_main
        main = slots[to_main]
        self._main.append(main)
        self._small.append(slots[~to_main] if len(main) else slots)

    def _victims(self, count: int, num_known: int, free: Mask) -> Ids:
        """What evicting and inserting `count` rows one by one gives up, `num_known` of them for the main queue.

        The main queue loses a row when the small one has become too small: by rows that it passed on, and by new ones
        that did not come its way.
        """
        lacking = num_known + self._num_small - self._small.count
        for length in (max(_WINDOW, 4 * count), self._small.count):
            scanned = self._small.first(length)
            stay = self._uses[scanned] >= _USES_TO_STAY
            gone = ~stay & free[scanned]
            owed = np.maximum(0, _sums(stay) + lacking)
            given = _sums(gone) + owed
            if given[-1] >= count or len(scanned) == self._small.count:
                break
        end = min(int(np.searchsorted(given, count)), len(scanned))
        scanned, stay, gone = scanned[:end], stay[:end], gone[:end]
        self._small.drop(end)
        moved, out = scanned[stay], scanned[gone]
        if len(moved):
            self._uses[moved] = 0
            self._in_main[moved] = True
            self._main.append(moved)
        if len(moved) + len(out) < end:
            self._small.append(scanned[~(stay | gone)])
        self._leave(self._id_of[out])
        more = min(count - len(out), int(owed[end]))
        return np.concatenate([out, *self._from_main(more, free)]) if more else out

    def _from_main(self, count: int, free: Mask) -> list[Ids]:
        """`count` slots not used since they last passed the main queue's end; fewer where there are no more."""
        out = []
        unseen = (_MOST_USES + 1) * self._main.count
        while count > 0 and unseen > 0:
            scanned = self._main.first(max(_WINDOW, 4 * count))
            uses = self._uses[scanned]
            gone = (uses == 0) & free[scanned]
            places = gone.nonzero()[0]
            if len(places) > count:
                end = int(places[count])
                scanned, uses, gone = scanned[:end], uses[:end], gone[:end]
            self._main.drop(len(scanned))
            self._uses[scanned] = uses - (uses > 0)
            self._main.append(scanned[~gone])
            out.append(scanned[gone])
            count -= len(out[-1])
            unseen -= len(scanned)
        return out

    def _leave(self, ids: Ids) -> None:
        """Remember these ids, the last one longest."""
        self._left_at[ids] = self._num_left + np.arange(len(ids))
        self._num_left += len(ids)


class _Queue:
    """Slots, first in first out; each at most once."""

    def __init__(self, num_slots: int) -> None:
        self._slots = np.empty(2 * num_slots, np.int64)
        self._begin = self._end = 0

    @property
    def count(self) -> int:
        """Slots in it."""
        return self._end - self._begin

    def first(self, count: int) -> Ids:
        """At most `count`, the oldest first."""
        return self._slots[self._begin : min(self._begin + count, self._end)].copy()

    def drop(self, count: int) -> None:
        """Take the oldest out."""
        self._begin += count

    def append(self, slots: Ids) -> None:
        """Add the youngest."""
        if self._end + len(slots) > len(self._slots):
            live = self._slots[self._begin : self._end].copy()
            self._slots[: len(live)] = live
            self._begin, self._end = 0, len(live)
        self._slots[self._end : self._end + len(slots)] = slots
        self._end += len(slots)


def _sums(mask: Mask) -> NDArray[np.int64]:
    """How many of the first 0, 1, ... are true."""
    sums = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=sums[1:])
    return sums


def _taken(known: Mask, num_slots: int) -> Ids:
    """Places of the rows that get `num_slots` slots: those remembered, then the last of the others; ascending."""
    count = len(known)
    if num_slots == count:
        return np.arange(count)
    first, others = known.nonzero()[0][:num_slots], (~known).nonzero()[0]
    places = np.concatenate([first, others[len(others) - (num_slots - len(first)) :]])
    return np.sort(places)
