"""Completions as the API writes them: choices with their log-probabilities, usage with the memory bill, streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tolserve.engine.detokenise import IncrementalText
from tolserve.engine.request import MemoryCharge, RequestOutput, TokenOutput
from tolserve.openai_api.errors import ApiError
from tolserve.openai_api.prompts import Prompt, Tokenizer

DONE = b"data: [DONE]\n\n"

Choice = dict[str, Any]


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """One token as text; a token that is only part of a character is named as the vocabulary writes it."""
    text = tokenizer.decode([token_id], False)
    return tokenizer.id_to_token(token_id) or "" if not text or "\ufffd" in text else text


class LogprobsWriter:
    """The API's `logprobs` objects of one choice.

    Text offsets count characters of the returned text, on from chunk to chunk: `echo`, where there is one, then the
    output. Tokens that make one character together have the offset of that character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], echo: str | None) -> None:
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._text = IncrementalText(tokenizer, list(prompt_ids))
        self._offset = len(echo or "")

    def write_prompt(self, scores: Sequence[TokenOutput | None]) -> dict[str, Any]:
        """The object for the echoed prompt; its first token has no log-probability (None)."""
        out, text = _no_logprobs(), IncrementalText(_WithSpecials(self._tokenizer), [])
        offset, end = 0, self._offset
        for token_id, score in zip(self._prompt_ids, scores, strict=True):
            self._add(out, token_id, score, min(offset, end))
            offset += len(text.push(token_id)[0])
        return out

    def write(self, tokens: Sequence[TokenOutput]) -> dict[str, Any]:
        """The object for the next tokens of the output."""
        out = _no_logprobs()
        for token in tokens:
            self._add(out, token.token_id, token, self._offset)
            self._offset += len(self._text.push(token.token_id)[0])
        return out

    def _add(self, out: dict[str, Any], token_id: int, score: TokenOutput | None, offset: int) -> None:
        text = token_text(self._tokenizer, token_id)
        tops = None if score is None else {token_text(self._tokenizer, i): p for i, p in score.top_logprobs}
        if score is not None and tops is not None:
            tops.setdefault(text, score.logprob or 0.0)
        out["tokens"].append(text)
        out["token_logprobs"].append(None if score is None else score.logprob)
        out["top_logprobs"].append(tops)
        out["text_offset"].append(offset)


class _WithSpecials:
    """Decodes as `echo_text` does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(ids, False)


def _no_logprobs() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def joined_logprobs(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two consecutive `logprobs` objects as one."""
    if first is None or second is None:
        return first or second
    return {key: first[key] + second[key] for key in first}


def echo_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    """The prompt as `echo` gives it back."""
    return tokenizer.decode(prompt.token_ids, False) if prompt.text is None else prompt.text


class ChoiceWriter:
    """The text and log-probabilities of one choice, output by output.

    Attributes:
        num_tokens: tokens generated so far.
        num_reused: prompt tokens that the engine had computed before, once it said so.
        bill: what the engine charged, once it said so.
        finish_reason: set by the last output.
    """

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, *, echo: bool, logprobs: bool) -> None:
        self._prompt = prompt
        self._echo: str | None = echo_text(prompt, tokenizer) if echo else None
        self._logprobs = LogprobsWriter(tokenizer, prompt.token_ids, self._echo) if logprobs else None
        self.num_tokens = 0
        self.num_reused = 0
        self.bill: MemoryCharge | None = None
        self.finish_reason: str | None = None

    def write(self, output: RequestOutput) -> tuple[str, dict[str, Any] | None]:
        """The new text and its `logprobs`; the first time with the echoed prompt in front."""
        text, logprobs = output.text, None
        self.num_tokens += len(output.tokens)
        self.bill = output.bill or self.bill
        self.num_reused = output.num_reused
        self.finish_reason = output.finish_reason
        if self._logprobs is not None and self._echo is not None and output.prompt_logprobs is not None:
            logprobs = self._logprobs.write_prompt(output.prompt_logprobs)
        if self._echo is not None:
            text, self._echo = self._echo + text, None
        if self._logprobs is not None:
            logprobs = joined_logprobs(logprobs, self._logprobs.write(output.tokens))
        return text, logprobs


