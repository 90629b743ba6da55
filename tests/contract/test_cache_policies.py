"""What every cache policy promises, and each of them against a reference that does one thing at a time."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_kit import draw_ids, partition_store, random_rows, row_spec
from s3fifo_reference import PlainS3FIFO

from tolserve.memory.cached import CachedSource, slots_for
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO

NUM_SLOTS = 40
SPEC = row_spec(vocab_size=200)
ROWS = random_rows(SPEC)
COUNTS = np.random.default_rng(0).integers(0, 50, SPEC.vocab_size)

Maker = Callable[[int], CachePolicy]
"""Makes a policy for a number of slots."""

POLICIES: dict[str, Maker] = {
    "static": lambda num_slots: StaticByFrequency(COUNTS),
    "lru": lambda num_slots: LRU(num_slots),
    "lru with counts": lambda num_slots: LRU(num_slots, COUNTS),
    "s3fifo": lambda num_slots: S3FIFO(num_slots, SPEC.vocab_size),
    "s3fifo with counts": lambda num_slots: S3FIFO(num_slots, SPEC.vocab_size, COUNTS),
}

slot_sets = st.sets(st.integers(0, NUM_SLOTS - 1), max_size=NUM_SLOTS)
id_sets = st.sets(st.integers(0, SPEC.vocab_size - 1), max_size=NUM_SLOTS + 5)
moves = st.one_of(
    st.tuples(st.just("used"), slot_sets, st.just(0)),
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
@settings(max_examples=60, deadline=None)
@given(num_slots=st.integers(1, NUM_SLOTS), trace=st.lists(st.tuples(id_sets, slot_sets), max_size=40))
def test_new_rows_get_fresh_or_free_slots_and_each_its_own(
    make_policy: Maker, num_slots: int, trace: list[tuple[set[int], set[int]]]
) -> None:
    policy = make_policy(num_slots)
    token_of = np.full(num_slots, -1)
    for wanted, used in trace:
        num_filled = int(np.count_nonzero(token_of >= 0))
        policy.used(np.array(sorted(slot for slot in used if slot < num_filled), np.int64))
        ids = np.array(sorted(wanted - set(token_of.tolist())), np.int64)
        fresh = np.arange(num_filled, min(num_slots, num_filled + len(ids)))
        free = ~np.isin(np.arange(num_slots), list(used)) & (np.arange(num_slots) < num_filled)
        places, slots = policy.admit(ids, fresh, free)
        assert slots[: len(fresh)].tolist() == fresh.tolist()
        assert free[slots[len(fresh) :]].all()
        assert len(set(slots.tolist())) == len(slots) == len(places) == len(set(places.tolist()))
        token_of[slots] = ids[places]
        held = np.flatnonzero(token_of >= 0)
        assert policy.worth(held, token_of[held]).shape == held.shape


@every_policy
@settings(deadline=None)
@given(num_slots=st.integers(0, SPEC.vocab_size))
def test_a_warm_start_wants_the_most_frequent_ids(make_policy: Maker, num_slots: int) -> None:
    ids = make_policy(NUM_SLOTS).warm_ids(num_slots).tolist()
    ranked = sorted(range(SPEC.vocab_size), key=lambda token: (-COUNTS[token], token))
    assert ids in (ranked[:num_slots], [])
    assert ids or not num_slots or not isinstance(make_policy(NUM_SLOTS), StaticByFrequency)


@every_policy
def test_a_cache_as_large_as_the_table_fetches_every_row_once(make_policy: Maker) -> None:
    source = source_with(make_policy(SPEC.vocab_size), slots_for(SPEC, 2 * SPEC.table_bytes))
    assert source.num_slots == SPEC.vocab_size
    draw = np.random.default_rng(1)
    seen: set[int] = set()
    for _ in range(50):
        ids = draw_ids(draw, SPEC.vocab_size, 30).tolist()
        assert read(source, ids) == sum(token in seen for token in ids)
        seen |= set(ids)
    assert source.num_cached == len(seen)


@every_policy
def test_rows_stay_right_whatever_is_given_up_beside_a_step_that_runs(make_policy: Maker) -> None:
    source = source_with(make_policy(NUM_SLOTS))
    draw = np.random.default_rng(4)
    for _ in range(100):
        ids = draw_ids(draw, SPEC.vocab_size, 30)
        running = source.start(ids)
        read(source, draw_ids(draw, SPEC.vocab_size, 60).tolist())
        assert all(np.array_equal(source.wait(running, band), ROWS[band][ids]) for band in range(3))
        source.release(running)


@every_policy
def test_a_cache_tells_its_ids_and_another_starts_with_them(make_policy: Maker) -> None:
    source = source_with(make_policy(NUM_SLOTS))
    assert source.cached_ids().tolist() == []
    draw = np.random.default_rng(5)
    for _ in range(30):
        read(source, draw_ids(draw, SPEC.vocab_size, 20).tolist())
    ids = source.cached_ids().tolist()
    assert len(set(ids)) == len(ids) == source.num_cached
    assert read(source, ids) == len(ids)
    smaller = source_with(S3FIFO(10, SPEC.vocab_size, COUNTS), 10)
    assert smaller.warm(np.array(ids)) == 10
    assert read(smaller, ids[:10]) == 10
    larger = source_with(LRU(60, COUNTS), 60)
    assert larger.warm(np.array(ids)) == 60
    frequent = [token for token in np.argsort(-COUNTS, kind="stable").tolist() if token not in ids]
    assert read(larger, ids) == len(ids) and read(larger, frequent[: 60 - len(ids)]) == 60 - len(ids)


@settings(deadline=None)
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


@pytest.mark.parametrize(("rows_a_step", "num_steps"), [(1, 4000), (8, 1500), (100, 250)])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3])
def test_s3_fifo_hits_within_a_point_of_one_row_at_a_time(share: float, rows_a_step: int, num_steps: int) -> None:
    vocab_size = 2000
    num_slots = int(share * vocab_size)
    policy, plain = S3FIFO(num_slots, vocab_size), PlainS3FIFO(num_slots)
    trace = skewed_steps(vocab_size, num_steps, rows_a_step)
    hits = hits_of(policy, num_slots, trace, vocab_size)
    expected = sum(plain.step(ids.tolist()) for ids in trace)
    total = sum(map(len, trace))
    assert 0 < hits < total
    assert abs(hits - expected) / total < 0.01, (hits / total, expected / total)


def skewed_steps(vocab_size: int, num_steps: int, rows_a_step: int) -> list[np.ndarray]:
    """Distinct ids of each step; half of them from a set that moves on, as text does."""
    draw = np.random.default_rng(6)
    ids = draw_ids(draw, vocab_size, num_steps * rows_a_step).reshape(num_steps, rows_a_step)
    topic = draw_ids(draw, vocab_size // 8, num_steps * rows_a_step).reshape(num_steps, rows_a_step)
    moved = (topic + np.arange(num_steps)[:, None] * rows_a_step // 2000 * 211) % vocab_size
    return [np.unique(step) for step in np.where(draw.random(ids.shape) < 0.5, ids, moved)]


def hits_of(policy: CachePolicy, num_slots: int, trace: list[np.ndarray], vocab_size: int) -> int:
    spec = row_spec(vocab_size=vocab_size, widths=(1,))
    source = CachedSource(StoreFetcher(partition_store(spec, random_rows(spec))), num_slots=num_slots, policy=policy)
    hits = 0
    for ids in trace:
        handle = source.start(ids)
        source.wait(handle, 0)
        source.release(handle)
        hits += handle.bill.hits_by_tier.get("cache", 0)
    return hits


def test_text_read_once_does_not_flush_what_is_used_again() -> None:
    source = source_with(S3FIFO(NUM_SLOTS, SPEC.vocab_size))
    often = list(range(20))
    for start in range(30, 150, 30):
        read(source, often)
        read(source, list(range(start, start + 30)))
    assert read(source, often) == 20


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
