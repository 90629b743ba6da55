"""An engine that computes nothing: it answers each prompt with that prompt's ids, one a step."""

from __future__ import annotations

import threading
from typing import Any

from tolserve.engine.request import MemoryCharge, RequestOutput, SamplingParams, TokenOutput

VOCAB_SIZE = 128


class _Encoding:
    def __init__(self, text: str) -> None:
        self.ids = [ord(char) % VOCAB_SIZE for char in text]


class LetterTokenizer:
    """One token a character (ASCII)."""

    def encode(self, sequence: str) -> _Encoding:
        return _Encoding(sequence)

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(chr(token) for token in ids)

    def id_to_token(self, id: int) -> str:
        return chr(id)


class ScriptedEngine:
    """Steps as the real one; prompts that start with a `fail` token end as it says.

    `gate` holds the steps back where it is cleared, all but `let_through` of them.
    """

    def __init__(self, fail: dict[int, Exception] | None = None) -> None:
        self._open: dict[str, tuple[list[int], SamplingParams, int]] = {}
        self._fail = fail or {}
        self.gate = threading.Event()
        self.gate.set()
        self.let_through = 0
        self.cancelled: list[str] = []

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if isinstance(self._fail.get(prompt_token_ids[0]), ValueError):
            raise self._fail[prompt_token_ids[0]]
        self._open[request_id] = (prompt_token_ids, params, 0)

    def cancel(self, request_id: str) -> None:
        if self._open.pop(request_id, None) is not None:
            self.cancelled.append(request_id)

    def has_work(self) -> bool:
        return bool(self._open)

    def stats(self) -> dict[str, Any]:
        return {
            "num_running": len(self._open),
            "num_waiting": 0,
            "num_blocks": 8,
            "num_free_blocks": 6,
            "num_steps": 3,
        }

    def step(self) -> list[RequestOutput]:
        if not self.gate.is_set():
            if not self.let_through:
                self.gate.wait(0.02)
                return []
            self.let_through -= 1
        return [self._advance(request_id) for request_id in list(self._open)]

    def _advance(self, request_id: str) -> RequestOutput:
        prompt, params, done = self._open[request_id]
        if prompt[0] in self._fail:
            if isinstance(self._fail[prompt[0]], RuntimeError):
                raise self._fail[prompt[0]]
            del self._open[request_id]
            error = self._fail[prompt[0]]
            return RequestOutput(request_id=request_id, tokens=(), finished=True, finish_reason="error", error=error)
        token = prompt[done % len(prompt)]
        tops = None if params.logprobs is None else tuple((token + i, -1.0 - i) for i in range(params.logprobs))
        tokens = (TokenOutput(token) if tops is None else TokenOutput(token, -1.0, tops),)
        if params.max_tokens == 0:
            tokens = ()
        finished = done + 1 >= params.max_tokens
        self._open[request_id] = (prompt, params, done + 1)
        if finished:
            del self._open[request_id]
        scores = None
        if params.prompt_logprobs is not None and done == 0:
            scores = [None, *(TokenOutput(token, -2.0, ((token, -2.0),)) for token in prompt[1:])]
        return RequestOutput(
            request_id=request_id,
            tokens=tokens,
            text="".join(chr(one.token_id) for one in tokens),
            finished=finished,
            finish_reason="length" if finished else None,
            prompt_logprobs=scores,
            bill=MemoryCharge(rows_needed=done + 1, rows_unique=1, hits_by_tier={"cache": 0.5}, bytes_moved=10.0),
        )
