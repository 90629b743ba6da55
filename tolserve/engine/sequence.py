"""A request inside the engine: its tokens, how far they are computed, and what it has been charged."""

from __future__ import annotations

import os

import numpy as np

from tolserve.engine.detokenise import IncrementalText
from tolserve.engine.request import FinishReason, MemoryCharge, SamplingParams, TokenOutput


class Sequence:
    """One request's state; the scheduler moves it, the engine appends to it.

    `tokens` is the prompt followed by the output and outlives preemption, which only resets `num_computed` (positions
    whose keys and values are in the cache) and gives the `row` of the KV cache back (None while it has none). `arrival`
    counts the requests of a scheduler; `num_reused` are the prompt tokens that were in the cache when it was first
    admitted (None before). The rest is `prefix.PrefixCache`'s.
    """

    __slots__ = (
        "_costs",
        "_hits",
        "_num_guessed",
        "_num_rows",
        "_num_unique",
        "_random",
        "arrival",
        "block_keys",
        "finish_reason",
        "num_computed",
        "num_prompt",
        "num_published",
        "num_reused",
        "params",
        "prefix_root",
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
        self.arrival = 0
        self.num_reused: int | None = None
        self.num_published = 0
        self.prefix_root = b""
        self.block_keys: list[bytes] = []
        self.text = text
        self.finish_reason: FinishReason | None = None
        self.prompt_logprobs: list[TokenOutput | None] = []
        self._random: np.random.Generator | None = None
        self._hits: dict[str, float] = {}
        self._num_rows = self._num_unique = 0
        self._num_guessed = 0.0
        self._costs = (0.0, 0.0, 0.0)

    @property
    def rank(self) -> tuple[int, int]:
        """Sequences with a lower one go first: the more urgent, then the older."""
        return self.params.priority, self.arrival

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
        if not self._num_rows:
            return None
        bytes_moved, fetch_ms, stall_ms = self._costs
        return MemoryCharge(
            rows_needed=self._num_rows,
            rows_unique=self._num_unique,
            rows_guessed=self._num_guessed,
            hits_by_tier=dict(self._hits),
            bytes_moved=bytes_moved,
            fetch_ms=fetch_ms,
            stall_ms=stall_ms,
        )

    def charge(self, step: MemoryCharge, num_rows: int, num_unique: int) -> None:
        """Add its part of a step: bytes and hits by the rows that it had in it, the times in full."""
        share = num_rows / step.rows_needed
        self._num_rows += num_rows
        self._num_unique += num_unique
        self._num_guessed += step.rows_guessed * share
        bytes_moved, fetch_ms, stall_ms = self._costs
        self._costs = bytes_moved + step.bytes_moved * share, fetch_ms + step.fetch_ms, stall_ms + step.stall_ms
        for tier, count in step.hits_by_tier.items():
            self._hits[tier] = self._hits.get(tier, 0.0) + count * share
