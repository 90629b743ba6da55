"""The paced engine: a device that is a timeline, the real scheduler, cache, client and network beside it.

The device computes the segment of a band in (layers x pace). It starts a segment when the one before has ended and the
host has seen the band's rows arrive; bands that are on the device for every token wait for nothing. The host works
meanwhile, as it does beside a GPU: it asks for the rows as soon as the tokens are known (the device's end of the step
before), plans the step, and takes the bands as they come. Rows that are cached lie on the device by construction, so
that finding them is the host's work and reading them the device's. A copy of received rows to a device is not modelled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tolserve.engine.config import EngineConfig
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.request import SamplingParams
from tolserve.engine.rows import RowFeed, StepRows
from tolserve.engine.scheduler import Scheduler
from tolserve.engine.sequence import Sequence
from tolserve.memory.source import RowSource

_BLOCK_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One step: seconds from known tokens to known tokens, and what it fetched."""

    step_s: float
    bytes_moved: float


class PacedEngine:
    """Decodes `tokens` int64 [steps, batch], one row a step, as its sequences' samples.

    Args:
        source: of the rows of `bands`; None is the contestant whose rows are all on the device.
        pace_s: seconds a layer.
        num_layers: by band, all of the model's bands.
    """

    def __init__(
        self,
        tokens: NDArray[np.int64],
        *,
        pace_s: float,
        num_layers: tuple[int, ...],
        source: RowSource | None = None,
        bands: tuple[int, ...] = (),
    ) -> None:
        self._tokens = iter(tokens.tolist())
        num_steps, batch = tokens.shape
        self._segments_s = [count * pace_s for count in num_layers]
        self._bands = bands
        self._feed = RowFeed(source, bands) if source is not None else None
        self._rows: StepRows | None = None
        config = EngineConfig(
            block_size=_BLOCK_SIZE,
            num_blocks=batch * (num_steps // _BLOCK_SIZE + 2),
            max_num_seqs=batch,
            max_num_batched_tokens=max(batch, 64),
            max_model_len=num_steps + 2 * _BLOCK_SIZE,
        )
        self._scheduler = Scheduler(config, _tiny_cache(config))
        params = SamplingParams(max_tokens=num_steps)
        self._sequences = [Sequence(str(index), [0], params, None) for index in range(batch)]
        for sequence in self._sequences:
            self._scheduler.add(sequence)
        for chunk in self._scheduler.schedule().chunks:
            chunk.sequence.num_computed += chunk.length

    def step(self) -> StepTime:
        """One step from now on; returns when the device has ended it and the host is done with it."""
        tokens = next(self._tokens)
        begin = time.perf_counter()
        if self._feed is not None:
            self._feed.fetch_ahead("decode", tokens)
            if self._rows is not None:
                self._feed.release(self._rows)
        for sequence, token in zip(self._sequences, tokens, strict=True):
            sequence.tokens.append(token)
        plan = self._scheduler.schedule()
        ids = np.fromiter((sequence.tokens[-1] for sequence in plan.decodes), np.int64, len(plan.decodes))
        if self._feed is not None:
            self._rows = self._feed.begin(ids)
        end = begin
        for band, segment_s in enumerate(self._segments_s):
            if self._feed is not None and self._rows is not None and band in self._bands:
                self._feed.wait(self._rows, band)
                end = max(end, time.perf_counter())
            end += segment_s
        moved = self._charge(ids)
        for sequence in plan.decodes:
            sequence.num_computed += 1
        while time.perf_counter() < end:
            pass
        return StepTime(step_s=max(end, time.perf_counter()) - begin, bytes_moved=moved)

    def close(self) -> None:
        """Release what is held of the source."""
        if self._feed is not None:
            if self._rows is not None:
                self._feed.release(self._rows)
            self._feed.close()

    def _charge(self, ids: NDArray[np.int64]) -> float:
        if self._feed is None or self._rows is None:
            return 0.0
        return self._feed.charge(self._rows, len(ids)).bytes_moved


def _tiny_cache(config: EngineConfig) -> KVCache:
    """Real block tables over keys and values of one number each."""
    return KVCache(
        num_layers=1,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        num_kv_heads=1,
        head_dim=1,
        num_rows=config.max_num_seqs,
        blocks_per_row=config.blocks_per_seq,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
