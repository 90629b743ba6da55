"""The KV cache: one pool of fixed-size blocks for all sequences, and the tables that say whose each block is.

A block holds `block_size` tokens of every layer; rows with the same prefix can share its blocks (`prefix`). Keys and
values lie as [layer, block, kv head, token, head_dim], so that attention reads a block in place. Blocks in use are kept
near the front of the pool (`compact`), which lets the CPU kernel run over a prefix of the pool without gathering.
"""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolserve.engine.block_pool import BlockPool

IntArray = NDArray[np.int64]

_SLACK = 1.25
"""The pool is compacted once its used prefix is this many times longer than the blocks in use."""


class KVCache:
    """Block pool of `num_blocks` blocks and tables of `num_rows` sequences of at most `blocks_per_row` blocks.

    `keys` and `values` are [L, num_blocks + 1, Hkv, block_size, head_dim]; the last block is scratch, which padding
    writes to. `table` is int64 [num_rows, blocks_per_row], `counts` the blocks each row holds, `pool` who holds which.
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
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.table: IntArray = np.zeros((num_rows, blocks_per_row), np.int64)
        self.counts: IntArray = np.zeros(num_rows, np.int64)
        self._free_rows = list(range(num_rows))

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool, without the scratch block."""
        return self.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds; some may keep a prefix that can be reused."""
        return self.pool.num_free

    @property
    def has_free_row(self) -> bool:
        """Whether another sequence may hold blocks."""
        return bool(self._free_rows)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def _in_use(self) -> NDArray[np.bool_]:
        """Which entries of `table` are held blocks."""
        held: NDArray[np.bool_] = np.arange(self.table.shape[1]) < self.counts[:, None]
        return held

    @property
    def span(self) -> int:
        """One more than the highest block in use."""
        used = self.table[self._in_use]
        return int(used.max()) + 1 if used.size else 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def take_row(self) -> int:
        """A row of the table for a new sequence; there must be one."""
        return heapq.heappop(self._free_rows)

    def share(self, row: int, blocks: list[int]) -> None:
        """Let a new row begin with blocks that `pool.find` gave."""
        for block in blocks:
            self.pool.share(block)
        self.table[row, : len(blocks)] = blocks
        self.counts[row] = len(blocks)

    def grow(self, row: int, num_tokens: int) -> bool:
        """Let `row` hold `num_tokens` tokens; False, and nothing changed, where the pool lacks the blocks."""
        have = int(self.counts[row])
        need = self.blocks_for(num_tokens) - have
        if need > self.pool.num_free:
            return False
        for index in range(have, have + need):
            self.table[row, index] = self.pool.take()
        if need > 0:
            self.counts[row] = have + need
        return True

    def release(self, row: int) -> None:
        """Give back the row and its blocks, the last first: of a prefix, the beginning is kept longest."""
        for block in self.table[row, : self.counts[row]][::-1].tolist():
            self.pool.give_back(block)
        self.table[row] = 0
        self.counts[row] = 0
        heapq.heappush(self._free_rows, row)

    def num_freed_by(self, rows: list[int]) -> int:
        """Blocks that become free when all these rows are released."""
        held = Counter(block for row in rows for block in self.table[row, : self.counts[row]].tolist())
        return sum(count == self.pool.num_holders(block) for block, count in held.items())

    def compact(self) -> int:
        """Move the highest blocks in use into free ones before them where the used prefix has become sparse.

        Returns:
            Blocks moved. The addresses in `table` follow; prefixes that lay in the free ones are kept behind.
        """
        used_count = self.num_blocks - self.pool.num_free
        if self.span <= _SLACK * used_count + 8:
            return 0
        used = np.zeros(self.num_blocks, bool)
        used[self.table[self._in_use]] = True
        holes = np.flatnonzero(~used[:used_count])
        movers = np.flatnonzero(used[used_count:]) + used_count
        assert len(holes) == len(movers), f"{len(holes)} holes before the used prefix, {len(movers)} blocks behind it"
        kept = np.array(self.pool.exchange(movers.tolist(), holes.tolist()), bool)
        target, source = (torch.from_numpy(blocks).to(self.keys.device) for blocks in (holes, movers))
        back_target, back_source = (torch.from_numpy(blocks[kept]).to(self.keys.device) for blocks in (movers, holes))
        for pool in (self.keys, self.values):
            saved = pool[:, back_source]
            pool[:, target] = pool[:, source]
            pool[:, back_target] = saved
        renamed = np.arange(self.num_blocks)
        renamed[movers] = holes
        self.table = renamed[self.table]
        return len(holes)
