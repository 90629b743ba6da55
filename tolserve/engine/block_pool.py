"""Blocks of the KV cache by their use: held by rows, free, or free but still with the keys and values of a prefix.

A full block can have a key, which names its tokens and all before them (`prefix`). Rows that find the key share the
block; when the last lets go of it, it keeps what it holds until it is the longest unused block and a new one is needed.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Accounts of `num_blocks` blocks; knows nothing of what lies in them."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._blank = list(range(num_blocks))
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that no row holds, those that keep a prefix among them."""
        return len(self._blank) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Free blocks that keep a prefix."""
        return len(self._idle)

    def num_holders(self, block: int) -> int:
        """Rows that hold `block`."""
        return self._num_holders[block]

    def take(self) -> int:
        """A block for new tokens, the first blank one or the longest unused; there must be a free one."""
        if self._blank:
            block = heapq.heappop(self._blank)
        else:
            key, _ = self._idle.popitem(last=False)
            block = self._block_of.pop(key)
            del self._key_of[block]
        self._num_holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more row holds a block that `find` gave."""
        if not self._num_holders[block]:
            del self._idle[self._key_of[block]]
        self._num_holders[block] += 1

    def give_back(self, block: int) -> None:
        """One row less holds the block; of blocks given back, the first are the first to be used again."""
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            return
        key = self._key_of.get(block)
        if key is None:
            heapq.heappush(self._blank, block)
        else:
            self._idle[key] = None

    def find(self, key: bytes) -> int | None:
        """The block with `key`, held or not."""
        return self._block_of.get(key)

    def publish(self, block: int, key: bytes) -> None:
        """Let `find` find a full block that is held; where another has the key already, that one stays."""
        assert self._num_holders[block] > 0, f"block {block} is held by no row"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def exchange(self, held: Sequence[int], free: Sequence[int]) -> list[bool]:
        """Let `free[i]`, which no row holds, and `held[i]`, whose rows hold the other from now on, change places.

        Returns:
            For each whether `held[i]` now keeps a prefix, whose keys and values must follow.
        """
        blank = set(self._blank)
        keeps = []
        for old, new in zip(held, free, strict=True):
            keeps.append(new not in blank)
            self._num_holders[new], self._num_holders[old] = self._num_holders[old], 0
            if new in blank:
                blank.remove(new)
                blank.add(old)
            keys = self._key_of.pop(old, None), self._key_of.pop(new, None)
            for block, key in zip((new, old), keys, strict=True):
                if key is not None:
                    self._key_of[block] = key
                    self._block_of[key] = block
        self._blank = sorted(blank)
        return keeps
