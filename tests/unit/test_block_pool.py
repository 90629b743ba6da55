"""Block accounting under any order of events, against a plain model of who holds what."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tolserve.engine.kv_cache import KVCache

BLOCK_SIZE = 4
NUM_BLOCKS = 24
NUM_ROWS = 5


class Blocks(RuleBasedStateMachine):
    """Rows grow, publish, share and end, the pool is compacted; each row's block holds what was written for it.

    A block's content is one number, written when the block is taken; `contents` has those of each row, `published`
    the content of each key. A key that is found must lead to its content.
    """

    @initialize()
    def begin(self) -> None:
        self.cache = KVCache(
            num_layers=1,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            num_kv_heads=1,
            head_dim=1,
            num_rows=NUM_ROWS,
            blocks_per_row=8,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.contents: dict[int, list[int]] = {}
        self.published: dict[bytes, int] = {}
        self.next_content = 1

    def write(self, row: int) -> None:
        for block in self.cache.table[row, len(self.contents[row]) : self.cache.counts[row]].tolist():
            self.cache.keys[:, block] = self.cache.values[:, block] = float(self.next_content)
            self.contents[row].append(self.next_content)
            self.next_content += 1

    def grow(self, row: int, num_blocks: int) -> None:
        free = self.cache.num_free_blocks
        wanted = min(8, len(self.contents[row]) + num_blocks)
        assert self.cache.grow(row, wanted * BLOCK_SIZE) == (wanted - len(self.contents[row]) <= free)
        self.write(row)

    @precondition(lambda self: self.cache.has_free_row)
    @rule(num_blocks=st.integers(1, 8), num_shared=st.integers(0, 4), data=st.data())
    def admit(self, num_blocks: int, num_shared: int, data: st.DataObject) -> None:
        found = {key: block for key in self.published if (block := self.cache.pool.find(key)) is not None}
        chosen = data.draw(st.permutations(sorted(found)))[:num_shared]
        row = self.cache.take_row()
        self.cache.share(row, [found[key] for key in chosen])
        self.contents[row] = [self.published[key] for key in chosen]
        self.grow(row, num_blocks)

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), num_blocks=st.integers(1, 3))
    def grow_one(self, data: st.DataObject, num_blocks: int) -> None:
        self.grow(data.draw(st.sampled_from(sorted(self.contents))), num_blocks)

    @precondition(lambda self: any(self.contents.values()))
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(row for row, found in self.contents.items() if found)))
        index = data.draw(st.integers(0, len(self.contents[row]) - 1))
        key = b"%d" % self.contents[row][index]
        self.cache.pool.publish(int(self.cache.table[row, index]), key)
        self.published[key] = self.contents[row][index]
        assert self.cache.pool.find(key) is not None

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.contents)))
        others = {one for other, found in self.contents.items() if other != row for one in found}
        expected = len(set(self.contents.pop(row)) - others)
        assert self.cache.num_freed_by([row]) == expected
        free = self.cache.num_free_blocks
        self.cache.release(row)
        assert self.cache.num_free_blocks == free + expected

    @rule()
    def compact(self) -> None:
        if self.cache.compact():
            assert self.cache.span == NUM_BLOCKS - self.cache.num_free_blocks

    @invariant()
    def every_block_is_where_it_is_looked_for(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        for row, expected in self.contents.items():
            blocks = torch.from_numpy(cache.table[row, : cache.counts[row]])
            for pool in (cache.keys, cache.values):
                assert pool[0, blocks, 0, :, 0].tolist() == [[float(one)] * BLOCK_SIZE for one in expected]
        for key, content in self.published.items():
            block = cache.pool.find(key)
            if block is not None:
                assert (cache.keys[0, block] == content).all()
        held = {one for found in self.contents.values() for one in found}
        assert cache.num_free_blocks == NUM_BLOCKS - len(held)
        in_use = [set(cache.table[row, : cache.counts[row]].tolist()) for row in self.contents]
        assert len(set().union(*in_use)) == len(held)
        for block in range(NUM_BLOCKS):
            assert cache.pool.num_holders(block) == sum(block in blocks for blocks in in_use)


Blocks.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestBlocks = Blocks.TestCase


def test_of_a_prefix_the_beginning_is_kept_longest() -> None:
    machine = Blocks()
    machine.begin()
    cache = machine.cache
    row = cache.take_row()
    assert cache.grow(row, 8 * BLOCK_SIZE)
    for index, block in enumerate(cache.table[row, :8].tolist()):
        cache.pool.publish(block, b"%d" % index)
    cache.release(row)
    assert cache.pool.num_idle == 8
    for _ in range(2):
        assert cache.grow(cache.take_row(), 8 * BLOCK_SIZE)
    assert cache.pool.num_idle == 8, "blank blocks go first"
    assert cache.grow(cache.take_row(), 5 * BLOCK_SIZE)
    assert [cache.pool.find(b"%d" % index) is not None for index in range(8)] == [True] * 3 + [False] * 5
