"""Rows kept in host memory: never other bytes than those put, never more than fit, and none that a step is reading."""

from __future__ import annotations

import numpy as np
import pytest
from row_kit import draw_ids, partition_store, random_rows, row_spec

from tolserve.memory.cached import CachedSource
from tolserve.memory.host_cache import HostCache
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, StaticByFrequency
from tolserve.memory.ram_rows import RamRows
from tolserve.memory.spec import Ids

SPEC = row_spec(vocab_size=200)
ROWS = random_rows(SPEC)
BANDS = (0, 1, 2)


def put(cache: RamRows, ids: Ids, bands: tuple[int, ...] = BANDS) -> None:
    """Put the table's rows of `ids`, from places that are not those of the ids."""
    places = np.random.default_rng(len(ids)).permutation(len(ids))
    rows = {band: np.empty((len(ids), SPEC.bands[band].row_bytes), np.uint8) for band in bands}
    for band, part in rows.items():
        part[places] = ROWS[band][ids]
    cache.put(ids, rows, places)


def check(cache: RamRows, ids: Ids, bands: tuple[int, ...]) -> list[int]:
    """The ids that are here, whose bytes are the table's."""
    slots = cache.find(ids, bands)
    here = np.flatnonzero(slots >= 0)
    for band in bands:
        out = np.empty((len(here), SPEC.bands[band].row_bytes), np.uint8)
        cache.copy(band, slots[here], out)
        assert np.array_equal(out, ROWS[band][ids[here]])
    return ids[here].tolist()


@pytest.mark.parametrize("num_rows", [1, 7, 60, 500])
def test_what_is_found_is_what_was_put(num_rows: int) -> None:
    draw = np.random.default_rng(num_rows)
    cache = RamRows(SPEC, cache_bytes=num_rows * SPEC.row_bytes + 1)
    assert cache.num_slots == min(num_rows, SPEC.vocab_size)
    for _ in range(200):
        bands = BANDS if draw.random() < 0.5 else tuple(sorted(draw.permutation(3)[: draw.integers(1, 3)].tolist()))
        ids = np.unique(draw_ids(draw, SPEC.vocab_size, draw.integers(1, 40)))
        put(cache, ids, bands)
        found = check(cache, ids, bands)
        assert len(found) == min(len(ids), cache.num_slots)
        check(cache, np.arange(SPEC.vocab_size), BANDS)
        assert cache.num_rows <= cache.num_slots


def test_rows_used_last_stay() -> None:
    cache = RamRows(SPEC, cache_bytes=3 * SPEC.row_bytes)
    put(cache, np.array([1, 2, 3]))
    assert check(cache, np.array([1]), BANDS) == [1]
    put(cache, np.array([9, 8]))
    assert sorted(check(cache, np.arange(20), BANDS)) == [1, 8, 9]


def test_a_row_is_here_when_all_bands_asked_for_are() -> None:
    cache = RamRows(SPEC, cache_bytes=5 * SPEC.row_bytes)
    put(cache, np.array([4]), (1,))
    assert check(cache, np.array([4]), (1,)) == [4]
    assert check(cache, np.array([4]), (0, 1)) == []
    put(cache, np.array([4]), (0, 2))
    assert check(cache, np.array([4]), BANDS) == [4]
    assert cache.num_rows == 1


def test_rows_that_are_held_stay() -> None:
    cache = RamRows(SPEC, cache_bytes=2 * SPEC.row_bytes)
    put(cache, np.array([1, 2]))
    slots = cache.find(np.array([1]), BANDS)
    cache.hold(slots)
    put(cache, np.array([2, 3]))
    put(cache, np.array([4, 5]))
    assert check(cache, np.array([1]), BANDS) == [1]
    cache.let_go(slots)
    put(cache, np.array([6, 7]))
    assert check(cache, np.array([1, 6, 7]), BANDS) == [6, 7]


def test_what_cannot_be_kept_is_not() -> None:
    nothing = RamRows(SPEC, cache_bytes=SPEC.row_bytes - 1)
    put(nothing, np.array([1]))
    assert nothing.num_slots == 0 and check(nothing, np.array([1]), BANDS) == []
    some = RamRows(SPEC, cache_bytes=2 * SPEC.bands[1].row_bytes, bands=(1,))
    put(some, np.array([1, 2]))
    assert check(some, np.array([1, 2]), (1,)) == [1, 2] and some.find(np.array([1, 2]), (0, 1)).tolist() == [-1, -1]
    static = RamRows(SPEC, cache_bytes=SPEC.row_bytes, policy=lambda _: StaticByFrequency(np.arange(200)))
    put(static, np.array([1]))
    put(static, np.array([2]))
    assert check(static, np.array([1, 2]), BANDS) == [1]
    with pytest.raises(ValueError, match="-1 bytes"):
        RamRows(SPEC, cache_bytes=-1)


def test_a_row_that_the_near_cache_gave_up_is_found_in_the_host() -> None:
    host = HostCache(StoreFetcher(partition_store(SPEC, ROWS)), cache_bytes=50 * SPEC.row_bytes)
    source = CachedSource(host, num_slots=4, policy=LRU(4))

    def read(ids: Ids) -> dict[str, int]:
        handle = source.start(ids)
        assert all(np.array_equal(source.wait(handle, band), ROWS[band][ids]) for band in BANDS)
        source.release(handle)
        return handle.bill.hits_by_tier

    assert read(np.array([1, 2, 3, 4])) == {"table": 4}
    assert read(np.array([5, 6, 7, 8])) == {"table": 4}
    assert read(np.array([1, 2, 8, 90])) == {"cache": 1, "host": 2, "table": 1}
    stats = host.stats()
    assert (stats["num_hits"], stats["num_misses"], stats["num_rows"], stats["num_slots"]) == (2, 9, 9, 50)
