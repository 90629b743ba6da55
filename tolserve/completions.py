"""One completion request between HTTP and engine: what is submitted for it, and what its outputs become."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tolserve.async_engine import Work
from tolserve.engine.request import RequestOutput
from tolserve.metrics import Metrics
from tolserve.openai_api.prompts import ModelInfo, Prompt, Tokenizer, output_budget, parse_prompts
from tolserve.openai_api.request import CompletionRequest, sampling_params
from tolserve.openai_api.response import ChoiceWriter, StreamWriter, completion, joined_logprobs, usage

_LONGEST_TOKEN_CHARS = 128
"""Characters that one token stands for at most: beyond this a text is refused without being tokenized."""

_DEADLINE_GRACE_S = 0.5
"""How long after a request's deadline its engine may still say so."""

_BLOCKING_CHARS = 1 << 14
"""Texts longer than this are tokenized beside the event loop."""


async def prepare(
    request: CompletionRequest, model: ModelInfo, tokenizer: Tokenizer
) -> tuple[list[Prompt], list[Work]]:
    """The request's prompts and its generations, the choices of the first prompt first.

    Raises:
        ApiError: 400 for what the model cannot take.
    """

    def parse() -> list[Prompt]:
        choices = request.num_choices
        return parse_prompts(request.prompt, model, tokenizer, longest_token=_LONGEST_TOKEN_CHARS, choices=choices)

    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    long = isinstance(texts, list) and sum(len(t) for t in texts if isinstance(t, str)) > _BLOCKING_CHARS
    prompts = await asyncio.to_thread(parse) if long else parse()
    works = []
    for prompt in prompts:
        budget = output_budget(request.max_tokens, prompt, model)
        for choice in range(request.num_choices):
            params = sampling_params(request, choice=choice, vocab_size=model.vocab_size, max_tokens=budget)
            works.append((prompt.token_ids, params))
    return prompts, works


class Completion:
    """Collects the outputs of one request's generations, writes them as the API has it, and times them.

    Attributes:
        aborted: a generation was cancelled, so nobody waits for the answer.
        fingerprint: names the table version, where there is one; set before the first output is taken.
        give_up_at: by `time.monotonic`, when an engine that should have ended the request at its deadline, but
            computes a long step or is frozen, is waited for no more; None without a deadline.
    """

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer,
        metrics: Metrics,
        began: float,
        request_id: str,
        created: int,
    ) -> None:
        self._request = request
        self._prompts = prompts
        self._metrics = metrics
        self._began = began
        self._id, self._created = request_id, created
        echo, logprobs = bool(request.echo), request.logprobs is not None
        self._writers = [
            ChoiceWriter(prompt, tokenizer, echo=echo, logprobs=logprobs)
            for prompt in prompts
            for _ in range(request.num_choices)
        ]
        self._last = [0.0] * len(self._writers)
        self._counted = [False] * len(self._writers)
        self._num_open = len(self._writers)
        self._texts: list[list[str]] = [[] for _ in self._writers]
        self._logprobs: list[dict[str, Any] | None] = [None] * len(self._writers)
        self.fingerprint = ""
        self.aborted = False
        self.give_up_at: float | None = None
        if request.deadline_s is not None:
            self.give_up_at = began + request.deadline_s + _DEADLINE_GRACE_S

    @property
    def done(self) -> bool:
        """Whether every generation has finished."""
        return self._num_open == 0

    @cached_property
    def _events(self) -> StreamWriter:
        return StreamWriter(
            self._id,
            self._request.model,
            self._created,
            num_choices=len(self._writers),
            with_usage=self._request.wants_usage_chunk,
            fingerprint=self.fingerprint,
        )

    def take(self, outputs: Sequence[tuple[int, RequestOutput]]) -> str:
        """Add outputs; for a stream, their events."""
        now = time.monotonic()
        events = []
        for index, output in outputs:
            self._observe(index, output, now)
            text, logprobs = self._writers[index].write(output)
            if self._request.stream:
                events.append(self._events.chunk(index, text, logprobs, output.finish_reason))
            else:
                self._texts[index].append(text)
                self._logprobs[index] = joined_logprobs(self._logprobs[index], logprobs)
        return "".join(events)

    def body(self) -> bytes:
        """The answer of a request that does not stream, once it is done."""
        choices = [
            {
                "index": index,
                "text": "".join(self._texts[index]),
                "logprobs": self._logprobs[index],
                "finish_reason": writer.finish_reason,
            }
            for index, writer in enumerate(self._writers)
        ]
        named = self.fingerprint
        return completion(self._id, self._request.model, self._created, choices, self._usage(), fingerprint=named)

    def usage_event(self) -> str:
        """A stream's event with the usage; empty where none was asked for."""
        return self._events.usage_chunk(self._usage()) if self._request.wants_usage_chunk else ""

    def failed(self) -> None:
        """Count the request's open generations as failed."""
        for _ in range(self._num_open):
            self._metrics.finished("error")

    def _usage(self) -> dict[str, Any]:
        return usage(self._prompts, self._writers, with_bill=self._request.memory_bill)

    def _observe(self, index: int, output: RequestOutput, now: float) -> None:
        metrics, count = self._metrics, len(output.tokens)
        if not self._counted[index] and (count or output.finish_reason in ("stop", "length")):
            self._counted[index] = True
            metrics.prompt_tokens.inc(len(self._prompt_of(index).token_ids))
        if count:
            metrics.generation_tokens.inc(count)
            self._observe_tokens(index, count, now - output.since_first_s, now)
        if output.finished:
            self._finish(index, output, now)

    def _observe_tokens(self, index: int, count: int, first_at: float, now: float) -> None:
        """One observation for each of `count` tokens, that of the first from the request, others from one before."""
        last = self._last[index]
        if not last:
            self._metrics.ttft.observe(first_at - self._began)
            last, count = first_at, count - 1
        for _ in range(count):
            self._metrics.inter_token.observe((now - last) / count)
        self._last[index] = now

    def _prompt_of(self, index: int) -> Prompt:
        return self._prompts[index // self._request.num_choices]

    def _finish(self, index: int, output: RequestOutput, now: float) -> None:
        self._num_open -= 1
        self.aborted |= output.finish_reason == "abort"
        prompt = self._prompt_of(index)
        self._metrics.finished(output.finish_reason or "error")
        self._metrics.latency.observe(now - self._began)
        self._metrics.request_prompt.observe(len(prompt.token_ids))
        self._metrics.request_generation.observe(self._writers[index].num_tokens + len(output.tokens))
