"""Positioned reads of many ranges: what is in the page cache is copied at once, the rest is read ahead all together."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_CAN_ANNOUNCE = hasattr(os, "posix_fadvise")


def read_at(descriptors: Sequence[int], starts: Sequence[int], outs: Sequence[NDArray[np.uint8]]) -> None:
    """Fill each of `outs` from its place in its file.

    The first pass takes what needs no disk. What is left is announced to the kernel before any of it is waited for, so
    a disk that works on many requests at a time gets them all.

    Raises:
        EOFError: a file ends before a range does.
        OSError: a read failed.
    """
    late: list[tuple[int, int, memoryview]] = []
    preadv = os.preadv
    for descriptor, start, out in zip(descriptors, starts, outs, strict=True):
        try:
            got = preadv(descriptor, (out,), start, _NOWAIT)
        except OSError:  # not in the cache, or a filesystem that cannot say so; a real fault comes again below
            got = 0
        if got != out.nbytes:
            late.append((descriptor, start + got, memoryview(out).cast("B")[got:]))
    for descriptor, start, rest in late if _CAN_ANNOUNCE else ():
        os.posix_fadvise(descriptor, start, len(rest), os.POSIX_FADV_WILLNEED)
    for descriptor, start, rest in late:
        _read_rest(descriptor, start, rest)


def _read_rest(descriptor: int, start: int, rest: memoryview) -> None:
    done = 0
    while done < len(rest):
        got = os.preadv(descriptor, (rest[done:],), start + done)
        if not got:
            raise EOFError(f"the file ends at byte {start + done}; bytes up to {start + len(rest)} were asked for")
        done += got
