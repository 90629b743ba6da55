"""Decode steps on a GPU as captured graphs: bands + 1 segments for each batch size, launched as bands arrive.

Batch sizes are rounded up to powers of two. What varies goes into static buffers: one integer array (token, position,
block table of each sequence) and the codes of each band, already in the tokens' order; padding writes to the cache's
scratch block. Codes are copied on a stream of their own, beside the segments that run before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tolserve.engine.attention import DecodeAttention
from tolserve.engine.batch import IntArray, StepBatch
from tolserve.engine.early_exit import EarlyExit
from tolserve.engine.executor import Executor
from tolserve.engine.flow import Flow, StepTensors
from tolserve.engine.model import StepModel
from tolserve.engine.paged_triton import PagedDecode
from tolserve.engine.rows import RowFeed, StepRows


@dataclass(frozen=True, kw_only=True)
class CapturedDecode:
    """One batch size: static inputs, a graph for each segment, static outputs.

    `host` and `inputs` are int64 [B, 2 + M]: token id, position, blocks.
    """

    host: Tensor
    inputs: Tensor
    codes: dict[int, Tensor]
    graphs: tuple[torch.cuda.CUDAGraph, ...]
    flow: Flow
    logits_BV: Tensor

    def fill(self, batch: StepBatch, scratch_block: int) -> None:
        """Put a decode step's integers into the static inputs."""
        count = batch.num_decodes
        rows = self.host.numpy()
        rows[:] = 0
        rows[count:, 2] = scratch_block
        rows[:count, 0] = batch.token_ids
        rows[:count, 1] = batch.positions
        rows[:count, 2 : 2 + batch.decode_table.shape[1]] = batch.decode_table
        self.inputs.copy_(self.host, non_blocking=True)


class GraphExecutor(Executor):
    """Runs pure decode steps from captured graphs and all others eagerly."""

    def __init__(
        self, model: StepModel, feed: RowFeed | None, max_num_seqs: int, early_exit: EarlyExit | None = None
    ) -> None:
        super().__init__(model, feed, early_exit)
        self._copies = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call,unused-ignore]
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[int, CapturedDecode] = {}
        self._last: tuple[Tensor, Tensor] | None = None
        size = 1
        with torch.inference_mode():
            while size < 2 * max_num_seqs:
                self._captured[size] = self._capture(size)
                size *= 2

    def run(self, batch: StepBatch, rows: StepRows | None) -> Tensor:
        """See `Executor.run`."""
        self._last = None
        if batch.groups:
            return super().run(batch, rows)
        count = batch.num_decodes
        captured = self._captured[1 << (count - 1).bit_length()]
        captured.fill(batch, self.model.cache.num_blocks)
        stream = torch.cuda.current_stream(self.model.device)
        self._copies.wait_stream(stream)
        hidden_ND = captured.flow.x_ND[:count]
        for index, (segment, graph) in enumerate(zip(self.model.segments, captured.graphs, strict=True)):
            if segment.band is not None:
                assert rows is not None
                with torch.cuda.stream(self._copies):
                    codes = self.collect(rows, segment.band)
                    captured.codes[segment.band][:count].copy_(codes, non_blocking=True)
                stream.wait_stream(self._copies)
            graph.replay()
            self.passed(index, hidden_ND, batch)
        self._last = hidden_ND, captured.logits_BV[:count]
        return hidden_ND

    def logits(self, hidden_ND: Tensor, index: IntArray) -> Tensor:
        """See `Executor.logits`; a graph has computed them already."""
        if self._last is not None and self._last[0] is hidden_ND:
            return self._last[1] if len(index) == len(hidden_ND) else self._last[1][self.move(index)]
        return super().logits(hidden_ND, index)

    def decode_attention(self, batch: StepBatch) -> DecodeAttention:
        """See `Executor.decode_attention`."""
        return PagedDecode(table_BM=self.move(batch.decode_table), lengths_B=self.move(batch.decode_lengths))

    def _capture(self, size: int) -> CapturedDecode:
        model, device = self.model, self.model.device
        width = 2 + model.cache.table.shape[1]
        inputs = torch.zeros(size, width, dtype=torch.int64, device=device)
        inputs[:, 2] = model.cache.num_blocks
        codes = {}
        if self.feed is not None:
            for band in model.bands:
                columns, dtype = self.feed.layout(band)
                codes[band] = torch.zeros(size, columns, dtype=dtype, device=device)
        self._run_all(inputs, codes)
        torch.cuda.synchronize(device)
        graphs: list[torch.cuda.CUDAGraph] = []
        flow: Flow | None = None
        logits_BV: Tensor | None = None
        for segment in model.segments:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                if flow is None:
                    flow = model.begin(self._step(inputs))
                    flow.received.update(codes)
                model.run(segment, flow)
                if segment is model.segments[-1]:
                    logits_BV = model.logits(flow.x_ND)
            graphs.append(graph)
        assert flow is not None
        assert logits_BV is not None
        return CapturedDecode(
            host=torch.zeros(size, width, dtype=torch.int64, pin_memory=True),
            inputs=inputs,
            codes=codes,
            graphs=tuple(graphs),
            flow=flow,
            logits_BV=logits_BV,
        )

    def _run_all(self, inputs: Tensor, codes: dict[int, Tensor]) -> None:
        """Once without capturing: compiles the kernels and lets libraries take their workspaces."""
        self.model.logits(self.model.forward(self._step(inputs), codes.__getitem__))

    def _step(self, inputs: Tensor) -> StepTensors:
        """A decode step that reads the static inputs."""
        tokens_B, positions_B, table_BM = inputs[:, 0], inputs[:, 1], inputs[:, 2:]
        block_size = self.model.cache.block_size
        blocks_B = table_BM.gather(1, (positions_B // block_size)[:, None])[:, 0]
        return StepTensors(
            token_ids_N=tokens_B,
            positions_N=positions_B,
            cache_rows=self.cache_rows(blocks_B, positions_B % block_size),
            decode=PagedDecode(table_BM=table_BM, lengths_B=positions_B + 1),
            num_decodes=len(inputs),
            groups=(),
        )
