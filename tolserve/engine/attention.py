"""Attention over the block pool: decoding in place, prompts in chunks, and a plain reference for both.

Decoding on the CPU treats every block of the pool's used prefix as one small attention problem with its
sequence's query, and joins a sequence's blocks by their log-sum-exps:

    out = sum_b softmax_b(lse_b) * out_b

so nothing is gathered and one call serves a batch of any lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tolserve.engine.batch import ChunkGroup, IntArray


class DecodeAttention(Protocol):
    """Attention of one new token a sequence to its own blocks."""

    def __call__(self, queries_BHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Mixed values [B, H, E] of one layer, whose pools are keys and values [blocks, Hkv, block size, E]."""


def paged_attention_reference(
    queries_BHE: Tensor, keys: Tensor, values: Tensor, table_BM: Tensor, lengths_B: Tensor
) -> Tensor:
    """What every decode kernel computes, one sequence at a time in fp32: [B, H, E] in the queries' dtype."""
    out = []
    for query_HE, blocks, length in zip(queries_BHE, table_BM, lengths_B.tolist(), strict=True):
        k_HSE = keys[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()
        v_HSE = values[blocks].transpose(0, 1).flatten(1, 2)[:, :length].float()
        repeat = query_HE.shape[0] // k_HSE.shape[0]
        k_HSE, v_HSE = k_HSE.repeat_interleave(repeat, 0), v_HSE.repeat_interleave(repeat, 0)
        scores_HS = torch.einsum("he,hse->hs", query_HE.float(), k_HSE) / query_HE.shape[-1] ** 0.5
        out.append(torch.einsum("hs,hse->he", scores_HS.softmax(-1), v_HSE))
    return torch.stack(out).to(queries_BHE.dtype)


@dataclass(frozen=True, kw_only=True)
class InPlaceDecode:
    """Decode attention of one step on the CPU; made once a step, called once a layer.

    Attributes:
        pool_index: blocks to gather first, one that sequences share once for each; None where the pool's prefix of
            `span` blocks is read in place.
        span: blocks attended to.
        owner_P: for each of them the sequence whose query it meets.
        bias_P: additive mask [P, 1, 1, block size]; None where every block is full.
        table_BM: positions in P of each sequence's blocks.
        pad_BM1: 0 for those, -inf behind them; None where there is nothing behind.
    """

    pool_index: Tensor | None
    span: int
    owner_P: Tensor
    bias_P: Tensor | None
    table_BM: Tensor
    pad_BM1: Tensor | None

    @classmethod
    def plan(cls, table_BM: IntArray, lengths_B: IntArray, block_size: int, dtype: torch.dtype) -> InPlaceDecode:
        """Prepare a step from each sequence's blocks and lengths (tokens to attend to)."""
        counts_B = -(-lengths_B // block_size)
        inside_BM = np.arange(table_BM.shape[1]) < counts_B[:, None]
        blocks = table_BM[inside_BM]
        span = int(blocks.max()) + 1
        gathered = len(blocks) * 2 < span or bool((np.bincount(blocks) > 1).any())
        if gathered:
            places = np.zeros_like(table_BM)
            places[inside_BM] = np.arange(len(blocks))
            table_BM, span = places, len(blocks)
        owner_P = np.zeros(span, np.int64)
        owner_P[table_BM[inside_BM]] = np.repeat(np.arange(len(lengths_B)), counts_B)
        filled_P = np.full(span, block_size)
        filled_P[table_BM[np.arange(len(lengths_B)), counts_B - 1]] = lengths_B - (counts_B - 1) * block_size
        hidden = torch.from_numpy(np.arange(block_size) >= filled_P[:, None])
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
        pad = torch.zeros(inside_BM.shape, dtype=dtype).masked_fill_(torch.from_numpy(~inside_BM), -torch.inf)
        return cls(
            pool_index=torch.from_numpy(blocks) if gathered else None,
            span=span,
            owner_P=torch.from_numpy(owner_P),
            bias_P=bias if (filled_P < block_size).any() else None,
            table_BM=torch.from_numpy(np.ascontiguousarray(table_BM)),
            pad_BM1=None if inside_BM.all() else pad[..., None],
        )

    def __call__(self, queries_BHE: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Mixed values [B, H, E]; see `DecodeAttention`."""
        num_heads, head_dim = queries_BHE.shape[1:]
        if self.pool_index is None:
            keys, values = keys[: self.span], values[: self.span]
        else:
            keys, values = keys.index_select(0, self.pool_index), values.index_select(0, self.pool_index)
        num_kv_heads = keys.shape[1]
        queries = queries_BHE.index_select(0, self.owner_P).view(self.span, num_kv_heads, -1, head_dim)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, False, attn_mask=self.bias_P
        )
        if self.table_BM.shape[1] == 1:
            mixed: Tensor = out.reshape(self.span, num_heads, head_dim).index_select(0, self.table_BM[:, 0])
            return mixed
        scores = lse.reshape(self.span, num_heads)[self.table_BM]
        if self.pad_BM1 is not None:
            scores = scores + self.pad_BM1
        weights_BMH1 = scores.softmax(1).unsqueeze(-1)
        joined: Tensor = (out.reshape(self.span, num_heads, head_dim)[self.table_BM] * weights_BMH1).sum(1)
        return joined


@dataclass(frozen=True, kw_only=True)
class ChunkTensors:
    """A group of chunks on the device: tokens start .. start + count * length of the step.

    `table` [count * blocks] and `mask_TS` (True: seen) are there where context precedes the chunks.
    """

    start: int
    count: int
    length: int
    context: int
    table: Tensor | None
    mask_TS: Tensor | None

    @classmethod
    def of(cls, group: ChunkGroup, device: torch.device) -> ChunkTensors:
        """The device's view of `group`."""
        table = mask_TS = None
        if group.context:
            table = torch.from_numpy(group.table.reshape(-1)).to(device)
            seen = group.context + group.length
            mask_TS = torch.ones(group.length, seen, dtype=torch.bool, device=device).tril(group.context)
        return cls(
            start=group.start,
            count=group.count,
            length=group.length,
            context=group.context,
            table=table,
            mask_TS=mask_TS,
        )

    @property
    def tokens(self) -> slice:
        """The group's tokens in the step."""
        return slice(self.start, self.start + self.count * self.length)


def chunk_attention(
    queries: Tensor, new_keys: Tensor, new_values: Tensor, keys: Tensor, values: Tensor, group: ChunkTensors
) -> Tensor:
    """Causal attention of a group's chunks to their context and themselves.

    Args:
        queries: [count * length, H, E].
        new_keys: [count * length, Hkv, E], already in the pool as well; so are `new_values`.
        keys: the layer's pool, and `values` likewise.

    Returns:
        Mixed values [count * length, H * E].
    """
    shape = (group.count, group.length)
    if group.table is None:
        key, value = (t.reshape(*shape, *t.shape[1:]).transpose(1, 2) for t in (new_keys, new_values))
    else:
        seen = group.context + group.length
        key, value = (_sequences(t.index_select(0, group.table), group.count)[:, :, :seen] for t in (keys, values))
    query = queries.reshape(*shape, *queries.shape[1:]).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=group.mask_TS,
        is_causal=group.mask_TS is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2).reshape(len(queries), -1)


def _sequences(blocks: Tensor, count: int) -> Tensor:
    """[count * M, Hkv, block size, E] as [count, Hkv, M * block size, E]."""
    return blocks.view(count, -1, *blocks.shape[1:]).transpose(1, 2).flatten(2, 3)
