"""The paced engine: a device that is a timeline, the real scheduler, cache, client and network beside it.

The device computes the segment of a band in (layers x pace). It starts a segment when the one before has ended and the
host has seen the band's rows arrive; bands that are on the device for every token wait for nothing. The host works
meanwhile, as it does beside a GPU: it asks for the rows as soon as the tokens are known (the device's end of the step
before), takes the bands as they come, and plans the next step while the device computes. Rows that are cached lie on
the device by construction, so that finding them is the host's work and reading them the device's. A copy of received
rows to a device is not modelled.
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
from tolserve.engine.scheduler import Scheduler, StepPlan
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
        self._held: list[StepRows] = []
        config = EngineConfig(
            block_size=_BLOCK_SIZE,
            num_blocks=batch * (num_steps // _BLOCK_SIZE + 2),
            max_num_seqs=batch,
            max_num_batched_tokens=max(batch, 64),
            max_model_len=num_steps + 2 * _BLOCK_SIZE,
        )
        self._scheduler = Scheduler(config, _tiny_cache(config))
        params = SamplingParams(max_tokens=num_steps)
        for index in range(batch):
            self._scheduler.add(Sequence(str(index), [0], params, None))
        for chunk in self._scheduler.schedule().chunks:
            chunk.sequence.num_computed += chunk.length
        self._started = False
        self._plan = self._plan_next()

    def step(self) -> StepTime:
        """One step from now on; returns when the device has ended it and the host is done with it."""
        tokens = next(self._tokens)
        moved = 0.0
        begin = end = time.perf_counter()
        if self._feed is None:
            end += sum(self._segments_s)
        else:
            self._feed.fetch_ahead("decode", tokens)
            rows = self._feed.begin(np.array(tokens, np.int64))
            end = self._run_segments(self._feed, rows, begin)
            moved = self._feed.charge(rows, len(tokens)).bytes_moved
            self._turn_over(self._feed, rows)
        for sequence, token in zip(self._plan.decodes, tokens, strict=True):
            sequence.tokens[-1] = token
        self._plan = self._plan_next()
        while time.perf_counter() < end:
            pass
        return StepTime(step_s=max(end, time.perf_counter()) - begin, bytes_moved=moved)

    def close(self) -> None:
        """Release what is held of the source."""
        if self._feed is not None:
            for rows in self._held:
                self._feed.release(rows)
            self._feed.close()
        self._held.clear()

    def _run_segments(self, feed: RowFeed, rows: StepRows, begin: float) -> float:
        """When the device ends the last segment, each being handed over when the host has seen its rows."""
        end = begin
        for band, segment_s in enumerate(self._segments_s):
            if band in self._bands:
                feed.wait(rows, band)
                end = max(end, time.perf_counter())
            end += segment_s
        return end

    def _turn_over(self, feed: RowFeed, rows: StepRows) -> None:
        """Let go of the step before, which the device has ended; this step's rows are being read."""
        for old in self._held:
            feed.release(old)
        self._held = [rows]

    def _plan_next(self) -> StepPlan:
        """The next step's plan, made while the device computes this one: its tokens are not known, its blocks are."""
        for sequence in self._scheduler.running:
            if self._started:
                sequence.num_computed += 1
            sequence.tokens.append(0)
        self._started = True
        return self._scheduler.schedule()


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
