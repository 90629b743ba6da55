"""A request inside the engine: its tokens, how far they are computed, and what it has been charged."""

from __future__ import annotations

import os

import numpy as np

from tolserve.engine.detokenise import IncrementalText
from tolserve.engine.request import FinishReason, MemoryCharge, SamplingParams, TokenOutput


class Sequence:
    """One request's state; the scheduler moves it, the engine appends to it.

    `tokens` is the prompt followed by the output and outlives preemption, which only resets `num_computed` (positions
    whose keys and values are in the cache) and gives the `row` of the KV cache back (None while it has none).
    """

    __slots__ = (
        "_bill",
        "_hits",
        "_random",
        "finish_reason",
        "num_computed",
        "num_prompt",
        "params",
        "prompt_logprobs",
        "request_id",
        "row",
        "text",
        "tokens",
    )

    def __init__(
        self, request_id: str, prompt: list[int], params: SamplingParams, text: IncrementalText | None
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.tokens = list(prompt)
        self.num_prompt = len(prompt)
        self.num_computed = 0
        self.row: int | None = None
        self.text = text
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenOutput | None] = []
        self._random: np.random.Generator | None = None
        self._hits: dict[str, float] = {}
        self._bill: MemoryCharge | None = None

    @property
    def num_uncomputed(self) -> int:
        """Tokens whose keys and values are not in the cache yet; 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt positions have log-probabilities still to come."""
        return self.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    def uniform(self) -> float:
        """The next number in [0, 1) of this request's own stream: draws do not depend on the batch."""
        if self._random is None:
            seed = self.params.seed
            key = int.from_bytes(os.urandom(8), "little") if seed is None else seed
            self._random = np.random.Generator(np.random.Philox(key=key))
        return float(self._random.random())

    @property
    def bill(self) -> MemoryCharge | None:
        """What its rows cost so far; None before any."""
        return self._bill

    def charge(self, added: MemoryCharge) -> None:
        """Add one step's charge."""
        before = self._bill or MemoryCharge(hits_by_tier={})
        for tier, count in added.hits_by_tier.items():
            self._hits[tier] = self._hits.get(tier, 0.0) + count
        self._bill = MemoryCharge(
            rows_needed=before.rows_needed + added.rows_needed,
            rows_unique=before.rows_unique + added.rows_unique,
            hits_by_tier=dict(self._hits),
            bytes_moved=before.bytes_moved + added.bytes_moved,
            fetch_ms=before.fetch_ms + added.fetch_ms,
            stall_ms=before.stall_ms + added.stall_ms,
        )
