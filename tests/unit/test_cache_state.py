"""What a cache held, saved and read again: by a node of another size or policy, or refused, or not there."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from row_kit import partition_store, random_rows, row_spec

from tolbuild.table import open_store
from tolserve.memory.cached import CachedSource
from tolserve.memory.local import StoreFetcher
from tolserve.memory.state import StateKeeper, check_state, read_state, write_state
from tolserve.replica import cached, state_keeper, warm
from tolserve.serve_config import ServeConfig

SPEC = row_spec(vocab_size=300)
ROWS = random_rows(SPEC)


def node(
    url: str, *, num_slots: int = 20, policy: str = "lru", counts: str | None = None
) -> tuple[ServeConfig, CachedSource]:
    """What an attention node makes of these settings."""
    config = ServeConfig.from_dict(
        {
            "checkpoint": "c",
            "table": "t",
            "cache_bytes": num_slots * SPEC.row_bytes,
            "cache_policy": policy,
            "cache_counts": counts,
            "cache_state": url,
        }
    )
    return config, cached(config, SPEC, StoreFetcher(partition_store(SPEC, ROWS)), (0, 1, 2))


def hits(source: CachedSource, ids: list[int]) -> int:
    handle = source.start(np.array(ids))
    for band in range(3):
        source.wait(handle, band)
    source.release(handle)
    return handle.bill.hits_by_tier.get("cache", 0)


@pytest.mark.parametrize("scheme", ["{}", "file://{}", "memory://states{}"])
def test_a_state_is_read_as_it_was_written(tmp_path: Path, scheme: str) -> None:
    url = scheme.format(tmp_path / "state.json")
    check_state(url, 300)
    assert read_state(url, 300) is None
    for ids in ([7, 3, 299], [5]):
        write_state(url, np.array(ids), 300)
        assert read_state(url, 300).tolist() == ids  # type: ignore[union-attr]
    check_state(url, 300)


@pytest.mark.parametrize("new", [("lru", 20), ("lru", 8), ("s3fifo", 20), ("s3fifo", 8), ("s3fifo", 100)])
@pytest.mark.parametrize("old", ["lru", "s3fifo"])
def test_a_new_node_starts_with_what_the_old_one_ended_with(tmp_path: Path, old: str, new: tuple[str, int]) -> None:
    url = str(tmp_path / "state.json")
    config, source = node(url, policy=old)
    keeper = state_keeper(config, source)
    assert keeper is not None
    for _ in range(3):
        hits(source, list(range(40, 60)))
    keeper.stop()
    ids = read_state(url, 300)
    assert ids is not None and sorted(ids.tolist()) == list(range(40, 60))
    policy, num_slots = new
    started = node(url, policy=policy, num_slots=num_slots)
    num_warm = min(20, num_slots)
    assert warm(*started) == num_warm
    assert hits(started[1], ids[:num_warm].tolist()) == num_warm


def test_counts_fill_what_the_state_leaves(tmp_path: Path) -> None:
    url, counts = str(tmp_path / "state.json"), np.arange(300)
    np.save(tmp_path / "c.npy", counts)
    write_state(url, np.array([1, 2, 299]), 300)
    started = node(url, num_slots=10, counts=str(tmp_path / "c.npy"))
    assert warm(*started) == 10
    assert sorted(started[1].cached_ids().tolist()) == [1, 2, *range(292, 300)]
    fixed = node(url, num_slots=10, policy="frequency", counts=str(tmp_path / "c.npy"))
    assert warm(*fixed) == 10
    assert fixed[1].cached_ids().tolist() == list(range(299, 289, -1))


def test_a_state_that_is_not_there_is_told_and_does_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warm(*node(str(tmp_path / "none.json"))) == 0
    assert "there is no cache state at" in caplog.text and "none.json" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"vocab_size": 200}, "a vocabulary of 200 tokens; the table has 300"),
        ({"version": 2}, "no cache state of this version"),
        ({"format": "other"}, "no cache state"),
        ({"ids": [1, 300]}, "below 300"),
        ({"ids": [1, 1]}, "distinct"),
        ({"ids": [1.5]}, "damaged"),
        ({"ids": None}, "damaged"),
        ([1, 2], "no cache state"),
        (None, "no JSON"),
    ],
)
def test_other_files_are_refused_before_they_are_written_over(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "state.json"
    write_state(str(path), np.array([1, 2]), 300)
    good = json.loads(path.read_text())
    path.write_text("{" if content is None else json.dumps(good | content if isinstance(content, dict) else content))
    with pytest.raises(ValueError, match=message):
        check_state(str(path), 300)


def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        check_state("https://localhost/state.json", 300)


def test_a_state_is_saved_while_the_node_runs_and_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    ids = np.empty(0, np.int64)
    keeper = StateKeeper(str(path), lambda: ids, 300, period_s=0.01)
    keeper.stop()
    assert not path.exists()
    ids = np.array([4, 2])
    keeper = StateKeeper(str(path), lambda: ids, 300, period_s=0.01)
    while not path.exists():
        pass
    keeper.stop()
    assert read_state(str(path), 300).tolist() == [4, 2]  # type: ignore[union-attr]


def test_a_state_that_cannot_be_saved_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    keeper = StateKeeper(str(tmp_path / "file" / "state.json"), lambda: np.array([1]), 300)
    with caplog.at_level(logging.WARNING):
        keeper.stop()
    assert "could not be saved" in caplog.text


def test_without_a_cache_nothing_is_saved(tmp_path: Path) -> None:
    assert state_keeper(*node(str(tmp_path / "state.json"), num_slots=0)) is None
    assert open_store(tmp_path).list() == []