def usage(prompts: Sequence[Prompt], writers: Sequence[ChoiceWriter], *, with_bill: bool) -> dict[str, Any]:
    """Token counts of a request and, where asked, the sum of what its choices' rows cost.

    `cached_tokens` of a prompt are those of its first choice, as its tokens are counted once.
    """
    prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    choices = len(writers) // len(prompts)
    completion_tokens = sum(writer.num_tokens for writer in writers)
    out: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(writer.num_reused for writer in writers[::choices])},
    }
    if with_bill:
        out["memory_bill"] = sum_bills([writer.bill for writer in writers])
    return out


def sum_bills(bills: Sequence[MemoryCharge | None]) -> dict[str, Any] | None:
    """Bills added up; None where nothing was charged, as for a model without looked-up rows."""
    known = [asdict(bill) for bill in bills if bill is not None]
    if not known:
        return None
    total: dict[str, Any] = {key: sum(bill[key] for bill in known) for key in known[0] if key != "hits_by_tier"}
    tiers = sorted({tier for bill in known for tier in bill["hits_by_tier"]})
    total["hits_by_tier"] = {tier: sum(bill["hits_by_tier"].get(tier, 0.0) for bill in known) for tier in tiers}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in total.items()}


def completion(
    request_id: str,
    model: str,
    created: int,
    choices: list[Choice],
    counts: dict[str, Any],
    *,
    fingerprint: str = "",
) -> bytes:
    """The whole answer of a request that does not stream; `fingerprint` names the table version where there is one."""
    body = {"id": request_id, "object": "text_completion", "created": created, "model": model}
    named = {"system_fingerprint": fingerprint} if fingerprint else {}
    return json.dumps({**body, **named, "choices": choices, "usage": counts}, ensure_ascii=False).encode()


def version_header(fingerprint: str) -> tuple[tuple[bytes, bytes], ...]:
    """The header that tells what `system_fingerprint` does; none where that is empty."""
    return ((b"x-table-version", fingerprint.encode()),) if fingerprint else ()


class StreamWriter:
    """Server-sent events of one request; what does not change from token to token is formatted once."""

    def __init__(
        self,
        request_id: str,
        model: str,
        created: int,
        *,
        num_choices: int,
        with_usage: bool,
        fingerprint: str = "",
    ) -> None:
        named = f'"system_fingerprint":{json.dumps(fingerprint)},' if fingerprint else ""
        head = (
            f'data: {{"id":{json.dumps(request_id)},"object":"text_completion","created":{created},'
            f'"model":{json.dumps(model)},{named}'
        )
        self._heads = [f'{head}"choices":[{{"index":{index},"text":' for index in range(num_choices)]
        self._tail = '}],"usage":null}\n\n' if with_usage else "}]}\n\n"
        self._plain_tail = ',"logprobs":null,"finish_reason":null' + self._tail
        self._usage_head = f'{head}"choices":[],"usage":'

    def chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> str:
        """One event with the new text of one choice."""
        if logprobs is None and finish_reason is None:
            return self._heads[index] + json.dumps(text) + self._plain_tail
        middle = f',"logprobs":{json.dumps(logprobs)},"finish_reason":{json.dumps(finish_reason)}'
        return self._heads[index] + json.dumps(text) + middle + self._tail

    def usage_chunk(self, counts: dict[str, Any]) -> str:
        """The event before the end that holds the usage."""
        return f"{self._usage_head}{json.dumps(counts)}}}\n\n"


def error_chunk(error: ApiError) -> str:
    """The event that ends a stream which failed after its first token."""
    return f"data: {json.dumps(error.body)}\n\n"
