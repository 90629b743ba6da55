"""Which blocks of token ids a group of memory nodes holds: block b belongs to partition b mod P.

Ranges of ids would put every frequent token on one node, since ids are given out by frequency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.spec import Ids

BLOCK_ROWS = 64
"""Consecutive ids in one block, the unit of placement."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Partition `index` of `count`.

    Raises:
        ValueError: there is no such partition.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"partition {self.index}/{self.count}: the index must be in [0, {self.count})")

    @classmethod
    def parse(cls, text: str) -> Partition:
        """From "i/P", i counted from 0.

        Raises:
            ValueError: it is not of that form.
        """
        index, slash, count = text.partition("/")
        if not slash or not index.isdigit() or not count.isdigit():
            raise ValueError(f"partition {text!r} is not of the form i/P, for example 0/2")
        return cls(index=int(index), count=int(count))

    def blocks(self, vocab_size: int) -> Ids:
        """Numbers of its blocks, ascending."""
        return np.arange(self.index, -(-vocab_size // BLOCK_ROWS), self.count, dtype=np.int64)

    def owns(self, ids: Ids) -> NDArray[np.bool_]:
        """For each id whether it is here."""
        owned: NDArray[np.bool_] = (ids // BLOCK_ROWS) % self.count == self.index
        return owned

    def local_rows(self, ids: Ids) -> Ids:
        """Where the rows of own ids lie when the partition's blocks are put one after another."""
        if self.count == 1:
            return ids
        return ids // (BLOCK_ROWS * self.count) * BLOCK_ROWS + ids % BLOCK_ROWS
