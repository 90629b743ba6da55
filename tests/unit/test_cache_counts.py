"""Counts of tokens: read from a file or refused with numbers, and what a cache that serving makes is filled with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from row_kit import partition_store, random_rows, row_spec

from tolbuild.table import open_store
from tolserve.memory.counts import read_counts
from tolserve.memory.local import StoreFetcher
from tolserve.replica import cached
from tolserve.serve_config import ServeConfig

SPEC = row_spec(vocab_size=300)
ROWS = random_rows(SPEC)
COUNTS = np.random.default_rng(0).permutation(300)


def npy(values: ArrayLike) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [("c.json", json.dumps([3, 0, 2]).encode()), ("c.npy", npy([3, 0, 2])), ("c.npy", npy(np.uint8([3, 0, 2])))],
)
@pytest.mark.parametrize("scheme", ["{}", "file://{}", "memory://counts{}"])
def test_counts_are_read_from_paths_and_urls(tmp_path: Path, scheme: str, name: str, data: bytes) -> None:
    url = scheme.format(tmp_path / name)
    open_store(url.rpartition("/")[0]).write(name, data)
    counts = read_counts(url, 3)
    assert counts.tolist() == [3, 0, 2] and counts.dtype == np.int64


def test_counts_are_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text("[1]")
    assert read_counts("c.json", 1).tolist() == [1]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.json", b"[1, 2]", r"shape \[2\]; the vocabulary needs \[3\]"),
        ("c.npy", npy([[1, 2, 3]]), r"shape \[1, 3\]"),
        ("c.json", b"[1, 2, -7]", "count -7 for token 2"),
        ("c.json", b"[1, 2, 3.5]", "float64"),
        ("c.json", b"[true, false, true]", "bool"),
        ("c.json", b'{"a": 1}', "object"),
        ("c.json", b"[[1], 2, 3]", "neither"),
        ("c.json", b"nonsense", "neither"),
        ("c.npy", b"nonsense", "neither"),
        ("c.npy", b"", "neither"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_counts(str(tmp_path / name), 3)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read"):
        read_counts(str(tmp_path / "none.json"), 3)


@pytest.mark.parametrize("policy", ["lru", "frequency", "s3fifo"])
def test_serving_fills_its_cache_with_the_most_frequent(tmp_path: Path, policy: str) -> None:
    np.save(tmp_path / "c.npy", COUNTS)
    config = ServeConfig.from_dict(
        {
            "checkpoint": "c",
            "table": "t",
            "cache_bytes": 20 * SPEC.row_bytes,
            "cache_policy": policy,
            "cache_counts": str(tmp_path / "c.npy"),
        }
    )
    source = cached(config, SPEC, StoreFetcher(partition_store(SPEC, ROWS)), (0, 1, 2))
    assert source.warm() == source.num_slots == 20
    by_count = np.argsort(-COUNTS)
    most, rare = by_count[:20], by_count[20:40]

    def hits(ids: np.ndarray) -> int:
        handle = source.start(ids)
        assert all(np.array_equal(source.wait(handle, band), ROWS[band][ids]) for band in range(3))
        source.release(handle)
        return handle.bill.hits_by_tier.get("cache", 0)

    assert (hits(most), hits(rare)) == (20, 0)
    assert (hits(rare), hits(most)) == {"lru": (20, 0), "frequency": (0, 20), "s3fifo": (2, 0)}[policy]


def test_without_counts_the_cache_starts_empty() -> None:
    config = ServeConfig(checkpoint="c", table="t", cache_bytes=20 * SPEC.row_bytes)
    assert cached(config, SPEC, StoreFetcher(partition_store(SPEC, ROWS)), (0, 1, 2)).warm() == 0
