"""Ways from addresses to bytes, one for each kind of place: memory maps, positioned reads, ranges of a remote store."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectNotFoundError, StoreError, TableCorruptError
from tolbuild.table.layout import Ids, RowLayout
from tolbuild.table.local_store import LocalStore
from tolbuild.table.positioned import read_at
from tolbuild.table.store import Store

Bytes = NDArray[np.uint8]

KEPT_FILES = 256
"""Shard files that stay open; others are opened for each call, so that a process keeps within its limit."""

PARALLEL_SHARDS = 16
"""Shards of a remote store that one call reads at a time."""


class Access(Protocol):
    """How codes are read. May be used by several threads."""

    def gather(self, layout: RowLayout, shards: Ids, starts: Ids, out: Bytes) -> None:
        """Fill each row of `out` [n, bytes] from byte `starts[i]` behind the first row of shard `shards[i]`.

        `bytes` are those of a row or of a whole block, and every start is a multiple of them.

        Raises:
            TableCorruptError: an object is missing or has another size than it must have.
            StoreError: the store failed.
        """

    def close(self) -> None:
        """Give back what is held."""


def open_access(store: Store, how: str) -> Access:
    """The access of a name; auto is pread for files of this machine and range for everything else.

    Raises:
        ValueError: no such access, or one that needs files of this machine where there are none.
    """
    if how not in ("auto", "mmap", "pread", "range"):
        raise ValueError(f"access is {how!r}; it must be auto, mmap, pread or range")
    if how == "range" or (how == "auto" and not isinstance(store, LocalStore)):
        return RangeAccess(store)
    if not isinstance(store, LocalStore):
        raise ValueError(f"access {how!r} needs files of this machine; {store.url} is remote, use auto or range")
    return MappedAccess(store) if how == "mmap" else FileAccess(store)


class FileAccess:
    """Positioned reads straight into place; see `tolbuild.table.positioned`."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._kept: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()

    def gather(self, layout: RowLayout, shards: Ids, starts: Ids, out: Bytes) -> None:
        """See Access."""
        kept, prefix = self._kept, layout.prefix
        with ExitStack() as opened:
            try:
                descriptors = [kept[prefix, shard] for shard in shards.tolist()]
            except KeyError:
                by_shard = {shard: self._open(layout, shard, opened) for shard in np.unique(shards).tolist()}
                descriptors = [by_shard[shard] for shard in shards.tolist()]
            try:
                read_at(descriptors, (starts + layout.data_starts[shards]).tolist(), list(out))
            except (OSError, EOFError) as error:
                raise StoreError(f"reading {self._store.url}/{layout.prefix}: {error}") from error

    def _open(self, layout: RowLayout, shard: int, opened: ExitStack) -> int:
        found = self._kept.get((layout.prefix, shard))
        if found is not None:
            return found
        descriptor = _open_checked(self._store, layout, shard)
        with self._lock:
            if len(self._kept) < KEPT_FILES and (layout.prefix, shard) not in self._kept:
                self._kept[layout.prefix, shard] = descriptor
                return descriptor
        opened.callback(os.close, descriptor)
        return descriptor

    def close(self) -> None:
        """See Access."""
        with self._lock:
            kept, self._kept = self._kept, {}
        for descriptor in kept.values():
            os.close(descriptor)


class MappedAccess:
    """Copies out of memory maps. The kernel reads what is not in memory when it is touched, one place at a time."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._maps: dict[tuple[str, int], Bytes] = {}

    def gather(self, layout: RowLayout, shards: Ids, starts: Ids, out: Bytes) -> None:
        """See Access."""
        if not len(shards):
            return
        width = out.shape[1]
        first = int(shards[0])
        if (shards == first).all():
            mapped = self._map(layout, first)
            rows = mapped[: len(mapped) // width * width].reshape(-1, width)
            rows.take(starts // width, axis=0, out=out, mode="clip")
            return
        maps = {shard: self._map(layout, shard) for shard in np.unique(shards).tolist()}
        for row, shard, start in zip(out, shards.tolist(), starts.tolist(), strict=True):
            row[:] = maps[shard][start : start + width]

    def _map(self, layout: RowLayout, shard: int) -> Bytes:
        found = self._maps.get((layout.prefix, shard))
        if found is None:
            descriptor = _open_checked(self._store, layout, shard)
            try:
                mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            except OSError as error:
                raise StoreError(f"mapping {self._store.url}/{layout.shard_key(shard)}: {error}") from error
            finally:
                os.close(descriptor)
            start = layout.data_start(shard)
            found = np.frombuffer(mapped, np.uint8)[start : start + layout.data_bytes(shard)]
            self._maps[layout.prefix, shard] = found
        return found

    def close(self) -> None:
        """Forget the maps; they go with the last array that looks into them."""
        self._maps.clear()


class RangeAccess:
    """Range reads through the store, shards side by side, ranges of a shard in one call that joins near ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(PARALLEL_SHARDS, thread_name_prefix="ranges")

    def gather(self, layout: RowLayout, shards: Ids, starts: Ids, out: Bytes) -> None:
        """See Access."""

        def read(shard: int) -> None:
            places = np.flatnonzero(shards == shard)
            wanted = starts[places] + layout.data_start(shard)
            with _explained(self._store, layout, shard):
                self._store.read_scattered(layout.shard_key(shard), wanted, [out[place] for place in places])

        touched = np.unique(shards).tolist()
        if len(touched) == 1:
            read(touched[0])
        else:
            for done in [self._pool.submit(read, shard) for shard in touched]:
                done.result()

    def close(self) -> None:
        """See Access."""
        self._pool.shutdown()


def _open_checked(store: LocalStore, layout: RowLayout, shard: int) -> int:
    """A descriptor of a shard file that has its full length (a map of a short one would kill the process)."""
    key = layout.shard_key(shard)
    try:
        descriptor = os.open(store.root / key, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _missing(store, key) from error
    except OSError as error:
        raise StoreError(f"opening {store.root / key}: {error.strerror}") from error
    size, expected = os.fstat(descriptor).st_size, layout.object_bytes(shard)
    if size != expected:
        os.close(descriptor)
        raise _wrong_size(store, key, size, expected)
    return descriptor


@contextmanager
def _explained(store: Store, layout: RowLayout, shard: int) -> Iterator[None]:
    """A failed read of a missing or short object is a corrupt table, not a failing store."""
    key = layout.shard_key(shard)
    try:
        yield
    except ObjectNotFoundError as error:
        raise _missing(store, key) from error
    except StoreError as error:
        try:
            size = store.size(key)
        except StoreError:
            raise error from None
        if size != layout.object_bytes(shard):
            raise _wrong_size(store, key, size, layout.object_bytes(shard)) from error
        raise


def _missing(store: Store, key: str) -> TableCorruptError:
    return TableCorruptError(f"{store.url}/{key}: the manifest names it and it is not there", [key])


def _wrong_size(store: Store, key: str, size: int, expected: int) -> TableCorruptError:
    return TableCorruptError(f"{store.url}/{key} has {size} bytes; it must have {expected}", [key])
