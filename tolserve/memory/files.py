"""One file at a path or URL, beside the tables: counts, saved states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tolbuild.table import open_store
from tolbuild.table.store import Store


@contextmanager
def store_of(url: str) -> Iterator[tuple[Store, str]]:
    """The store of a file's folder, closed at the end, and the file's key in it.

    Raises:
        ValueError, StoreError: see `open_store`.
    """
    folder, slash, name = url.rpartition("/")
    store = open_store(folder or slash or ".")
    try:
        yield store, name
    finally:
        store.close()
