"""What a contestant in reading rows is: a data set that it writes, a way to open it, and rows by id in one buffer."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.bench.measure import nothing
from tolbuild.bench.tables import ROW_BYTES, SHARD_ROWS, Codes, random_codes

Ids = NDArray[np.int64]
Read = Callable[[Ids], NDArray[Any]]
"""Token ids -> their rows in that order, one contiguous array of len(ids) * ROW_BYTES bytes."""


class MissingError(Exception):
    """A library that is not here, or that cannot work here; the text says why."""


@dataclass(frozen=True)
class Rows:
    """The rows that every contestant stores: those of one shard, again and again."""

    num_shards: int
    seed: int

    @cached_property
    def codes(self) -> Codes:
        """Those of one shard, as `write_table` of the same arguments writes them."""
        return random_codes(self.seed)

    def __len__(self) -> int:
        return self.num_shards * SHARD_ROWS

    def of(self, ids: Ids) -> bytes:
        """What a contestant has to return for these ids."""
        return self.codes[ids % SHARD_ROWS].tobytes()

    def shards(self) -> Iterator[Codes]:
        """The whole, a piece of SHARD_ROWS rows at a time."""
        for _ in range(self.num_shards):
            yield self.codes


@dataclass(frozen=True, kw_only=True)
class Reader:
    """An open data set."""

    read: Read
    close: Callable[[], object] = nothing


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to keep and read rows with a library.

    rival: whose. text: what is special about this way. module: the library's name for import; empty for our own.
    dataset: what it reads, shared by modes that read the same. write: makes that under a new path. open: see Reader;
    may raise MissingError.
    """

    rival: str
    text: str
    module: str
    dataset: str
    write: Callable[[Path, Rows], None]
    open: Callable[[Path, int], Reader]


def load(module: str) -> Any:
    """A library, untyped.

    Raises:
        MissingError: it is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingError(f"{module} is not installed; the extra `rivals` brings it")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(f"{module} cannot be imported: {error}") from error


def files(dataset: Path) -> list[Path]:
    """Every file of a data set, which may be one file."""
    return [dataset] if dataset.is_file() else sorted(path for path in dataset.rglob("*") if path.is_file())


def drop_cache(dataset: Path) -> None:
    """Make the next reads of a data set go to the disk (pages that are written and mapped by nobody)."""
    for path in files(dataset):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def as_bytes(rows: NDArray[Any]) -> bytes:
    """What a contestant returned, for comparison.

    Raises:
        AssertionError: it is not contiguous, or of another size than whole rows.
    """
    assert rows.flags.c_contiguous and rows.nbytes % ROW_BYTES == 0, (rows.flags, rows.nbytes)
    return rows.tobytes()
