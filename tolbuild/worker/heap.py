"""Keeping a worker's memory flat however much passes through it."""

from __future__ import annotations

import ctypes

LARGE_BYTES = 1 << 20
"""Blocks of this size and more go back to the system as soon as they are freed."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt, from malloc.h."""


def return_large_blocks() -> bool:
    """Have the C library map large blocks one by one for the rest of this process; whether it can (glibc).

    By itself glibc raises that bound to 32 MB and then keeps blocks of embeddings and rows in a heap a thread, which go
    on growing as they are cut up: a worker took 59 MB instead of 419 over a vocabulary of a million (d 512).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) and libc.mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES))
