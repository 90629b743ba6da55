"""What the bytes of a row are: codes of one type side by side, or packed codes behind their tokens' scales.

Codes of one type that NumPy has are stored as they are; bfloat16, which neither it nor zarr knows, as its bits in
uint16. Codes of 4 bits, and codes of which a layer has a scale by token, are packed into bytes:

    [s_token, fp16, of each layer that has one] [codes of the first layer] [of the second] ...

Two 4-bit codes share a byte, the first in the low half; every layer starts at a whole byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

STORED = {"float32": "float32", "bfloat16": "uint16", "float16": "float16", "int8": "int8"}
"""Type of the stored array by type of code, for codes that are not packed."""

LARGEST_CODE = {"int8": 127, "int4": 7}
"""Integer codes lie between its negative and this, symmetric about zero."""

CODE_TYPES = (*STORED, "int4")
"""Every type of code."""

SCALE_BYTES = 2
"""Bytes of an s_token: fp16. Codes are made with the rounded scale, so its rounding costs nothing."""


@dataclass(frozen=True, kw_only=True)
class RowCoding:
    """The row of one token in a band: `ranks[i]` codes of type `dtype` for its i-th layer.

    token_scaled: by layer, whether the row has a scale that the layer's codes are multiplied with.

    Raises:
        ValueError: an unknown type, or scales of codes that are no integers.
    """

    dtype: str
    ranks: tuple[int, ...]
    token_scaled: tuple[bool, ...]

    def __post_init__(self) -> None:
        if self.dtype not in CODE_TYPES:
            raise ValueError(f"codes have type {self.dtype!r}; known are {', '.join(CODE_TYPES)}")
        if len(self.token_scaled) != len(self.ranks):
            raise ValueError(f"{len(self.ranks)} ranks and {len(self.token_scaled)} marks of layers scaled by token")
        if any(self.token_scaled) and self.dtype not in LARGEST_CODE:
            raise ValueError(f"{self.dtype} codes have no scale by token; {', '.join(LARGEST_CODE)} have")

    @property
    def packed(self) -> bool:
        """Whether the stored array is of bytes rather than of codes."""
        return self.dtype == "int4" or any(self.token_scaled)

    @property
    def item(self) -> str:
        """NumPy's name of the stored array's type."""
        return "uint8" if self.packed else STORED[self.dtype]

    @property
    def num_columns(self) -> int:
        """Codes in a row."""
        return sum(self.ranks)

    @property
    def num_items(self) -> int:
        """Items of the stored array in a row."""
        return self.row_bytes if self.packed else self.num_columns

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._starts[-1]

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """First byte of each layer's codes, and of what would follow."""
        sizes = (self.code_bytes(rank) for rank in self.ranks)
        return tuple(accumulate(sizes, initial=SCALE_BYTES * sum(self.token_scaled)))

    def code_bytes(self, rank: int) -> int:
        """Bytes of one layer's codes."""
        return -(-rank // 2) if self.dtype == "int4" else rank * np.dtype(STORED[self.dtype]).itemsize

    def codes_at(self, place: int) -> slice:
        """Bytes of a row that hold the codes of its layer number `place`."""
        return slice(self._starts[place], self._starts[place + 1])

    def scale_at(self, place: int) -> slice | None:
        """Bytes of a row that hold the layer's s_token; None where it has none."""
        if not self.token_scaled[place]:
            return None
        start = SCALE_BYTES * sum(self.token_scaled[:place])
        return slice(start, start + SCALE_BYTES)

    def columns(self, place: int) -> slice:
        """Columns of a layer among the codes of a row."""
        start = sum(self.ranks[:place])
        return slice(start, start + self.ranks[place])

    def values(self, stored_NI: NDArray[Any], place: int) -> NDArray[Any]:
        """What a layer's codes stand for, before basis, component scales and mean: [N, R], s_token multiplied in.

        fp32, but for codes of one type that NumPy has, which are returned as they are.

        Args:
            stored_NI: rows as stored, [N, num_items] of type `item`.
        """
        if not self.packed:
            codes_NR = stored_NI[:, self.columns(place)]
            return widened(codes_NR) if self.dtype == "bfloat16" else codes_NR
        bytes_NB = stored_NI[:, self.codes_at(place)].view(np.int8)
        codes_NR = (unpacked(bytes_NB)[:, : self.ranks[place]] if self.dtype == "int4" else bytes_NB).astype(np.float32)
        where = self.scale_at(place)
        if where is not None:
            codes_NR *= np.ascontiguousarray(stored_NI[:, where]).view("<f2").astype(np.float32)
        return codes_NR


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """fp32 of bfloat16 values given by their bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def unpacked(bytes_NB: NDArray[np.int8]) -> NDArray[np.int8]:
    """The two 4-bit codes of each byte, low half first: [N, 2 B]."""
    halves = np.empty((*bytes_NB.shape, 2), np.int8)
    np.left_shift(bytes_NB, 4, out=halves[..., 0])
    halves[..., 0] >>= 4
    np.right_shift(bytes_NB, 4, out=halves[..., 1])
    return halves.reshape(len(bytes_NB), -1)
