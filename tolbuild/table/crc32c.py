"""CRC-32C of buffers, of the rows of an array, and of a whole from the checksums of its rows.

google-crc32c does the work where it is installed. Without it (tables are also read where there is only NumPy) the same
sums come from table look-ups over many pieces side by side, some ten times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.uint32]
Bytes = NDArray[np.uint8]

_POLYNOMIAL = 0x82F63B78
_ONES = 0xFFFFFFFF
_LANE_BYTES = 64
"""Pieces that the NumPy way sums side by side."""
_AT_ONCE_BYTES = 8 << 20


def value(data: bytes | Bytes) -> int:
    """CRC-32C of bytes or of a contiguous uint8 array."""
    native = _native()
    if native is not None:
        return native(data)
    flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    whole = len(flat) // _AT_ONCE_BYTES * _AT_ONCE_BYTES
    pieces = of_rows(flat[:whole].reshape(-1, _AT_ONCE_BYTES))
    tail = int(_numpy_rows(flat[None, whole:])[0])
    return joined(of_joined(pieces, _AT_ONCE_BYTES), tail, len(flat) - whole)


def of_rows(rows: Bytes) -> Sums:
    """CRC-32C of every row of a contiguous uint8 array [n, row_bytes]; uint32 [n]."""
    native = _native()
    if native is not None:
        return np.fromiter(map(native, rows), np.uint32, len(rows))
    step = max(1, _AT_ONCE_BYTES // max(1, rows.shape[1]))
    parts = [_numpy_rows(rows[start : start + step]) for start in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint32)


def joined(first: int, second: int, second_bytes: int) -> int:
    """CRC-32C of two buffers one after another, from their sums and the second one's length."""
    return int(_shift(np.array([first], np.uint32), second_bytes)[0]) ^ second


def of_joined(sums: Sums, piece_bytes: int) -> int:
    """CRC-32C of equally long pieces one after another, from their own sums."""
    total, total_bytes = 0, 0
    while len(sums):
        if len(sums) % 2:
            total = joined(int(sums[-1]), total, total_bytes)
            total_bytes += piece_bytes
            sums = sums[:-1]
        sums = _shift(sums[0::2], piece_bytes) ^ sums[1::2]
        piece_bytes *= 2
    return total


@cache
def _native() -> Callable[[bytes | Bytes], int] | None:
    try:
        import google_crc32c
    except ImportError:
        return None
    native: Callable[[bytes | Bytes], int] = google_crc32c.value
    return native if google_crc32c.implementation == "c" else None


@lru_cache(maxsize=256)
def _shift_columns(num_bytes: int) -> tuple[int, ...]:
    """What `num_bytes` zero bytes make of each single bit of a sum: a 32 x 32 matrix over GF(2), by columns."""
    if num_bytes == 0:
        return tuple(1 << bit for bit in range(32))
    if num_bytes % 2:
        return tuple(_feed_zero(column) for column in _shift_columns(num_bytes - 1))
    half = _shift_columns(num_bytes // 2)
    return tuple(_apply(half, column) for column in half)


def _feed_zero(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
    return register


def _apply(columns: tuple[int, ...], register: int) -> int:
    result = 0
    for column in columns:
        if register & 1:
            result ^= column
        register >>= 1
    return result


@lru_cache(maxsize=64)
def _shift_tables(num_bytes: int) -> NDArray[np.uint32]:
    """[4, 256]: the shift of every value of each of a sum's four bytes."""
    columns = np.array(_shift_columns(num_bytes), np.uint32).reshape(4, 8, 1)
    bits = np.arange(256, dtype=np.uint32)[None, :] >> np.arange(8, dtype=np.uint32)[:, None] & 1
    tables: NDArray[np.uint32] = np.bitwise_xor.reduce(columns * bits[None], axis=1)
    return tables


def _shift(sums: Sums, num_bytes: int) -> Sums:
    """The sums after `num_bytes` zero bytes more."""
    if num_bytes == 0:
        return sums
    first, second, third, fourth = _shift_tables(num_bytes)
    shifted: Sums = first[sums & 255] ^ second[sums >> 8 & 255] ^ third[sums >> 16 & 255] ^ fourth[sums >> 24]
    return shifted


def _numpy_rows(rows: Bytes) -> Sums:
    """Without google-crc32c. Zeros in front change no register that starts at zero, so rows are filled up there."""
    count, row_bytes = rows.shape
    lanes = -(-row_bytes // _LANE_BYTES)
    padded = np.zeros((count, lanes * _LANE_BYTES), np.uint8)
    padded[:, lanes * _LANE_BYTES - row_bytes :] = rows
    words = padded.view("<u4").reshape(count, lanes, _LANE_BYTES // 4)
    registers = np.zeros((count, lanes), np.uint32)
    for index in range(_LANE_BYTES // 4):
        registers = _shift(registers ^ words[:, :, index], 4)
    piece_bytes = _LANE_BYTES
    while registers.shape[1] > 1:
        if registers.shape[1] % 2:
            registers = np.concatenate((np.zeros((count, 1), np.uint32), registers), axis=1)
        registers = _shift(registers[:, 0::2], piece_bytes) ^ registers[:, 1::2]
        piece_bytes *= 2
    raw = registers[:, 0] if lanes else np.zeros(count, np.uint32)
    return raw ^ _shift(np.array([_ONES], np.uint32), row_bytes) ^ np.uint32(_ONES)
