"""Frames between gateway and replica: a big-endian uint32 length, then that many bytes of JSON.

Gateway to replica: {"submit": id, "prompt": [ids], "params": {SamplingParams}, "stream": bool}, where it is to be of a
certain edition "edition": key besides, {"cancel": id}.
Replica to gateway: first {"hello": {...}}; then {"out": [output, ...]} and, now and then, {"stats": {...}}; both name
the editions that it has, {"editions": {key: fingerprint}}. {"draining": true} asks for nothing new.
An output is [id, text, [token ids]] while a request runs plainly; else a fourth element holds the rest by name.
Ids are integers that the gateway chooses, unique on its connection. Nothing is trusted: a frame over MAX_FRAME_BYTES,
or one that is no such JSON, ends the connection.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, fields
from typing import Any

from tolserve.engine.request import DeadlineError, MemoryCharge, RequestOutput, SamplingParams, TokenOutput

MAX_FRAME_BYTES = 64 << 20
LENGTH = struct.Struct(">I")

_PARAMS = {field.name for field in fields(SamplingParams)}


class LinkError(Exception):
    """The other side sent what is no frame of this protocol."""


class RemoteError(Exception):
    """An engine's error, on the gateway's side.

    Attributes:
        kind: "invalid" (the request), "deadline" (its own has passed), "unavailable" (rows could not be had; a later
            try may work) or "internal".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def error_kind(error: Exception) -> str:
    """How an engine's error is to be answered (see `RemoteError`)."""
    if isinstance(error, RemoteError):
        return error.kind
    if isinstance(error, ValueError):
        return "invalid"
    if isinstance(error, DeadlineError):
        return "deadline"
    return "unavailable" if isinstance(error, TimeoutError | ConnectionError) else "internal"


def encode(message: dict[str, Any]) -> bytes:
    """A message as a frame."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A frame's body as a message.

    Raises:
        LinkError: it is no JSON object.
    """
    try:
        message = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise LinkError(f"a frame of {len(body)} bytes is no JSON: {error}") from error
    if not isinstance(message, dict):
        raise LinkError(f"a frame holds {type(message).__name__}; it must hold an object")
    return message


def frame_length(header: bytes | bytearray | memoryview) -> int:
    """The body's length that a frame's first four bytes state.

    Raises:
        LinkError: it is over MAX_FRAME_BYTES.
    """
    (length,) = LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise LinkError(f"a frame of {length} bytes was announced; at most {MAX_FRAME_BYTES} are taken")
    return int(length)


def params_to_wire(params: SamplingParams) -> dict[str, Any]:
    """Sampling parameters as JSON values."""
    return asdict(params)


def params_from_wire(values: Any) -> SamplingParams:
    """The inverse of `params_to_wire`.

    Raises:
        LinkError: a field is unknown or its value does not fit.
    """
    try:
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if values.keys() - _PARAMS:
            raise ValueError(f"unknown parameters {sorted(values.keys() - _PARAMS)}")
        return SamplingParams(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise LinkError(f"sampling parameters do not fit: {error}") from error


def output_to_wire(wire_id: int, output: RequestOutput) -> list[Any]:
    """An output as JSON values; the bill goes with the last one only."""
    plain: list[Any] = [wire_id, output.text, [token.token_id for token in output.tokens]]
    rest: dict[str, Any] = {}
    if any(token.logprob is not None for token in output.tokens):
        rest["logprobs"] = [[token.logprob, token.top_logprobs] for token in output.tokens]
    if output.prompt_logprobs is not None:
        rest["prompt"] = output.prompt_logprobs
    if output.finished:
        rest["finish"] = output.finish_reason
        rest["bill"] = None if output.bill is None else asdict(output.bill)
        rest["reused"] = output.num_reused
        rest["error"] = None if output.error is None else [error_kind(output.error), str(output.error)]
    if output.since_first_s:
        rest["since_first_s"] = output.since_first_s
    return [*plain, rest] if rest else plain


def output_from_wire(values: list[Any]) -> tuple[int, RequestOutput]:
    """The inverse of `output_to_wire`.

    Raises:
        LinkError: the values do not make an output.
    """
    try:
        wire_id, text, token_ids = values[:3]
        if len(values) == 3:
            tokens = tuple(TokenOutput(token) for token in token_ids)
            return wire_id, RequestOutput(request_id="", tokens=tokens, text=text)
        return wire_id, _full_output(text, token_ids, values[3])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise LinkError(f"an output of {len(values)} values does not fit: {error!r}") from error


def _full_output(text: str, token_ids: list[int], rest: dict[str, Any]) -> RequestOutput:
    logprobs = rest.get("logprobs") or [[None, ()]] * len(token_ids)
    prompt, error = rest.get("prompt"), rest.get("error")
    return RequestOutput(
        request_id="",
        tokens=tuple(_token(token, logprob, tops) for token, (logprob, tops) in zip(token_ids, logprobs, strict=True)),
        text=text,
        finished="finish" in rest,
        finish_reason=rest.get("finish"),
        prompt_logprobs=None if prompt is None else tuple(None if one is None else _token(*one) for one in prompt),
        bill=None if rest.get("bill") is None else MemoryCharge(**rest["bill"]),
        num_reused=int(rest.get("reused", 0)),
        error=None if error is None else RemoteError(*error),
        since_first_s=float(rest.get("since_first_s", 0.0)),
    )


def _token(token_id: int, logprob: float | None, tops: list[list[Any]]) -> TokenOutput:
    return TokenOutput(token_id, logprob, tuple((int(token), float(value)) for token, value in tops))


def merged(outputs: list[RequestOutput], since_first_s: float) -> RequestOutput:
    """The outputs of one request, the finished one last, as one; they came within `since_first_s`."""
    last = outputs[-1]
    return RequestOutput(
        request_id=last.request_id,
        tokens=tuple(token for output in outputs for token in output.tokens),
        text="".join(output.text for output in outputs),
        finished=last.finished,
        finish_reason=last.finish_reason,
        prompt_logprobs=next((one.prompt_logprobs for one in outputs if one.prompt_logprobs is not None), None),
        bill=last.bill,
        num_reused=last.num_reused,
        error=last.error,
        since_first_s=since_first_s,
    )
