"""Rows of a layer, chunk by chunk: from the spool where they were kept, else computed from the checkpoint.

Chunks have one size a plan and start at its multiples, and a short last chunk is filled up with zeros before it is
computed: the same rows have the same bits wherever they come from.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.checkpoint import Checkpoint
from tolbuild.compress.quantise import sample_ids
from tolbuild.grid import RowRange
from tolbuild.plan import READ_ROWS, Plan
from tolbuild.rows import MemoryFFN, ffn_rows
from tolbuild.worker.cache import Cache


class Stopped(Exception):
    """The build was told to stop; the cell is left for the next run."""


class RowSource:
    """The rows of one checkpoint under one plan, for several threads.

    Args:
        num_layers_held: networks kept loaded at a time.
        stop: when set, every loop over chunks ends with Stopped.
        weights_V: fp64, of the tokens; None where all count alike.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        device: torch.device,
        num_layers_held: int,
        stop: threading.Event,
        weights_V: Tensor | None,
    ) -> None:
        self.plan = plan
        self.device = device
        self._checkpoint = checkpoint
        self._stop = stop
        self._weights_V = None if weights_V is None else weights_V.to(device)
        self._ffns: Cache[MemoryFFN] = Cache(self._load_ffn, num_layers_held)
        self._samples: Cache[Tensor] = Cache(lambda _: self._gather_sample(), 1)
        self._readers = ThreadPoolExecutor(thread_name_prefix="read")
        self.sample_ids_N: NDArray[np.int64] = np.asarray(sample_ids(plan.vocab_size), dtype=np.int64)

    def embedding(self, span: RowRange) -> Tensor:
        """fp32 embeddings [N, D] of a range, on the device."""
        return self._checkpoint.embedding_rows(span.start, span.stop).to(self.device)

    def embedding_chunks(self, span: RowRange) -> Iterator[tuple[RowRange, Tensor]]:
        """The embeddings of a range chunk by chunk, the next ones being read meanwhile."""
        step = max(1, READ_ROWS // self.plan.chunk_rows) * self.plan.chunk_rows
        blocks = list(span.steps(step))
        ahead = self._readers.submit(self.embedding, blocks[0])
        for index, block in enumerate(blocks):
            embedding_ND = ahead.result()
            if index + 1 < len(blocks):
                ahead = self._readers.submit(self.embedding, blocks[index + 1])
            for piece in block.steps(self.plan.chunk_rows):
                yield piece, embedding_ND[piece.start - block.start : piece.stop - block.start]

    def rows(self, layer: int, tokens: Sequence[int], embedding_ND: Tensor, out_ND: Tensor) -> Tensor:
        """FFN(LN(E)) [N, D] of at most one chunk, a view of `out` [chunk_rows, D].

        Raises:
            ValueError: a row whose norm is no finite fp32 number, by layer and token.
        """
        if self._stop.is_set():
            raise Stopped
        count, chunk = len(embedding_ND), self.plan.chunk_rows
        if count < chunk:
            embedding_ND = torch.nn.functional.pad(embedding_ND, (0, 0, 0, chunk - count))
        ffn_rows(embedding_ND, self._ffns(layer), out=out_ND)
        finite_N = torch.linalg.vector_norm(out_ND[:count], dim=1).isfinite()
        if not finite_N.all():
            token = tokens[int((~finite_N).nonzero()[0])]
            raise ValueError(
                f"{self._checkpoint.url}: the row of layer {layer} and token {token} is beyond fp32 (the first of "
                f"{int((~finite_N).sum())} in its chunk); a table cannot hold it"
            )
        return out_ND[:count]

    def weights(self, span: RowRange) -> Tensor | None:
        """fp64 weights [N] of a range of tokens, on the device; None where all count alike."""
        return None if self._weights_V is None else self._weights_V[span.start : span.stop]

    def sample_rows(self, layer: int, out_ND: Tensor) -> Tensor:
        """Rows [N, D] of the plan's fixed sample of tokens, computed for themselves (full rank has no pass 1)."""
        embedding_ND = self._samples(0)
        pieces, ids = RowRange(0, len(embedding_ND)).steps(self.plan.chunk_rows), self.sample_ids_N.tolist()
        return torch.cat(
            [self.rows(layer, ids[p.start : p.stop], embedding_ND[p.start : p.stop], out_ND).clone() for p in pieces]
        )

    def sample_within(self, span: RowRange) -> Tensor:
        """Positions, within a range, of the sampled tokens that lie in it."""
        first, last = np.searchsorted(self.sample_ids_N, (span.start, span.stop))
        return torch.from_numpy(self.sample_ids_N[first:last] - span.start)

    def close(self) -> None:
        """End the reading threads."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _load_ffn(self, layer: int) -> MemoryFFN:
        return self._checkpoint.memory_ffn(layer).to(self.device)

    def _gather_sample(self) -> Tensor:
        """Embeddings of the sampled tokens, by one pass over the embedding: a remote store answers few large reads."""
        whole = RowRange(0, self.plan.vocab_size)
        chunks = self.embedding_chunks(whole)
        return torch.cat([embedding_ND[self.sample_within(piece)] for piece, embedding_ND in chunks])
