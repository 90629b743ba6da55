"""A folder of this machine as a store: positioned reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from tolbuild.table.positioned import read_at
from tolbuild.table.store import ObjectInfo, Offsets

SCRATCH = "_build/tmp"
"""Where a write stands until it is whole; files are named after host and process, so that a dead one's are known."""

_serial = itertools.count()


class LocalStore:
    """Objects are files under `root`; nothing stays open between calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = root.as_uri()

    def read(self, key: str) -> bytes:
        """The whole object; see Store."""
        with self._faults(key):
            return (self.root / key).read_bytes()

    def read_scattered(self, key: str, starts: Offsets, outs: Sequence[NDArray[np.uint8]]) -> None:
        """Positioned reads straight into place, all asked for before the first is waited for; see Store."""
        with self._faults(key):
            descriptor = os.open(self.root / key, os.O_RDONLY | os.O_CLOEXEC)
            try:
                read_at([descriptor] * len(outs), starts.tolist(), outs)
            finally:
                os.close(descriptor)

    def write(self, key: str, *parts: bytes | NDArray[np.uint8]) -> None:
        """Write, sync, rename; see Store."""
        self.write_pieces(key, parts)

    def write_pieces(self, key: str, pieces: Iterable[bytes | NDArray[np.uint8]]) -> None:
        """The same for pieces that come one after another, of which one at a time is in memory."""
        with self._faults(key):
            scratch = self._write_scratch(pieces)
            target = self.root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch, target)
            _sync_folder(target.parent)

    def create(self, key: str, data: bytes) -> None:
        """Write, sync, hard-link to the free name; see Store."""
        with self._faults(key):
            scratch = self._write_scratch((data,))
            target = self.root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(scratch, target)
            except FileExistsError:
                raise ObjectExistsError(f"{target} exists") from None
            finally:
                scratch.unlink()
            _sync_folder(target.parent)

    def _write_scratch(self, parts: Iterable[bytes | NDArray[np.uint8]]) -> Path:
        scratch = self.root / SCRATCH / f"{socket.gethostname()}-{os.getpid()}-{next(_serial)}"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("wb", buffering=0) as file:
                for part in parts:
                    view = memoryview(part).cast("B")
                    written = 0
                    while written < len(view):
                        written += file.write(view[written:])
                os.fsync(file.fileno())
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        return scratch

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every file below; see Store."""
        with self._faults(prefix):
            base = self.root / prefix
            found = [
                ObjectInfo(path.relative_to(self.root).as_posix(), path.stat().st_size)
                for folder, _, names in os.walk(base, onerror=_raise_unless_gone)
                for path in (Path(folder) / name for name in names)
            ]
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        """Remove the file and the folders that it leaves empty; see Store."""
        with self._faults(key):
            target = self.root / key
            target.unlink(missing_ok=True)
            folder = target.parent
            with contextlib.suppress(OSError):  # not empty, or another thread was faster
                while folder != self.root:
                    folder.rmdir()
                    folder = folder.parent

    def size(self, key: str) -> int:
        """Bytes of the file; see Store."""
        with self._faults(key):
            return (self.root / key).stat().st_size

    def local_path(self, key: str) -> Path | None:
        """The file; see Store."""
        return self.root / key

    def close(self) -> None:
        """Nothing is held; see Store."""

    @contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        where = self.root / key
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFoundError(f"no such file: {where}") from error
        except EOFError as error:
            raise StoreError(f"{where}: {error}") from error
        except NotADirectoryError as error:
            raise StoreError(f"{where} goes through a file that is no folder") from error
        except PermissionError as error:
            raise StoreError(f"no permission for {where}: {error.strerror}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                free = _free_bytes(self.root)
                raise StoreError(
                    f"no space to write {where}: {error.strerror}, {free:,} bytes are free there"
                ) from error
            raise StoreError(f"{where}: {error.strerror or error}") from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_dead_scratch(store: LocalStore) -> int:
    """Delete the unfinished writes of processes of this host that are gone; returns how many there were."""
    removed = 0
    for info in store.list(SCRATCH):
        host, process, _ = Path(info.key).name.rsplit("-", 2)
        if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
            store.delete(info.key)
            removed += 1
    return removed
