"""Rows of pass 1 kept on this machine's disk until pass 2 has used them, one file a chunk.

The folder is shared by all workers of one build on a machine. Whoever works in it holds a shared lock on it, so a
folder that nobody locks belongs to a build that is gone, however it ended, and the next one removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

PREFIX = "tolbuild-rows-"

KEEP_FREE_BYTES = 1 << 30
"""Left free on the disk whatever the limit says."""


class Spool:
    """Rows on local disk under a limit. Safe for many threads and processes.

    Args:
        folder: where to spool; None takes the system's temporary folder.
        run: name of this run of the build, equal for all its workers.
        limit_bytes: most that the files of this run may take on this machine; 0 keeps nothing.
    """

    def __init__(self, folder: Path | None, run: str, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parent = folder or Path(tempfile.gettempdir())
        self.folder = self._parent / f"{PREFIX}{run}"
        self._guard = threading.Lock()
        self._lock: int | None = None
        self._room, self._next_look = 0, 0.0
        if limit_bytes:
            self._hold()
            remove_abandoned(self._parent)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._limit_bytes > 0

    def save(self, layer: int, start: int, rows_ND: Tensor) -> int:
        """Keep fp32 rows [N, D] of tokens from `start`; returns the bytes kept, 0 where there is no room for them."""
        if not self.keeps:
            return 0
        view = memoryview(rows_ND.cpu().numpy()).cast("B")
        if not self._has_room(len(view)):
            return 0
        target = self._path(layer, start)
        part = target.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("wb", buffering=0) as file:
                done = 0
                while done < len(view):
                    done += file.write(view[done:])
            os.replace(part, target)
        except OSError:
            part.unlink(missing_ok=True)
            return 0
        return len(view)

    def load(self, layer: int, start: int, out_ND: Tensor) -> Tensor | None:
        """Rows of tokens from `start` in `out` [N, D]; None where they are not kept here, whole and in that number."""
        host_ND = out_ND if out_ND.device.type == "cpu" else torch.empty(out_ND.shape)
        view = memoryview(host_ND.numpy()).cast("B")
        try:
            with self._path(layer, start).open("rb", buffering=0) as file:
                done = 0
                while done < len(view):
                    got = file.readinto(view[done:])
                    if not got:
                        return None
                    done += got
        except FileNotFoundError:
            return None
        return out_ND if host_ND is out_ND else out_ND.copy_(host_ND)

    def drop(self, layer: int, start: int) -> None:
        """Forget rows that pass 2 has used."""
        self._path(layer, start).unlink(missing_ok=True)

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes more stay under the limit and leave the disk some space, by a look once a second."""
        with self._guard:
            now = time.monotonic()
            if now >= self._next_look:
                usage = os.statvfs(self._parent)
                free = usage.f_bavail * usage.f_frsize - KEEP_FREE_BYTES
                self._room, self._next_look = min(self._limit_bytes - self._held_bytes(), free), now + 1.0
            if size > self._room:
                return False
            self._room -= size
            return True

    def _held_bytes(self) -> int:
        if not self.folder.is_dir():
            return 0
        held = 0
        for entry in os.scandir(self.folder):
            try:
                held += entry.stat().st_size
            except FileNotFoundError:
                continue
        return held

    def close(self) -> None:
        """Let go of the folder; the last worker to do so removes it."""
        with self._guard:
            descriptor, self._lock = self._lock, None
        if descriptor is not None:
            os.close(descriptor)
            _remove_if_free(self.folder)

    def _path(self, layer: int, start: int) -> Path:
        return self.folder / f"{layer:03d}-{start:09d}"

    def _hold(self) -> None:
        with self._guard:
            while self._lock is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(self.folder, os.O_RDONLY)
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    current = os.path.samestat(os.fstat(descriptor), self.folder.stat())
                except FileNotFoundError:
                    continue
                if current:
                    self._lock = descriptor
                else:
                    os.close(descriptor)


def remove_abandoned(parent: Path) -> int:
    """Remove the folders of builds that are gone; returns how many there were."""
    return sum(_remove_if_free(folder) for folder in parent.glob(f"{PREFIX}*"))


def _remove_if_free(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
