"""What every cache policy promises, and each of them against a reference that does one thing at a time."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_kit import draw_ids, partition_store, random_rows, row_spec

from tolserve.memory.cached import CachedSource, slots_for
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency

NUM_SLOTS = 40
SPEC = row_spec(vocab_size=200)
ROWS = random_rows(SPEC)
COUNTS = np.random.default_rng(0).integers(0, 50, SPEC.vocab_size)

POLICIES: dict[str, Callable[[], CachePolicy]] = {
    "static": lambda: StaticByFrequency(COUNTS),
    "lru": lambda: LRU(NUM_SLOTS),
    "lru with counts": lambda: LRU(NUM_SLOTS, COUNTS),
}

slot_sets = st.sets(st.integers(0, NUM_SLOTS - 1), max_size=NUM_SLOTS)
moves = st.one_of(
    st.tuples(st.just("used"), slot_sets, st.just(0)),
    st.tuples(st.just("filled"), slot_sets, st.just(0)),
    st.tuples(st.just("victims"), slot_sets, st.integers(0, NUM_SLOTS + 5)),
)
"""What a cache tells a policy; the slots of "victims" are those in use."""


every_policy = pytest.mark.parametrize("make_policy", POLICIES.values(), ids=POLICIES)


def source_with(policy: CachePolicy, num_slots: int = NUM_SLOTS) -> CachedSource:
    store = partition_store(SPEC, ROWS)
    return CachedSource(StoreFetcher(store), num_slots=num_slots, policy=policy)


def read(source: CachedSource, ids: list[int]) -> int:
    """Read rows to the end; how many were in the cache."""
    handle = source.start(np.array(ids))
    for band in range(3):
        assert np.array_equal(source.wait(handle, band), ROWS[band][ids])
    source.release(handle)
    return handle.bill.hits_by_tier.get("cache", 0)


@every_policy
@given(trace=st.lists(moves, max_size=40))
def test_victims_are_free_and_distinct_and_no_more_than_asked_for(
    make_policy: Callable[[], CachePolicy], trace: list[tuple[str, set[int], int]]
) -> None:
    policy = make_policy()
    for move, slots, count in trace:
        if move == "victims":
            free = ~np.isin(np.arange(NUM_SLOTS), list(slots))
            victims = policy.victims(count, free)
            assert free[victims].all()
            assert len(set(victims.tolist())) == len(victims) <= count
        else:
            getattr(policy, move)(np.array(sorted(slots), np.int64))


@every_policy
@given(num_slots=st.integers(0, SPEC.vocab_size))
def test_a_warm_start_wants_the_most_frequent_ids(make_policy: Callable[[], CachePolicy], num_slots: int) -> None:
    ids = make_policy().warm_ids(num_slots).tolist()
    ranked = sorted(range(SPEC.vocab_size), key=lambda token: (-COUNTS[token], token))
    assert ids in (ranked[:num_slots], [])
    assert ids or not num_slots or isinstance(make_policy(), LRU)


@every_policy
def test_a_cache_as_large_as_the_table_fetches_every_row_once(make_policy: Callable[[], CachePolicy]) -> None:
    policy = LRU(SPEC.vocab_size) if isinstance(make_policy(), LRU) else make_policy()
    source = source_with(policy, slots_for(SPEC, 2 * SPEC.table_bytes))
    assert source.num_slots == SPEC.vocab_size
    draw = np.random.default_rng(1)
    seen: set[int] = set()
    for _ in range(50):
        ids = draw_ids(draw, SPEC.vocab_size, 30).tolist()
        assert read(source, ids) == sum(token in seen for token in ids)
        seen |= set(ids)
    assert source.num_cached == len(seen)


@given(st.lists(moves, max_size=60), st.sampled_from([1, 64]))
def test_lru_gives_up_what_was_used_longest_ago(trace: list[tuple[str, set[int], int]], batch: int) -> None:
    policy = LRU(NUM_SLOTS)
    policy._BATCH = batch  # type: ignore[misc]
    used_at = np.zeros(NUM_SLOTS, np.int64)
    for time, (move, slots, count) in enumerate(trace, start=1):
        chosen = np.array(sorted(slots), np.int64)
        if move == "victims":
            free = np.setdiff1d(np.arange(NUM_SLOTS), chosen)
            victims = policy.victims(count, np.isin(np.arange(NUM_SLOTS), free))
            assert used_at[victims].tolist() == np.sort(used_at[free])[:count].tolist()
        else:
            getattr(policy, move)(chosen)
            used_at[chosen] = time


@pytest.mark.parametrize("num_slots", [1, 2, 40])
def test_an_lru_cache_hits_as_an_ordered_dict_does(num_slots: int) -> None:
    source = source_with(LRU(num_slots), num_slots)
    cached: OrderedDict[int, None] = OrderedDict()
    draw = np.random.default_rng(2)
    hits = 0
    for token in draw_ids(draw, SPEC.vocab_size, 2000).tolist():
        hit = token in cached
        assert read(source, [token]) == hit, (token, list(cached))
        cached.pop(token, None)
        cached[token] = None
        if len(cached) > num_slots:
            cached.popitem(last=False)
        hits += hit
    assert source.num_cached == num_slots
    assert 0 < hits < 2000


def test_a_static_cache_keeps_the_most_frequent_and_nothing_else() -> None:
    source = source_with(StaticByFrequency(COUNTS))
    assert source.warm() == NUM_SLOTS
    kept = set(np.argsort(-COUNTS, kind="stable")[:NUM_SLOTS].tolist())
    draw = np.random.default_rng(3)
    for _ in range(100):
        ids = Counter(draw_ids(draw, SPEC.vocab_size, 20).tolist())
        assert read(source, list(ids.elements())) == sum(count for token, count in ids.items() if token in kept)


def test_a_warmed_lru_cache_gives_up_the_least_frequent_first() -> None:
    ranked = np.argsort(-COUNTS, kind="stable").tolist()
    store = partition_store(SPEC, ROWS)
    source = CachedSource(StoreFetcher(store), num_slots=10, policy=LRU(10, COUNTS), num_staging=2)
    assert source.warm() == 10
    assert read(source, [ranked[50]]) == 0
    assert [read(source, [token]) for token in ranked[:9]] == [1] * 9
    assert read(source, [ranked[9]]) == 0


def test_rows_that_fit_beside_the_ones_in_use_are_cached_and_no_others() -> None:
    source = source_with(LRU(4), 4)
    read(source, [0, 1, 2, 3])
    reading = source.start(np.array([0, 1, 2]))
    assert read(source, [10, 11]) == 0
    assert reading.bill.hits_by_tier == {"cache": 3}
    assert all(np.array_equal(source.wait(reading, band), ROWS[band][:3]) for band in range(3))
    source.release(reading)
    assert read(source, [0, 1, 2, 10]) == 4


def test_a_cache_needs_a_policy_and_sensible_sizes() -> None:
    fetcher = StoreFetcher(partition_store(SPEC, ROWS))
    with pytest.raises(ValueError, match="a cache of 3 rows needs a policy"):
        CachedSource(fetcher, num_slots=3)
    for sizes in ({"num_slots": -1}, {"num_staging": 0}):
        with pytest.raises(ValueError, match="must"):
            CachedSource(fetcher, policy=LRU(1), **sizes)
