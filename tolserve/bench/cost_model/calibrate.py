"""Micro-benchmarks of this machine for the cost model: how long the row path takes when nothing else goes on.

A fetch is timed alone: a batch of tokens of which a given number is not cached, from known tokens to each band's rows
seen, through the engine's own RowFeed, cache, client, network and memory node, with a pause between fetches as a device
would make one. No device, no pace and no stream of text takes part, so that nothing of what the model is checked on
goes into it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolserve.bench.cost_model.arrivals import Measured
from tolserve.bench.disturbed import Turns
from tolserve.bench.paced import PacedEngine
from tolserve.engine.rows import RowFeed
from tolserve.memory.cached import CachedSource

_PAUSE_S = 300e-6
_WARM_ROUNDS = 5
_LEAST_ROUNDS = 3
_PLAN_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Fetches:
    """Timed fetches of one number of rows: seconds by round, [Q, bands] until seen and [Q] until the host was done."""

    arrival_QB: NDArray[np.float64]
    host_Q: NDArray[np.float64]


def calibrate(
    source: CachedSource,
    *,
    batch: int,
    bands: tuple[int, ...],
    num_bands: int,
    rounds: int,
    limit_s: float = 10.0,
    seed: int = 0,
) -> Measured:
    """What a step's rows take, by the number of those that have to be fetched, for batches of one size.

    Args:
        source: warm, with the most frequent tokens (those of the lowest ids) in its slots for good.
        bands: those that are fetched, of `num_bands`; the others' arrival is 0.
        rounds: fetches of each number of rows; fewer, but three, where they take more than `limit_s` together.
    """
    counts = [0, *(count for count in (1, 2, 4, 8, 16, 32, 64, 128, 256) if count < batch), batch]
    draw = np.random.default_rng(seed)
    feed = RowFeed(source, bands)
    plan_s = _plan_s(batch)
    found = []
    for count in counts:
        batches = [_tokens(draw, source, batch, count) for _ in range(rounds + _WARM_ROUNDS)]
        timed: Turns[tuple[NDArray[np.float64], float]] = Turns()
        began = time.monotonic()
        for number, tokens in enumerate(batches):
            if number >= _LEAST_ROUNDS and time.monotonic() - began > limit_s:
                break
            timed.add(_fetch(feed, tokens, bands, num_bands))
        timed.forget(_WARM_ROUNDS if len(timed.all) > 2 * _WARM_ROUNDS else 0)
        found.append(_sorted(timed.undisturbed, plan_s, rounds))
    feed.close()
    return Measured(
        num_rows=tuple(counts),
        arrivals_NQB=np.stack([fetches.arrival_QB for fetches in found]),
        host_NQ=np.stack([fetches.host_Q for fetches in found]),
    )


def _tokens(draw: np.random.Generator, source: CachedSource, batch: int, num_rows: int) -> NDArray[np.int64]:
    cached, vocab_size = source.num_slots, source.spec.vocab_size
    rare = draw.choice(np.arange(cached, vocab_size), num_rows, replace=False)
    common = draw.integers(0, cached, batch - num_rows) if cached else np.full(batch - num_rows, rare[:1])
    tokens: NDArray[np.int64] = draw.permutation(np.concatenate([rare, common])).astype(np.int64)
    return tokens


def _fetch(
    feed: RowFeed, tokens: NDArray[np.int64], bands: tuple[int, ...], num_bands: int
) -> tuple[NDArray[np.float64], float]:
    as_list = tokens.tolist()
    seen_s = np.zeros(num_bands)
    resume = time.perf_counter() + _PAUSE_S
    while time.perf_counter() < resume:
        pass
    began = time.perf_counter()
    feed.fetch_ahead("decode", as_list)
    rows = feed.begin(np.array(as_list, np.int64))
    for band in bands:
        feed.wait(rows, band)
        seen_s[band] = time.perf_counter() - began
    feed.charge(rows, len(as_list))
    feed.release(rows)
    return seen_s, time.perf_counter() - began


def _sorted(timed: list[tuple[NDArray[np.float64], float]], plan_s: float, num_cases: int) -> Fetches:
    """The fetches as `num_cases` equally likely cases, in order of the last band."""
    arrivals = np.stack([seen for seen, _ in timed])
    order = np.argsort(arrivals[:, -1])
    order = order[np.arange(num_cases) * len(order) // num_cases]
    host_Q = np.array([host for _, host in timed])[order] + plan_s
    return Fetches(arrival_QB=arrivals[order], host_Q=host_Q)


def _plan_s(batch: int) -> float:
    """The scheduler's work for a step, by a device that takes no time and has all rows; the median."""
    engine = PacedEngine(np.zeros((_PLAN_STEPS, batch), np.int64), pace_s=0.0, num_layers=(1,))
    steps = [engine.step().step_s for _ in range(_PLAN_STEPS)]
    engine.close()
    return float(np.median(steps))
