"""The engine: requests in, steps, tokens out. One thread uses it; it starts none of its own."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tolbuild.table.errors import StoreError, ToLError
from tolserve.engine.batch import StepBatch, make_batch
from tolserve.engine.config import EngineConfig
from tolserve.engine.deadlines import Deadlines, deadline_error
from tolserve.engine.detokenise import Decoder, IncrementalText
from tolserve.engine.executor import Executor
from tolserve.engine.model import StepModel
from tolserve.engine.outputs import ended, finish_reason, output_of
from tolserve.engine.prefix import PrefixCache
from tolserve.engine.request import RequestOutput, RowsUnavailableError, SamplingParams, TokenOutput
from tolserve.engine.rows import RowFeed, StepRows
from tolserve.engine.sampler import sample, score, score_ranges
from tolserve.engine.scheduler import Chunk, Scheduler, StepPlan
from tolserve.engine.sequence import Sequence
from tolserve.engine.verify import RowVerifier


@dataclass(kw_only=True)
class Counters:
    """What the engine has done since it was made."""

    num_steps: int = 0
    step_s: float = 0.0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_expired: int = 0


class Engine:
    """Continuous batching over one `StepModel`.

    `feed` requests the looked-up rows (None where the model receives none), `tokenizer` gives text and stop strings
    (None: token ids only), `prefix` reuses what is in the model's cache (None: nothing is). Requests are independent
    of each other: a request's tokens do not depend on its batch or on what was reused, beyond rounding.
    """

    def __init__(
        self,
        model: StepModel,
        config: EngineConfig,
        *,
        executor: Executor,
        feed: RowFeed | None = None,
        tokenizer: Decoder | None = None,
        verifier: RowVerifier | None = None,
        prefix: PrefixCache | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self._executor = executor
        self._feed = feed
        self._tokenizer = tokenizer
        self._verifier = verifier
        self._scheduler = Scheduler(config, model.cache, prefix)
        self._deadlines = Deadlines()
        self._sequences: dict[str, Sequence] = {}
        self._counters = Counters()

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """Queue a request.

        Raises:
            ValueError: the id is in use, the prompt is empty or has ids outside the vocabulary, stop strings without
                a tokenizer, or the request is too long ever to be computed.
        """
        if request_id in self._sequences:
            raise ValueError(f"request id {request_id!r} is in use")
        if not prompt_token_ids:
            raise ValueError("the prompt has no tokens; at least 1 is needed")
        vocab_size = self.model.config.vocab_size
        if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
            bad = next(token for token in prompt_token_ids if not 0 <= token < vocab_size)
            raise ValueError(f"prompt token {bad} is outside the vocabulary of {vocab_size}")
        if params.stop and self._tokenizer is None:
            raise ValueError("stop strings need a tokenizer; this engine has none")
        self._scheduler.check_fits(len(prompt_token_ids), params.max_tokens)
        text = None if self._tokenizer is None else IncrementalText(self._tokenizer, prompt_token_ids, params.stop)
        sequence = Sequence(request_id, prompt_token_ids, params, text)
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)
        self._deadlines.add(sequence, time.monotonic())

    def cancel(self, request_id: str) -> RequestOutput | None:
        """End a request and free what it holds.

        Returns:
            Its last output, finished with "abort"; None where no such request runs.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        self._forget(sequence)
        return ended(sequence, "abort")

    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._sequences)

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Compute one step; outputs of the requests that it moved on.

        A row fetch that fails ends the requests of the step with finish reason "error"; the others go on. So does a
        deadline that has passed its own request, before the step.
        """
        began = time.perf_counter()
        late = self._expire()
        plan = self._scheduler.schedule()
        if not plan:
            return late
        if self.model.device.type == "cpu":
            self.model.cache.compact()
        batch = make_batch(plan, self.model.cache)
        try:
            tokens = self._compute(plan, batch)
        except ToLError as error:
            return late + self._fail(batch, error)
        outputs = self._advance(plan, batch, tokens)
        self._counters.num_steps += 1
        self._counters.step_s += time.perf_counter() - began
        self._counters.prompt_tokens += sum(chunk.length for chunk in plan.chunks)
        self._counters.generation_tokens += len(tokens)
        return late + outputs

    def stats(self) -> dict[str, Any]:
        """Counts since the start and the state now, for metrics."""
        cache = self.model.cache
        numbers: dict[str, Any] = {
            "num_running": len(self._scheduler.running),
            "num_waiting": len(self._scheduler.waiting),
            "num_blocks": cache.num_blocks,
            "num_free_blocks": cache.num_free_blocks,
            "num_preemptions": self._scheduler.num_preemptions,
            **asdict(self._counters),
        }
        prefix = self._scheduler.prefix
        if prefix is not None:
            numbers["prefix_cache"] = {"num_queries": prefix.num_queries, "num_hits": prefix.num_hits}
        if self._feed is not None:
            numbers["rows"] = asdict(self._feed.totals)
        if self._verifier is not None:
            numbers["rows_verified"] = self._verifier.num_checked
            numbers["row_mismatches"] = self._verifier.num_mismatches
        return numbers

    def close(self) -> None:
        """Release rows requested ahead; the source stays open."""
        if self._feed is not None:
            self._feed.close()

    def _compute(self, plan: StepPlan, batch: StepBatch) -> list[TokenOutput]:
        rows = None
        if self._feed is not None:
            rows = self._feed.begin(batch.token_ids)
            self._feed.fetch_ahead("prompt", self._scheduler.upcoming(plan))
        try:
            hidden_ND = self._executor.run(batch, rows)
            if self._verifier is not None:
                self._verifier.observe(batch.token_ids, rows, self._executor)
            if rows is not None:
                self._charge(batch, rows)
        finally:
            if self._feed is not None and rows is not None:
                self._feed.release(rows)
        for chunk, first in batch.prompt_scores:
            self._score_prompt(chunk, hidden_ND[first : first + chunk.length])
        wanted = [index for index, s in enumerate(batch.sampled) if s.params.max_tokens > 0]
        if not wanted:
            return []
        logits_BV = self._executor.logits(hidden_ND, batch.sampled_index[wanted])
        return sample(logits_BV, tuple(batch.sampled[i] for i in wanted))

    def _charge(self, batch: StepBatch, rows: StepRows) -> None:
        assert self._feed is not None
        step = self._feed.charge(rows, len(batch.token_ids))
        for sequence, own in batch.owners:
            num_rows = own.stop - own.start
            sequence.charge(step, num_rows, 1 if num_rows == 1 else len(np.unique(batch.token_ids[own])))

    def _score_prompt(self, chunk: Chunk, hidden_TD: Tensor) -> None:
        sequence = chunk.sequence
        known = sequence.prompt_logprobs
        if not known:
            known.append(None)
        first = len(known) - 1 - sequence.num_computed
        last = min(chunk.length, sequence.num_prompt - 1 - sequence.num_computed)
        alternatives = sequence.params.prompt_logprobs
        for part in score_ranges(first, last):
            logits_SV = self.model.logits(hidden_TD[part])
            start = sequence.num_computed + part.start + 1
            targets = torch.tensor(sequence.tokens[start : start + len(logits_SV)], device=logits_SV.device)
            known.extend(score(logits_SV, targets, [alternatives] * len(targets)))

    def _advance(self, plan: StepPlan, batch: StepBatch, tokens: list[TokenOutput]) -> list[RequestOutput]:
        self._scheduler.advance(plan)
        sampled = iter(tokens)
        moved: list[tuple[Sequence, TokenOutput | None]] = []
        for sequence in batch.sampled:
            token = next(sampled) if sequence.params.max_tokens else None
            if token is not None:
                sequence.tokens.append(token.token_id)
            sequence.finish_reason = finish_reason(sequence, self.model.config.eos_token_id)
            moved.append((sequence, token))
        if self._feed is not None:
            going = [s.tokens[-1] for s, _ in moved if s.finish_reason is None]
            self._feed.fetch_ahead("decode", going)
        outputs = [output_of(sequence, token) for sequence, token in moved]
        for sequence, _ in moved:
            if sequence.finish_reason is not None:
                self._forget(sequence)
        return outputs

    def _fail(self, batch: StepBatch, error: ToLError) -> list[RequestOutput]:
        shown = RowsUnavailableError(str(error)) if isinstance(error, StoreError) else error
        outputs = []
        for sequence, _ in batch.owners:
            self._forget(sequence)
            outputs.append(ended(sequence, "error", shown))
        return outputs

    def _expire(self) -> list[RequestOutput]:
        """End the requests whose deadline has passed."""
        outputs = []
        for sequence in self._deadlines.passed(time.monotonic()):
            if self._sequences.get(sequence.request_id) is sequence:
                error = deadline_error(sequence)
                self._forget(sequence)
                outputs.append(ended(sequence, "error", error))
        self._counters.num_expired += len(outputs)
        return outputs

    def _forget(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
