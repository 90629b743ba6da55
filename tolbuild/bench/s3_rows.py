"""Rows from a table on S3 against s3fs: `s3_rows_vs_s3fs`, the ratio of rows a second on the same server."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolbuild.bench.measure import Contestant, in_turn, say, show
from tolbuild.bench.reads import ROWS_AT_ONCE
from tolbuild.bench.s3rver import missing, s3rver
from tolbuild.bench.tables import LAYERS, ROW_BYTES, SHARD_ROWS, WIDTH, table_spec, write_table
from tolbuild.table.reader import open_table
from tolbuild.table.store import Credentials

BUCKET = "tables"

KEY = "s3_rows_vs_s3fs"


def measure(*, quick: bool, device: torch.device, seed: int, folder: Path) -> dict[str, float | None]:
    """128 random rows of 24 KiB a turn over one server of the loopback; None where server or clients are missing."""
    del device
    packages = [name for name in ("obstore", "s3fs") if importlib.util.find_spec(name) is None]
    reason = f"not installed: {', '.join(packages)}" if packages else missing()
    if reason:
        say(f"s3: {KEY} is not measured: {reason}")
        return {KEY: None}
    num_shards, rounds = (1, 8) if quick else (2, 30)
    vocab_size = num_shards * SHARD_ROWS
    say(f"s3: {ROWS_AT_ONCE} random rows of {ROW_BYTES >> 10} KiB out of {vocab_size:,}, s3rver on files in {folder}")
    with s3rver(folder, BUCKET) as credentials:
        url = f"s3://{BUCKET}/table"
        write_table(url, num_shards, seed, credentials=credentials)
        return {KEY: _ratio(url, credentials, vocab_size, seed, rounds)}


def _ratio(url: str, credentials: Credentials, vocab_size: int, seed: int, rounds: int) -> float:
    """Both draw the same ids; ours puts the rows into one buffer, s3fs gives a list of bytes."""
    codes = np.empty((ROWS_AT_ONCE, LAYERS * WIDTH), np.float16)
    rivals = S3fsRows(url, credentials)
    with open_table(url, credentials=credentials, check_rows=False) as table:
        ids = np.random.default_rng(seed).integers(0, vocab_size, ROWS_AT_ONCE)
        table.codes_into(ids, 0, codes)
        assert codes.tobytes() == b"".join(rivals.read(ids)), "the contestants read different bytes"
        draws = [np.random.default_rng(seed + 1) for _ in range(2)]

        def draw(place: int) -> NDArray[np.int64]:
            return draws[place].integers(0, vocab_size, ROWS_AT_ONCE)

        contestants = [
            Contestant(name="our reader", run=lambda: table.codes_into(draw(0), 0, codes)),
            Contestant(name="s3fs cat_ranges", run=lambda: rivals.read(draw(1))),
        ]
        timings = in_turn(contestants, rounds=rounds)
    show(timings)
    return timings["s3fs cat_ranges"].median_s / timings["our reader"].median_s


class S3fsRows:
    """The same rows through s3fs, all ranges in one call."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        import s3fs

        self._layout = table_spec(1).layout(0)
        self._folder = url.removeprefix("s3://")
        self._files: Any = s3fs.S3FileSystem(
            key=credentials.access_key,
            secret=credentials.secret_key,
            endpoint_url=credentials.endpoint_url,
            client_kwargs={"region_name": credentials.region},
        )

    def read(self, token_ids: NDArray[np.int64]) -> list[bytes]:
        """Codes of each token."""
        shards, indices = np.divmod(token_ids, SHARD_ROWS)
        keys = {shard: f"{self._folder}/{self._layout.prefix}/c/{shard}/0/0" for shard in np.unique(shards).tolist()}
        paths = [keys[shard] for shard in shards.tolist()]
        starts = (indices * ROW_BYTES).tolist()
        found: list[bytes] = self._files.cat_ranges(paths, starts, [start + ROW_BYTES for start in starts])
        return found
