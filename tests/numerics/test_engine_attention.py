"""Attention over the block pool against its plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tolserve.engine.attention import InPlaceDecode, paged_attention_reference


def random_pool(
    num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("num_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("sparse", [False, True], ids=["in place", "gathered"])
def test_decode_of_a_ragged_batch(num_kv_heads: int, sparse: bool) -> None:
    block_size, width = 8, 6
    lengths = np.array([1, 8, 9, 41, 48, 16])
    counts = -(-lengths // block_size)
    num_blocks = 200 if sparse else int(counts.sum()) + 3
    order = np.random.default_rng(1).permutation(num_blocks)
    table = np.zeros((len(lengths), width), np.int64)
    taken = 0
    for row, count in enumerate(counts):
        table[row, :count] = order[taken : taken + count]
        taken += count
    keys, values = random_pool(num_blocks, num_kv_heads, block_size, 16)
    queries = torch.randn(len(lengths), 6, 16, generator=torch.Generator().manual_seed(2))
    plan = InPlaceDecode.plan(table, lengths, block_size, torch.float32)
    assert (plan.pool_index is not None) == sparse
    expected = paged_attention_reference(queries, keys, values, torch.from_numpy(table), torch.from_numpy(lengths))
    torch.testing.assert_close(plan(queries, keys, values), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_triton_decode(batch: int) -> None:
    from tolserve.engine.paged_triton import paged_attention

    block_size, width = 32, 9
    keys, values = (pool.cuda().bfloat16() for pool in random_pool(batch * width + 1, 4, block_size, 60))
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(batch, 8, 60, generator=generator).cuda().bfloat16()
    table = torch.randperm(batch * width, generator=generator).view(batch, width).cuda()
    lengths = torch.randint(1, block_size * width + 1, (batch,), generator=generator).cuda()
    expected = paged_attention_reference(queries, keys, values, table, lengths)
    found = paged_attention(queries, keys, values, table, lengths)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
