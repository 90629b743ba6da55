"""A step's plan as arrays: which token at which position, where its keys and values go, what attends to what.

Tokens of a step lie flat in one axis N: first one of each decoding sequence, then the chunks, those of equal length
and context side by side so that attention treats them as one batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tolserve.engine.kv_cache import KVCache
from tolserve.engine.scheduler import Chunk, StepPlan
from tolserve.engine.sequence import Sequence

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ChunkGroup:
    """Chunks of `length` tokens after `context` computed ones: tokens start .. start + count * length of the step.

    `table` is [count, blocks] and holds context and chunk.
    """

    start: int
    count: int
    length: int
    context: int
    table: IntArray


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Arrays of one step; N tokens of which the first B decode.

    Attributes:
        token_ids, positions: [N].
        blocks, offsets: [N], where each token's keys and values go.
        decode_table: [B, blocks]; entries behind a sequence's last block are 0.
        decode_lengths: [B], tokens to attend to, the new one included.
        groups: the chunks.
        sampled: sequences whose next token this step gives.
        sampled_index: for each of them the token whose logits give it.
        prompt_scores: (chunk, first token of the step) of chunks whose prompt log-probabilities are wanted.
        owners: for each of `charged` sequences its slice of the tokens.
    """

    token_ids: IntArray
    positions: IntArray
    blocks: IntArray
    offsets: IntArray
    decode_table: IntArray
    decode_lengths: IntArray
    groups: tuple[ChunkGroup, ...]
    sampled: tuple[Sequence, ...]
    sampled_index: IntArray
    prompt_scores: tuple[tuple[Chunk, int], ...]
    owners: tuple[tuple[Sequence, slice], ...]

    @property
    def num_decodes(self) -> int:
        """B, the sequences that decode."""
        return len(self.decode_lengths)


def _group_key(chunk: Chunk) -> tuple[int, int]:
    return chunk.length, chunk.sequence.num_computed


def make_batch(plan: StepPlan, cache: KVCache) -> StepBatch:
    """The arrays of `plan`, whose sequences hold the blocks they need."""
    decodes = plan.decodes
    chunks = sorted(plan.chunks, key=_group_key)
    num_decodes = len(decodes)
    lengths = np.fromiter((len(s.tokens) for s in decodes), np.int64, num_decodes)
    decode_rows = np.fromiter((s.row for s in decodes), np.int64, num_decodes)
    pieces = [c.sequence.tokens[c.sequence.num_computed :][: c.length] for c in chunks]
    chunk_lengths = np.fromiter((c.length for c in chunks), np.int64, len(chunks))
    starts = num_decodes + np.concatenate(([0], np.cumsum(chunk_lengths)))
    token_ids = np.array([s.tokens[-1] for s in decodes] + [i for piece in pieces for i in piece], np.int64)
    chunk_positions = [np.arange(c.sequence.num_computed, c.sequence.num_computed + c.length) for c in chunks]
    positions = np.concatenate([lengths - 1, *chunk_positions]).astype(np.int64)
    chunk_rows = np.fromiter((c.sequence.row for c in chunks), np.int64, len(chunks))
    rows = np.concatenate([decode_rows, np.repeat(chunk_rows, chunk_lengths)])
    width = int(cache.counts[decode_rows].max()) if num_decodes else 0
    done = [(index, c) for index, c in enumerate(chunks) if c.completes]
    return StepBatch(
        token_ids=token_ids,
        positions=positions,
        blocks=cache.table[rows, positions // cache.block_size],
        offsets=positions % cache.block_size,
        decode_table=cache.table[decode_rows, :width],
        decode_lengths=lengths,
        groups=_groups(chunks, starts, cache),
        sampled=(*decodes, *(c.sequence for _, c in done)),
        sampled_index=np.array([*range(num_decodes), *(starts[i + 1] - 1 for i, _ in done)], np.int64),
        prompt_scores=tuple((c, int(starts[i])) for i, c in enumerate(chunks) if c.sequence.wants_prompt_logprobs),
        owners=(
            *((s, slice(i, i + 1)) for i, s in enumerate(decodes)),
            *((c.sequence, slice(int(starts[i]), int(starts[i + 1]))) for i, c in enumerate(chunks)),
        ),
    )


def _groups(chunks: list[Chunk], starts: IntArray, cache: KVCache) -> tuple[ChunkGroup, ...]:
    groups = []
    first = 0
    for (length, context), members in groupby(chunks, key=_group_key):
        rows = [c.sequence.row for c in members]
        blocks = cache.blocks_for(context + length)
        groups.append(
            ChunkGroup(
                start=int(starts[first]),
                count=len(rows),
                length=length,
                context=context,
                table=cache.table[np.array(rows), :blocks],
            )
        )
        first += len(rows)
    return tuple(groups)
