"""What a caller gives the engine and what it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_LOGPROBS = 100
"""Most alternatives a token's log-probabilities may ask for."""

_LEAST_TEMPERATURE = 1e-5
"""Logits divided by less can overflow."""


class RowsUnavailableError(ConnectionError):
    """Rows that a request needs did not come in time; a later try can succeed."""


class DeadlineError(Exception):
    """A request's own deadline passed before its end."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen, and when.

    Attributes:
        max_tokens: tokens to generate at most; 0 only evaluates the prompt.
        temperature: below 1e-5 is greedy, as 0 is.
        top_p: smallest set of most likely tokens whose probability reaches this, in (0, 1].
        top_k: only the k most likely tokens; 0 is all.
        seed: the same seed gives the same draws in any batch; None draws one.
        stop: strings that end the output; they are not part of the text.
        stop_token_ids: token ids that end the output; the token is reported, its text is not.
        logprobs: alternatives to report with each sampled token (0: the token's own only); None reports nothing.
        prompt_logprobs: the same for the prompt's tokens.
        ignore_eos: go on after the end-of-sequence token.
        priority: requests with a lower one go first and are preempted last.
        deadline_s: seconds after which the request ends with a `DeadlineError`; None is never.

    Raises:
        ValueError: a value outside its range, by name.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    priority: int = 0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must not be negative")
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature is {self.temperature}; it must be in [0, 100]")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; it must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must not be negative")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be in [0, 2^64)")
        if any(not text for text in self.stop):
            raise ValueError("a stop string is empty")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}; it must be positive")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_LOGPROBS:
                raise ValueError(f"{name} is {value}; it must be in [0, {MAX_LOGPROBS}]")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def plain_greedy(self) -> bool:
        """Whether the most likely token is all that is wanted."""
        return self.greedy and self.logprobs is None


class TokenOutput(NamedTuple):
    """One token with, where asked for, its log-probability and the most likely alternatives, best first."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class MemoryCharge:
    """What a request's looked-up rows cost so far.

    Rows are counted a token position and step (`rows_needed`) and once for each distinct token id of the request in a
    step (`rows_unique`). Hits and bytes of a step are shared by the rows that each of its requests needed; the times
    are those of the steps that the request took part in: `fetch_ms` from asking for rows to taking their last band,
    `stall_ms` that layers waited for one. `rows_guessed` were requested in advance by speculation, shared as bytes are;
    those that a step then needed are hits of the tier "guess", the bytes of all are in `bytes_moved`.
    """

    rows_needed: int = 0
    rows_unique: int = 0
    rows_guessed: float = 0.0
    hits_by_tier: dict[str, float]
    bytes_moved: float = 0.0
    fetch_ms: float = 0.0
    stall_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What one step added to one request.

    Attributes:
        tokens: the new tokens (none for a request that ends without one).
        text: the new text; it can lag the tokens while a stop string or a character is incomplete.
        prompt_logprobs: once, with the first output: one entry a prompt token, None for the first.
        bill: with the last output, what the request's rows cost; None for a model without memory.
        num_reused: prompt tokens that were not computed since the KV cache had them; the last output counts.
        error: why `finish_reason` is "error"; a `RowsUnavailableError` where trying again makes sense.
        since_first_s: for several steps' outputs in one, the time from the first of them to the last.
    """

    request_id: str
    tokens: Sequence[TokenOutput]
    text: str = ""
    finished: bool = False
    finish_reason: FinishReason | None = None
    prompt_logprobs: Sequence[TokenOutput | None] | None = None
    bill: MemoryCharge | None = None
    num_reused: int = 0
    error: Exception | None = None
    since_first_s: float = 0.0
