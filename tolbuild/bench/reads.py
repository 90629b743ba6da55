"""Rows from a table on local disk against bare `preadv`: `row_read_vs_preadv`, `row_read_cold_vs_preadv`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tolbuild.bench.measure import Contestant, Timing, in_turn, say, show
from tolbuild.bench.tables import LAYERS, ROW_BYTES, SHARD_ROWS, WIDTH, write_table
from tolbuild.table.reader import Table, open_table

ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class BareFiles:
    """The shards of a band's array as plain files, in which rows lie one after another."""

    descriptors: tuple[int, ...]

    def read(self, token_ids: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """One positioned read a row, straight into `out` [n, row bytes]."""
        for row, token in zip(out, token_ids.tolist(), strict=True):
            shard, index = divmod(token, SHARD_ROWS)
            got = os.preadv(self.descriptors[shard], (row,), index * ROW_BYTES)
            assert got == ROW_BYTES, f"{got} of {ROW_BYTES} bytes"

    def drop_cache(self) -> None:
        """Make the next reads go to the disk."""
        for descriptor in self.descriptors:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def measure(*, quick: bool, device: torch.device, seed: int, folder: Path) -> dict[str, float | None]:
    """128 random rows of 24 KiB a turn, other ones each turn but the same for every contestant."""
    del device
    num_shards = 1 if quick else 4
    vocab_size = num_shards * SHARD_ROWS
    say(f"reads: {ROWS_AT_ONCE} random rows of {ROW_BYTES >> 10} KiB out of {vocab_size:,}, {folder}")
    bare = BareFiles(tuple(os.open(folder / key, os.O_RDONLY) for key in write_table(folder, num_shards, seed)))
    plain = open_table(folder, check_rows=False)
    checked = open_table(folder, check_rows=True)
    try:
        _same_bytes(plain, bare, vocab_size, seed)
        rounds = 30 if quick else 200
        warm = _readers(plain, checked, bare, vocab_size, seed, rounds=rounds, before=lambda: None)
        rounds = 10 if quick else 40
        cold = _readers(plain, checked, bare, vocab_size, seed, rounds=rounds, before=bare.drop_cache)
    finally:
        plain.close()
        checked.close()
        for descriptor in bare.descriptors:
            os.close(descriptor)
    return {"row_read_vs_preadv": _ratio("warm", warm), "row_read_cold_vs_preadv": _ratio("page cache dropped", cold)}


def _ratio(regime: str, timings: dict[str, Timing]) -> float:
    ours, checked, bare = (timings[name].median_s for name in ("our reader", "our reader, rows checked", "preadv"))
    say(f"    {regime}; checking rows costs {1e3 * (checked - ours):.3f} ms, {checked / bare:.2f} of preadv with it")
    show(timings)
    return ours / bare


def _readers(
    plain: Table,
    checked: Table,
    bare: BareFiles,
    vocab_size: int,
    seed: int,
    *,
    rounds: int,
    before: Callable[[], None],
) -> dict[str, Timing]:
    """Each contestant draws the same sequence of ids and reads into one buffer that it keeps."""

    def contestant(name: str, read: Callable[[NDArray[np.int64]], object]) -> Contestant:
        draw = np.random.default_rng(seed)
        wanted: list[NDArray[np.int64]] = []

        def prepare() -> None:
            wanted[:] = [draw.integers(0, vocab_size, ROWS_AT_ONCE)]
            before()

        return Contestant(name=name, run=lambda: read(wanted[0]), prepare=prepare)

    codes = np.empty((ROWS_AT_ONCE, LAYERS * WIDTH), np.float16)
    raw = np.empty((ROWS_AT_ONCE, ROW_BYTES), np.uint8)
    contestants = [
        contestant("our reader", lambda ids: plain.codes_into(ids, 0, codes)),
        contestant("our reader, rows checked", lambda ids: checked.codes_into(ids, 0, codes)),
        contestant("preadv", lambda ids: bare.read(ids, raw)),
    ]
    return in_turn(contestants, rounds=rounds)


def _same_bytes(table: Table, bare: BareFiles, vocab_size: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, vocab_size, ROWS_AT_ONCE)
    raw = np.empty((ROWS_AT_ONCE, ROW_BYTES), np.uint8)
    bare.read(ids, raw)
    assert table.codes(ids, 0).tobytes() == raw.tobytes(), "the contestants read different bytes"
