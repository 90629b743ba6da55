"""The fewest rows that any cache has to fetch: Belady's optimum, with leave to cache nothing of what was fetched."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tolserve.study.traces import Trace


def optimal_hits(trace: Trace, slots: Sequence[int], *, warm: bool = False) -> NDArray[np.int64]:
    """Rows of `trace` that a cache of each size in `slots` can have at best, int64 [sizes].

    After each step the rows that are used again soonest are kept (Belady, "A study of replacement algorithms for a
    virtual-storage computer", IBM Systems Journal, 1966). Which rows they are does not matter, only how many of those
    kept each later step uses: one row of counts a size, cut off where their sum reaches the size.

    Args:
        warm: whether the cache may be filled at will before the first step.
    """
    num_steps = len(trace.steps)
    sizes_C = np.array(slots, np.int64)[:, None]
    kept_CS = np.zeros((len(slots), num_steps + 1), np.int64)
    next_uses = _next_uses(trace)
    hits_C = np.zeros(len(slots), np.int64)
    if warm:
        firsts = np.bincount([step for step in next_uses[0] if step < num_steps], minlength=num_steps)
        kept_CS[:, :num_steps] = _first(firsts[None], sizes_C)
    end = num_steps
    for step, used in enumerate(next_uses[1:]):
        hits_C += kept_CS[:, step]
        again = used[used < num_steps]
        later_CS = kept_CS[:, step + 1 : end]
        later_CS += np.bincount(again - (step + 1), minlength=end - step - 1)
        later_CS[:] = _first(later_CS, sizes_C)
    return hits_C


def _first(counts_CS: NDArray[np.int64], sizes_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts up to where their sum is the size, nothing beyond."""
    sums_CS = np.minimum(np.cumsum(counts_CS, axis=1), sizes_C)
    first: NDArray[np.int64] = np.diff(sums_CS, axis=1, prepend=0)
    return first


def _next_uses(trace: Trace) -> list[NDArray[np.int64]]:
    """For each step, and before them for the start, the steps that use each id next; the number of steps for none.

    The first item has one entry an id of the vocabulary.
    """
    num_steps = len(trace.steps)
    next_V = np.full(trace.vocab_size, num_steps, np.int64)
    found = []
    for step in reversed(range(num_steps)):
        ids = trace.steps[step]
        found.append(next_V[ids])
        next_V[ids] = step
    return [next_V, *reversed(found)]
