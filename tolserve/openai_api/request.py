"""The body of POST /v1/completions, checked field by field before anything is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tolserve.engine.request import SamplingParams
from tolserve.openai_api.errors import invalid

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_DEADLINE_S = 86_400.0
MAX_CHOICES = 128
"""Most completions that one request may ask for: prompts times n."""


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """A completion request; field names and defaults are the OpenAI API's.

    Beyond it: `top_k`, `stop_token_ids`, `ignore_eos`, `priority` (as vLLM has them: the lower is the more urgent),
    `deadline_s`, after which the request ends with 408, and `memory_bill`, which asks for what the request's looked-up
    rows cost in `usage`. The penalties, `logit_bias`, `suffix` and `best_of` are accepted at
    the value that asks for nothing, since clients send them so. `prompt` is checked by `prompts.parse_prompts`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str
    prompt: Any
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = 16
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = False
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_STOP_STRINGS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    deadline_s: Annotated[float, Field(gt=0.0, le=MAX_DEADLINE_S)] | None = None
    memory_bill: bool = False
    user: str | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1.0, le=1.0)] | None = None

    @field_validator("stop")
    @classmethod
    def _stop_strings(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > MAX_STOP_STRINGS:
            raise ValueError(f"{len(texts)} stop strings; at most {MAX_STOP_STRINGS} are taken")
        for text in texts:
            if not 0 < len(text) <= MAX_STOP_CHARS:
                raise ValueError(f"a stop string has {len(text)} characters; it must have 1 to {MAX_STOP_CHARS}")
        return value

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in its one form."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """Completions of each prompt."""
        return self.n or 1

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return self.memory_bill or bool(self.stream_options and self.stream_options.include_usage)


def parse_request(body: bytes) -> CompletionRequest:
    """The request that a body states.

    Raises:
        ApiError: 400 with the first fault: no JSON, no object, an unknown field, a wrong type or size.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "list[", "constrained-"))]
        if fault["type"] == "json_invalid":
            raise invalid(f"the body is no valid JSON: {fault['msg']}") from None
        if fault["type"] == "extra_forbidden":
            known = ", ".join(sorted(CompletionRequest.model_fields))
            raise invalid(f"unknown field {'.'.join(path)!r}; known ones: {known}", path[0]) from None
        where = ".".join(path) or "the body"
        raise invalid(f"{where}: {fault['msg']}", path[0] if path else None) from None
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is only for stream: true", "stream_options")
    return request


def sampling_params(request: CompletionRequest, *, choice: int, vocab_size: int, max_tokens: int) -> SamplingParams:
    """What the engine is told for choice `choice` of a prompt; choices of one seed draw from different ones.

    `max_tokens` is the request's bound, already cut to what the model's length leaves.

    Raises:
        ApiError: 400 for a stop token outside the vocabulary.
    """
    outside = [token for token in request.stop_token_ids or () if token >= vocab_size]
    if outside:
        raise invalid(f"stop token {outside[0]} is outside the vocabulary of {vocab_size}", "stop_token_ids")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else float(request.temperature),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        top_k=max(0, request.top_k or 0),
        seed=None if request.seed is None else (request.seed + choice) % 2**64,
        stop=request.stop_strings,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        ignore_eos=request.ignore_eos,
        priority=request.priority,
        deadline_s=request.deadline_s,
    )
