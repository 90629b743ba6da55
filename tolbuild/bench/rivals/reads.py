"""128 random rows of 24 KiB: our reader against the libraries that people keep such rows in, warm and cold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tolbuild.bench.measure import Contestant, nothing, say
from tolbuild.bench.rivals import arrays, columns
from tolbuild.bench.rivals.best import Way, compete
from tolbuild.bench.rivals.modes import Ids, MissingError, Mode, Reader, Rows, as_bytes, drop_cache, load
from tolbuild.bench.tables import ROW_BYTES

ROWS_AT_ONCE = 128
RIVALS = ("ours", "ours_checked", "tensorstore", "zarr", "lance", "duckdb", "engramdb")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A mode that works here."""

    mode: Mode
    dataset: Path
    reader: Reader


def measure(*, quick: bool, seed: int, folder: Path) -> dict[str, Any]:
    """Medians in ms by rival, warm (pages in memory) and cold (pages dropped before each turn), and reasons.

    Every contestant draws the same ids and returns one array of the rows in the order asked for; nobody keeps rows of
    an earlier turn. A rival with several modes takes part in its fastest, found anew for either regime.
    """
    rows = Rows(num_shards=1 if quick else 4, seed=seed)
    say(f"rows: {ROWS_AT_ONCE} random rows of {ROW_BYTES >> 10} KiB out of {len(rows):,}, {folder}")
    with _opened(rows, folder) as (opened, missing):
        regimes: dict[str, Any] = {}
        for regime, rounds in (("warm", 20 if quick else 100), ("cold", 8 if quick else 30)):
            say(f"  {regime}")
            ways = [_way(one, len(rows), seed, cold=regime == "cold") for one in opened]
            result = compete(ways, rivals=RIVALS, trial_rounds=max(5, rounds // 4), rounds=rounds)
            regimes[f"{regime}_ms"] = {
                name: None if median is None else round(1e3 * median, 4) for name, median in result.medians_s.items()
            }
            regimes[f"{regime}_modes"] = result.ways
    return {**regimes, "missing": missing}


@contextmanager
def _opened(rows: Rows, folder: Path) -> Iterator[tuple[list[Opened], dict[str, str]]]:
    """Every mode whose library is here and returns the right rows, written to disk; reasons of rivals with none."""
    found: list[Opened] = []
    reasons: dict[str, str] = {}
    with ExitStack() as stack:
        for mode in [*arrays.modes(), *columns.modes()]:
            try:
                reader = _open(mode, folder, rows)
            except Exception as error:  # noqa: BLE001 - the libraries are not ours and fail in their own ways
                reasons[mode.rival] = str(error) or repr(error)
                say(f"    without {mode.rival}, {mode.text}: {reasons[mode.rival]}")
                continue
            stack.callback(reader.close)
            found.append(Opened(mode=mode, dataset=folder / mode.dataset, reader=reader))
        os.sync()
        here = {one.mode.rival for one in found}
        yield found, {name: reason for name, reason in reasons.items() if name not in here}


def _open(mode: Mode, folder: Path, rows: Rows) -> Reader:
    if mode.module:
        load(mode.module)
    dataset = folder / mode.dataset
    if not dataset.exists():
        mode.write(dataset, rows)
    reader = mode.open(dataset, ROWS_AT_ONCE)
    ids = np.random.default_rng(rows.seed).integers(0, len(rows), ROWS_AT_ONCE)
    if as_bytes(reader.read(ids)) != rows.of(ids):
        reader.close()
        raise MissingError(f"{mode.rival}, {mode.text}, returns other bytes than were stored")
    return reader


def _way(one: Opened, num_rows: int, seed: int, *, cold: bool) -> Way:
    draw = np.random.default_rng(seed)
    wanted: list[Ids] = []
    drop: Callable[[], object] = partial(drop_cache, one.dataset) if cold else nothing

    def prepare() -> None:
        wanted[:] = [draw.integers(0, num_rows, ROWS_AT_ONCE)]
        drop()

    name = f"{one.mode.rival}, {one.mode.text}"
    contestant = Contestant(name=name, run=lambda: one.reader.read(wanted[0]), prepare=prepare)
    return Way(rival=one.mode.rival, text=one.mode.text, contestant=contestant)
