"""The KV cache: one pool of fixed-size blocks for all sequences, and the tables that say whose each block is.

A block holds `block_size` tokens of every layer. Keys and values lie as [layer, block, kv head, token, head_dim], so
that attention reads a block in place. Blocks in use are kept near the front of the pool (`compact`), which lets the
CPU kernel run over a prefix of the pool without gathering.
"""

from __future__ import annotations

import heapq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]

_SLACK = 1.25
"""The pool is compacted once its used prefix is this many times longer than the blocks in use."""


class KVCache:
    """Block pool of `num_blocks` blocks and tables of `num_rows` sequences of at most `blocks_per_row` blocks.

    `keys` and `values` are [L, num_blocks + 1, Hkv, block_size, head_dim]; the last block is scratch, which padding
    writes to. `table` is int64 [num_rows, blocks_per_row], `counts` the blocks each row holds.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        num_rows: int,
        blocks_per_row: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, num_blocks + 1, num_kv_heads, block_size, head_dim)
        self.keys: Tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.table: IntArray = np.zeros((num_rows, blocks_per_row), np.int64)
        self.counts: IntArray = np.zeros(num_rows, np.int64)
        self._free = list(range(num_blocks))
        self._free_rows = list(range(num_rows))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    @property
    def has_free_row(self) -> bool:
        """Whether another sequence may hold blocks."""
        return bool(self._free_rows)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def span(self) -> int:
        """One more than the highest block in use."""
        used = self.table[np.arange(self.table.shape[1]) < self.counts[:, None]]
        return int(used.max()) + 1 if used.size else 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def take_row(self) -> int:
        """A row of the table for a new sequence; there must be one."""
        return heapq.heappop(self._free_rows)

    def grow(self, row: int, num_tokens: int) -> bool:
        """Let `row` hold `num_tokens` tokens; False, and nothing changed, where the pool lacks the blocks."""
        have = int(self.counts[row])
        need = self.blocks_for(num_tokens) - have
        if need > len(self._free):
            return False
        for index in range(have, have + need):
            self.table[row, index] = heapq.heappop(self._free)
        if need > 0:
            self.counts[row] = have + need
        return True

    def release(self, row: int) -> None:
        """Give back the row and its blocks."""
        for block in self.table[row, : self.counts[row]].tolist():
            heapq.heappush(self._free, block)
        self.table[row] = 0
        self.counts[row] = 0
        heapq.heappush(self._free_rows, row)

    def compact(self) -> int:
        """Move the highest blocks in use into free ones before them where the used prefix has become sparse.

        Returns:
            Blocks moved. The addresses in `table` follow.
        """
        used_count = self.num_blocks - len(self._free)
        if self.span <= _SLACK * used_count + 8:
            return 0
        holes = np.array(sorted(block for block in self._free if block < used_count))
        free = np.zeros(self.num_blocks, bool)
        free[self._free] = True
        movers = np.flatnonzero(~free[used_count:]) + used_count
        assert len(holes) == len(movers), f"{len(holes)} holes before the used prefix, {len(movers)} blocks behind it"
        target, source = torch.from_numpy(holes), torch.from_numpy(movers)
        for pool in (self.keys, self.values):
            pool[:, target.to(pool.device)] = pool[:, source.to(pool.device)]
        renamed = np.arange(self.num_blocks)
        renamed[movers] = holes
        self.table = renamed[self.table]
        self._free = list(range(used_count, self.num_blocks))
        return len(holes)
