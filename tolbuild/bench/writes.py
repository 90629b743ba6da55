"""Shards with their checksums and receipts against one plain file of the same bytes: `write_vs_raw`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch

from tolbuild.bench.measure import Contestant, in_turn, say, show
from tolbuild.bench.tables import SHARD_ROWS, random_codes, table_spec, write_shards
from tolbuild.table import crc32c
from tolbuild.table.store import open_store


def measure(*, quick: bool, device: torch.device, seed: int, folder: Path) -> dict[str, float | None]:
    """Shards of 96 MiB, everything durable at the end of a turn; no computing of rows."""
    del device
    num_shards = 1 if quick else 3
    codes_NC = random_codes(seed)
    num_bytes = num_shards * codes_NC.nbytes
    say(f"writes: {num_shards} shards of {codes_NC.nbytes >> 20} MiB, {SHARD_ROWS} rows each, fsync included, {folder}")
    raw, table = folder / "raw", folder / "table"
    spec, store = table_spec(num_shards), open_store(table)

    def clear() -> None:
        raw.unlink(missing_ok=True)
        shutil.rmtree(table, ignore_errors=True)
        os.sync()

    contestants = [
        Contestant(name="shards, checksums, receipts", prepare=clear, run=lambda: write_shards(store, spec, codes_NC)),
        Contestant(name="one plain file", prepare=clear, run=lambda: _write_raw(raw, codes_NC, num_shards)),
        Contestant(name="the row checksums of one shard", run=lambda: crc32c.of_rows(codes_NC.view(np.uint8))),
    ]
    timings = in_turn(contestants, rounds=5)
    store.close()
    show(timings)
    ours, plain, _ = (timings[contestant.name].median_s for contestant in contestants)
    say(f"    {num_bytes / ours / 1e6:,.0f} MB/s against {num_bytes / plain / 1e6:,.0f}")
    return {"write_vs_raw": plain / ours}


def _write_raw(path: Path, codes_NC: np.ndarray[tuple[int, ...], np.dtype[np.float16]], times: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            view, done = memoryview(codes_NC).cast("B"), 0
            while done < len(view):
                done += file.write(view[done:])
        os.fsync(file.fileno())
