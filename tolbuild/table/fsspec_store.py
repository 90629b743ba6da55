"""Stores through fsspec: memory:// for reading and writing, every other scheme it knows for reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from tolbuild.table.store import ObjectInfo, Offsets, merge_ranges

COALESCE_BYTES = 128 * 1024
"""Two ranges this near are read as one: a store answers 100 KB about as fast as 4 KB (NUMBERS: "S3")."""

_create_lock = threading.Lock()
"""memory:// lives in one process, so one lock makes its put-if-absent true."""


class FsspecStore:
    """Objects of one fsspec filesystem under a path.

    Raises:
        ValueError: fsspec knows no such scheme.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self.url = url
        try:
            self.fs, root = fsspec.core.url_to_fs(url, **options)
        except ValueError as error:
            raise ValueError(f"cannot open {url!r}: {error}; give a path, file://, s3:// or memory://") from error
        except ImportError as error:
            raise StoreError(f"{url} needs a package that is not installed: {error}") from error
        self._root = root.rstrip("/")
        self._writable = url.startswith("memory://")

    def path(self, key: str) -> str:
        """fsspec's path of a key."""
        return f"{self._root}/{key}" if key else self._root

    def read(self, key: str) -> bytes:
        """The whole object; see Store."""
        with self.faults(key):
            data: bytes = self.fs.cat_file(self.path(key))
            return data

    def read_scattered(self, key: str, starts: Offsets, outs: Sequence[NDArray[np.uint8]]) -> None:
        """fsspec's own range reads, near ones as one; see Store."""
        lengths = np.array([out.size for out in outs], np.int64)
        merged = merge_ranges(starts, lengths, gap=COALESCE_BYTES)
        with self.faults(key):
            parts = self.fs.cat_ranges(
                [self.path(key)] * len(merged), [m.start for m in merged], [m.stop for m in merged], on_error="raise"
            )
        for wanted, part in zip(merged, parts, strict=True):
            if len(part) != wanted.stop - wanted.start:
                raise StoreError(
                    f"{self.url}/{key}: {len(part)} bytes from {wanted.start} on where {wanted.stop - wanted.start} "
                    "were asked for: the object is too short"
                )
            data = np.frombuffer(part, np.uint8)
            for place in wanted.members:
                first = int(starts[place]) - wanted.start
                outs[place].reshape(-1)[:] = data[first : first + outs[place].size]

    def write(self, key: str, *parts: bytes | NDArray[np.uint8]) -> None:
        """See Store."""
        self._check_writable()
        with self.faults(key):
            self.fs.pipe_file(self.path(key), b"".join(bytes(memoryview(part).cast("B")) for part in parts))

    def create(self, key: str, data: bytes) -> None:
        """See Store."""
        self._check_writable()
        with self.faults(key), _create_lock:
            if self.fs.exists(self.path(key)):
                raise ObjectExistsError(f"{self.url}/{key} exists")
            self.fs.pipe_file(self.path(key), data)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """See Store."""
        with self.faults(prefix):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.path(prefix), detail=True)
            except FileNotFoundError:
                found = {}
        if not found and not self._writable:
            raise StoreError(
                f"nothing is listed at {self.url}/{prefix}, which is read-only here: no answer, no table, or a server "
                "that lists no folders; a table on such a server can be opened by its version number"
            )
        skip = len(self._root.lstrip("/")) + 1
        with self.faults(prefix):
            sizes = {path: info["size"] for path, info in found.items()}
            unsaid = [path for path, size in sizes.items() if size is None]  # HTTP listings are names alone
            sizes |= dict(zip(unsaid, self.fs.sizes(unsaid), strict=True))
        infos = [ObjectInfo(path.lstrip("/")[skip:], int(n), _modified(found[path])) for path, n in sizes.items()]
        return sorted((i for i in infos if i.key), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """See Store."""
        self._check_writable()
        with self.faults(key):
            try:
                self.fs.rm_file(self.path(key))
            except FileNotFoundError:
                return

    def size(self, key: str) -> int:
        """See Store."""
        with self.faults(key):
            self.fs.invalidate_cache()
            return int(self.fs.info(self.path(key))["size"])

    def local_path(self, key: str) -> Path | None:
        """None: these objects are no files; see Store."""
        return None

    def close(self) -> None:
        """Nothing is held; see Store."""

    def _check_writable(self) -> None:
        if not self._writable:
            raise StoreError(f"{self.url} is read-only here; write to a path, file://, s3:// or memory://")

    @contextmanager
    def faults(self, key: str) -> Iterator[None]:
        """Turn what fsspec raises into this package's errors, naming the object."""
        where = f"{self.url.rstrip('/')}/{key}"
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFoundError(f"no such object: {where}") from error
        except PermissionError as error:
            raise StoreError(f"no permission for {where}: {error}") from error
        except (StoreError, ObjectExistsError):
            raise
        except Exception as error:  # the clients behind fsspec share no base class
            raise StoreError(f"{where}: {type(error).__name__}: {error}") from error


def _modified(info: dict[str, Any]) -> float:
    """Unix time of an object's last change; 0 where the filesystem does not say."""
    when = info.get("created", 0.0)
    return when.timestamp() if isinstance(when, datetime) else float(when)


def http_timeout(wait_s: float) -> dict[str, Any]:
    """Options of a store at http(s):// that waits so long for a connection and for the next byte."""
    try:
        import aiohttp
    except ImportError:  # fsspec says so, and what to do about it
        return {}
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, connect=wait_s, sock_read=wait_s)}}
