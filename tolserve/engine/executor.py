"""Runs a step's arrays on the device: tensors out of the plan, the model over them, logits of the tokens that count."""

from __future__ import annotations

import torch
from torch import Tensor

from tolserve.engine.attention import ChunkTensors, DecodeAttention, InPlaceDecode
from tolserve.engine.batch import IntArray, StepBatch
from tolserve.engine.early_exit import EarlyExit
from tolserve.engine.flow import StepTensors
from tolserve.engine.model import StepModel
from tolserve.engine.rows import RowFeed, StepRows


class Executor:
    """Eager execution of any step of a `StepModel`.

    `feed` is None for a model that receives no rows, `early_exit` where no row is requested by guess.
    """

    def __init__(self, model: StepModel, feed: RowFeed | None, early_exit: EarlyExit | None = None) -> None:
        self.model = model
        self.feed = feed
        self.early_exit = early_exit
        heads = torch.arange(model.config.num_key_value_heads, device=model.device)
        self._head_offsets = heads * model.cache.block_size

    def run(self, batch: StepBatch, rows: StepRows | None) -> Tensor:
        """The residual stream [N, D] behind the last layer."""

        def watch(segment: int, x_ND: Tensor) -> None:
            self.passed(segment, x_ND, batch)

        return self.model.forward(self.tensors(batch), lambda band: self.receive(rows, band), watch)

    def passed(self, segment: int, x_ND: Tensor, batch: StepBatch) -> None:
        """Guess the next tokens where `segment` is the one behind which that is done."""
        if self.early_exit is not None and segment == self.early_exit.segment:
            self.early_exit.guess(x_ND, batch)

    def receive(self, rows: StepRows | None, band: int) -> Tensor:
        """A band's rows as stored [N, num_items] on the device, once they are there."""
        return self.collect(rows, band).to(self.model.device, non_blocking=True)

    def collect(self, rows: StepRows | None, band: int) -> Tensor:
        """A band's rows as stored [N, num_items] in memory that the device can read: where they are, or pinned."""
        assert self.feed is not None and rows is not None
        pool = self.feed.wait(rows, band)
        index = torch.from_numpy(rows.row_index_N).to(pool.device)
        if pool.device.type == "cpu" and self.model.device.type == "cuda":
            out = torch.empty(len(index), pool.shape[1], dtype=pool.dtype, pin_memory=True)
            return torch.index_select(pool, 0, index, out=out)
        return pool.index_select(0, index)

    def logits(self, hidden_ND: Tensor, index: IntArray) -> Tensor:
        """Logits [len(index), V] of those tokens of the last `run`."""
        if len(index) == len(hidden_ND):
            return self.model.logits(hidden_ND)
        return self.model.logits(hidden_ND.index_select(0, self.move(index)))

    def tensors(self, batch: StepBatch) -> StepTensors:
        """The device's view of a step."""
        return StepTensors(
            token_ids_N=self.move(batch.token_ids),
            positions_N=self.move(batch.positions),
            cache_rows=self.cache_rows(self.move(batch.blocks), self.move(batch.offsets)),
            decode=self.decode_attention(batch) if batch.num_decodes else None,
            num_decodes=batch.num_decodes,
            groups=tuple(ChunkTensors.of(group, self.model.device) for group in batch.groups),
        )

    def decode_attention(self, batch: StepBatch) -> DecodeAttention:
        """The kernel for the decoding tokens of `batch`."""
        cache = self.model.cache
        return InPlaceDecode.plan(batch.decode_table, batch.decode_lengths, cache.block_size, cache.keys.dtype)

    def cache_rows(self, blocks_N: Tensor, offsets_N: Tensor) -> Tensor:
        """Rows [N * Hkv] of a layer's pool seen as [-1, head_dim]."""
        stride = self.model.config.num_key_value_heads * self.model.cache.block_size
        return ((blocks_N * stride + offsets_N)[:, None] + self._head_offsets).flatten()

    def move(self, array: IntArray) -> Tensor:
        """An int64 array on the device."""
        return torch.from_numpy(array).to(self.model.device)
