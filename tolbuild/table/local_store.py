"""A folder of this machine as a store: positioned reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tolbuild.table.errors import ObjectExistsError, ObjectNotFoundError, StoreError
from tolbuild.table.positioned import read_at
from tolbuild.table.process import machine_name, start_ticks
from tolbuild.table.store import ObjectInfo, Offsets

SCRATCH = "_build/tmp"
"""Where a write stands until it is whole; files are named after machine and process, so that a dead one's are known."""

_FOLDER_TRIES = 20
"""Times that a folder is made anew when deletions beside it take it away."""

_serial = itertools.count()

T = TypeVar("T")


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
            _into_folder(self.root / key, lambda target: os.replace(scratch, target))

    def create(self, key: str, data: bytes) -> None:
        """Write, sync, hard-link to the free name; see Store."""
        with self._faults(key):
            scratch = self._write_scratch((data,))
            try:
                _into_folder(self.root / key, lambda target: os.link(scratch, target))
            except FileExistsError:
                raise ObjectExistsError(f"{self.root / key} exists") from None
            finally:
                scratch.unlink()

    def _write_scratch(self, parts: Iterable[bytes | NDArray[np.uint8]]) -> Path:
        scratch = self.root / SCRATCH / f"{scratch_owner()}-{next(_serial)}"
        try:
            with _into_folder(scratch, lambda path: path.open("wb", buffering=0), sync=False) as file:
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
                info
                for folder, _, names in os.walk(base, onerror=_raise_unless_gone)
                for name in names
                if (info := self._info(Path(folder) / name)) is not None
            ]
        return sorted(found, key=lambda info: info.key)

    def _info(self, path: Path) -> ObjectInfo | None:
        """What a listing says of a file; None of one that has just gone."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        return ObjectInfo(path.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime)

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


def _into_folder(target: Path, put: Callable[[Path], T], *, sync: bool = True) -> T:
    """Put something at a path whose folder is made first, again if another process removes the empty one meanwhile."""
    for left in reversed(range(_FOLDER_TRIES)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            done = put(target)
            if sync:
                _sync_folder(target.parent)
        except FileNotFoundError:
            if not left:
                raise
        else:
            return done
    raise AssertionError("the last try returns or raises")


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


def scratch_owner() -> str:
    """How the unfinished writes of this process begin."""
    machine = hashlib.sha256(machine_name().encode()).hexdigest()[:8]
    return f"{socket.gethostname()}.{machine}-{os.getpid()}"


def writer_lives(key: str) -> bool | None:
    """Whether the process behind an unfinished write is there; None where it is of another machine."""
    machine, _, process = key.rpartition("/")[2].rpartition("-")[0].rpartition("-")
    if not machine_name() or machine != scratch_owner().rpartition("-")[0] or not process.isdecimal():
        return None
    return start_ticks(int(process)) != 0


def remove_dead_scratch(store: LocalStore) -> int:
    """Delete the unfinished writes of processes of this machine that are gone; returns how many there were."""
    dead = [info.key for info in store.list(SCRATCH) if writer_lives(info.key) is False]
    for key in dead:
        store.delete(key)
    return len(dead)
