"""How many distinct rows a step has to fetch: as counted, or from a Zipf law."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MAX_CASES = 48


@dataclass(frozen=True, kw_only=True)
class Misses:
    """Distribution of a step's distinct rows that are not on the device.

    probability_N: float64 [N], by number of rows, from 0 on; sums to 1.

    Raises:
        ValueError: probabilities that are none.
    """

    probability_N: NDArray[np.float64]

    def __post_init__(self) -> None:
        total = float(self.probability_N.sum())
        if self.probability_N.ndim != 1 or (self.probability_N < 0).any() or abs(total - 1) > 1e-6:
            raise ValueError(f"probabilities of shape {self.probability_N.shape} add up to {total:.6f}, not to 1")

    @classmethod
    def counted(cls, counts: Sequence[int]) -> Misses:
        """Of steps that have fetched so many rows."""
        frequency = np.bincount(counts)
        return cls(probability_N=frequency / frequency.sum())

    @property
    def mean(self) -> float:
        """Rows a step."""
        return float(self.probability_N @ np.arange(len(self.probability_N)))

    def likely(self) -> Iterator[tuple[int, float]]:
        """Numbers of rows with their probabilities, at most 48: neighbours of wide distributions stand for each other.

        The probabilities add up to 1, and no rows at all are never mixed with some.
        """
        yield 0, float(self.probability_N[0])
        counts = np.flatnonzero(self.probability_N[1:] > 0) + 1
        for group in np.array_split(counts, min(_MAX_CASES, len(counts))) if len(counts) else ():
            weight = self.probability_N[group]
            yield round(float(weight @ group / weight.sum())), float(weight.sum())


@lru_cache(maxsize=512)
def zipf_misses(vocab_size: int, *, alpha: float, batch: int, num_on_device: int) -> Misses:
    """Of independent draws with P(rank k) proportional to (k + 1) ** -alpha, the most frequent tokens on the device.

    The mean is exact, sum over the others of 1 - (1 - p) ** batch; the spread is taken as Poisson's.
    """
    rare = zipf_law(vocab_size, alpha)[num_on_device:]
    return poisson(float(-np.expm1(batch * np.log1p(-rare)).sum()), most=batch)


@lru_cache(maxsize=8)
def zipf_law(vocab_size: int, alpha: float) -> NDArray[np.float64]:
    """Probabilities [V] of tokens by rank."""
    weights: NDArray[np.float64] = np.arange(1, vocab_size + 1, dtype=np.float64) ** -alpha
    weights /= weights.sum()
    weights.flags.writeable = False
    return weights


def binomial(mean: float, *, most: int) -> Misses:
    """Each of `most` rows missing by itself, `mean` of them on average; all of them where that is `most`."""
    share = min(1.0, max(0.0, mean / most))
    weights = [math.comb(most, count) * share**count * (1 - share) ** (most - count) for count in range(most + 1)]
    return Misses(probability_N=np.array(weights) / math.fsum(weights))


def poisson(mean: float, *, most: int) -> Misses:
    """A Poisson distribution cut off at `most`, whose weight takes what is beyond."""
    counts = np.arange(most + 1)
    if mean <= 0:
        return Misses(probability_N=(counts == 0).astype(np.float64))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))]) if most else np.zeros(1)
    probability_N = np.exp(counts * np.log(mean) - mean - log_factorial)
    probability_N[-1] += max(0.0, 1.0 - probability_N.sum())
    return Misses(probability_N=probability_N / probability_N.sum())
