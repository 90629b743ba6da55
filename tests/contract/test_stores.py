"""What every store promises, on a folder, in memory and on S3."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tolbuild.table import ObjectExistsError, Store, StoreError
from tolbuild.table.errors import ObjectNotFoundError
from tolbuild.table.store import ObjectInfo

OpenAgain = Callable[[], Store]


def test_what_is_written_is_read_by_others(store: Store, open_again: OpenAgain) -> None:
    store.write("a/b", b"one", np.arange(4, dtype=np.uint8), b"")
    assert open_again().read("a/b") == b"one\x00\x01\x02\x03"
    assert open_again().size("a/b") == 7
    store.write("empty")
    assert open_again().read("empty") == b""


def test_a_write_replaces_the_whole_object(store: Store, open_again: OpenAgain) -> None:
    store.write("key", b"longer than the next")
    store.write("key", b"short")
    assert open_again().read("key") == b"short"
    assert store.size("key") == 5


def test_create_takes_only_free_keys(store: Store) -> None:
    store.create("manifests/1", b"first")
    with pytest.raises(ObjectExistsError, match="manifests/1"):
        store.create("manifests/1", b"second")
    assert store.read("manifests/1") == b"first"
    store.delete("manifests/1")
    store.create("manifests/1", b"third")
    assert store.read("manifests/1") == b"third"


def test_of_many_creators_one_wins(open_again: OpenAgain) -> None:
    stores = [open_again() for _ in range(8)]

    def attempt(number: int) -> bool:
        try:
            stores[number].create("contested", bytes([number]) * 100)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert won.count(True) == 1
    assert stores[0].read("contested") == bytes([won.index(True)]) * 100


def test_lists_are_sorted_whole_and_of_a_folder(store: Store, open_again: OpenAgain) -> None:
    assert store.list() == []
    for key in ("b/2", "b/10/x", "bb/1", "a"):
        store.write(key, key.encode())
    everything = [ObjectInfo(key, len(key)) for key in ("a", "b/10/x", "b/2", "bb/1")]
    assert open_again().list() == everything
    assert open_again().list("b") == everything[1:3]
    assert open_again().list("nothing") == []


def test_lists_tell_when_an_object_was_written(store: Store) -> None:
    before = time.time()
    store.write("key", b"x")
    (info,) = store.list()
    assert before - 2 <= info.modified <= time.time() + 2


def test_deleted_objects_are_gone(store: Store, open_again: OpenAgain) -> None:
    store.write("folder/key", b"x")
    store.delete("folder/key")
    store.delete("folder/key")
    assert open_again().list() == []
    with pytest.raises(ObjectNotFoundError):
        store.read("folder/key")


def test_missing_objects_are_named(store: Store) -> None:
    store.write("there", b"x")
    for attempt in (
        lambda: store.read("not/there"),
        lambda: store.size("not/there"),
        lambda: store.read_scattered("not/there", np.array([0]), [np.empty(1, np.uint8)]),
    ):
        with pytest.raises(ObjectNotFoundError, match="not/there"):
            attempt()


def test_ranges_go_where_they_are_wanted(store: Store) -> None:
    data = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8)
    store.write("big", data)
    starts, lengths = np.array([250_000, 0, 10, 5, 299_999, 100]), np.array([1000, 10, 20, 10, 1, 0])
    outs = [np.empty(length, np.uint8) for length in lengths]
    store.read_scattered("big", starts, outs)
    for start, length, out in zip(starts, lengths, outs, strict=True):
        assert np.array_equal(out, data[start : start + length])


def test_no_ranges_are_nothing_to_do(store: Store) -> None:
    store.write("key", b"x")
    store.read_scattered("key", np.empty(0, np.int64), [])


@pytest.mark.parametrize(("start", "length"), [(90, 20), (100, 1), (200, 10)])
def test_a_range_behind_the_end_is_a_fault(store: Store, start: int, length: int) -> None:
    store.write("key", bytes(100))
    with pytest.raises(StoreError, match="key"):
        store.read_scattered("key", np.array([start]), [np.empty(length, np.uint8)])


def test_parallel_use(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.write(f"k/{n}", bytes([n]) * n), range(32)))
        assert list(pool.map(lambda n: store.read(f"k/{n}"), range(32))) == [bytes([n]) * n for n in range(32)]
    assert len(store.list("k")) == 32
