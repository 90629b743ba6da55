"""Decode attention on a GPU: one Triton kernel over the block table. Imported only where there is a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

_TOKENS_PER_TILE = 64
_PROGRAMS = 128
"""Programs that fill a GPU; fewer (sequence, head) pairs are split along the sequence to reach it."""

_MAX_SPLITS = 8


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _decode_kernel(  # type: ignore[no-untyped-def]  # a kernel's arguments are pointers and strides
    query, keys, values, table, lengths, out, lse,
    query_batch_stride, query_head_stride, table_stride, scale,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_PAD: tl.constexpr, NUM_SPLITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One (sequence, head, split): online softmax over its share of the tokens, tile by tile."""
    batch, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
    dims = tl.arange(0, HEAD_PAD)
    inside = dims < HEAD_DIM
    q = tl.load(query + batch * query_batch_stride + head * query_head_stride + dims, mask=inside, other=0.0)
    q = q.to(tl.float32) * scale
    length = tl.load(lengths + batch)
    share = tl.cdiv(tl.cdiv(length, TILE), NUM_SPLITS) * TILE
    first = split * share
    last = tl.minimum(first + share, length)
    peak = tl.full([], -1.0e30, tl.float32)
    mass = tl.full([], 0.0, tl.float32)
    mixed = tl.zeros([HEAD_PAD], tl.float32)
    for start in range(first, last, TILE):
        places = start + tl.arange(0, TILE)
        seen = places < last
        blocks = tl.load(table + batch * table_stride + places // BLOCK_SIZE, mask=seen, other=0)
        rows = (blocks * NUM_KV_HEADS + kv_head) * BLOCK_SIZE + places % BLOCK_SIZE
        address = rows[:, None] * HEAD_DIM + dims[None, :]
        both = seen[:, None] & inside[None, :]
        k = tl.load(keys + address, mask=both, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(k * q[None, :], axis=1), -1.0e30)
        new_peak = tl.maximum(peak, tl.max(scores, axis=0))
        weights = tl.where(seen, tl.exp(scores - new_peak), 0.0)
        shrink = tl.exp(peak - new_peak)
        v = tl.load(values + address, mask=both, other=0.0).to(tl.float32)
        mixed = mixed * shrink + tl.sum(v * weights[:, None], axis=0)
        mass = mass * shrink + tl.sum(weights, axis=0)
        peak = new_peak
    part = (batch * NUM_SPLITS + split) * NUM_HEADS + head
    empty = mass == 0.0
    tl.store(out + part * HEAD_DIM + dims, mixed / tl.where(empty, 1.0, mass), mask=inside)
    tl.store(lse + part, tl.where(empty, -1.0e30, peak + tl.log(tl.where(empty, 1.0, mass))))


def paged_attention(queries_BHE: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor) -> Tensor:
    """As `attention.paged_attention_reference`; table and lengths are int64 on the device, lengths at least 1.

    Allocates nothing that depends on the lengths, so it can be captured in a graph.
    """
    batch, num_heads, head_dim = queries_BHE.shape
    _, num_kv_heads, block_size, _ = keys.shape
    num_splits = max(1, min(_MAX_SPLITS, _PROGRAMS // (batch * num_heads)))
    out = torch.empty(batch, num_splits, num_heads, head_dim, dtype=torch.float32, device=keys.device)
    lse = torch.empty(batch, num_splits, num_heads, dtype=torch.float32, device=keys.device)
    _decode_kernel[(batch, num_heads, num_splits)](
        queries_BHE, keys, values, table_BM, lengths_B, out, lse,
        queries_BHE.stride(0), queries_BHE.stride(1), table_BM.stride(0), head_dim**-0.5,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, BLOCK_SIZE=block_size, HEAD_DIM=head_dim,
        HEAD_PAD=triton.next_power_of_2(head_dim), NUM_SPLITS=num_splits, TILE=_TOKENS_PER_TILE,
    )  # fmt: skip
    if num_splits == 1:
        return out[:, 0].to(queries_BHE.dtype)
    return (out * lse.softmax(1).unsqueeze(-1)).sum(1).to(queries_BHE.dtype)


@dataclass(frozen=True, kw_only=True)
class PagedDecode:
    """`DecodeAttention` of one step by the kernel: block table [B, M] and lengths [B], int64 on the device."""

    table_BM: Tensor
    lengths_B: Tensor

    def __call__(self, queries_BHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Mixed values [B, H, E]."""
        return paged_attention(queries_BHE, keys, values, self.table_BM, self.lengths_B)
