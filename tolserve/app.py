"""The HTTP application (plain ASGI): routes, the key, admission, and the way of one completion request through it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tolserve.asgi import ClientStuckError, Receive, Scope, Send, bounded, send_body, send_error
from tolserve.async_engine import CompletionEngine, Submission
from tolserve.completions import Completion, prepare
from tolserve.engine.request import RequestOutput
from tolserve.link.protocol import error_kind
from tolserve.membership import Member
from tolserve.metrics import CONTENT_TYPE, Metrics
from tolserve.openai_api.errors import ApiError, invalid, too_late, unavailable
from tolserve.openai_api.prompts import ModelInfo, Tokenizer
from tolserve.openai_api.request import parse_request
from tolserve.openai_api.response import DONE, error_chunk, version_header
from tolserve.openai_api.schema import openapi
from tolserve.table_admin import METHODS, TableAdmin, handle_table

_log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""What the metrics call the answer that nobody waited for; the number is nginx's."""


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Limits and access of one application.

    Attributes:
        api_key: what `Authorization: Bearer` must carry; None asks for nothing.
        max_open: generations that may run or wait at once; more are answered with 429.
        max_body_bytes: larger bodies are answered with 413.
        retry_after_s: what a 429 suggests.
        send_timeout_s: a client that takes nothing of its answer for so long has its generations ended.

    Raises:
        ValueError: a limit is not positive, or the key is empty.
    """

    api_key: str | None = None
    max_open: int = 256
    max_body_bytes: int = 8 << 20
    retry_after_s: int = 1
    send_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_open", "max_body_bytes", "retry_after_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.send_timeout_s > 0:
            raise ValueError(f"send_timeout_s is {self.send_timeout_s}; it must be positive")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii()):
            raise ValueError("api_key must be ASCII text that is not empty; leave it out to ask for none")


class App:
    """An ASGI application over a `CompletionEngine`: /v1/completions, /v1/models, /health, /metrics, /openapi.json.

    `memory` tells what is known of the memory nodes, for /metrics; `admin` changes what is served, under /v1/table.
    """

    def __init__(
        self,
        engine: CompletionEngine,
        model: ModelInfo,
        tokenizer: Tokenizer,
        config: AppConfig,
        *,
        memory: Callable[[], Sequence[Member]] = tuple,
        admin: TableAdmin | None = None,
    ) -> None:
        self._engine = engine
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._num_open = 0
        self.metrics = Metrics(model.name, engine.stats, memory)
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/v1/completions": ("POST", self._completions),
            "/v1/models": ("GET", self._models),
            f"/v1/models/{model.name}": ("GET", self._one_model),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._described),
        }
        self._description = json.dumps(
            openapi(model, with_key=config.api_key is not None, with_table=admin is not None)
        ).encode()
        if admin is not None:
            self._routes["/v1/table"] = (METHODS, partial(handle_table, admin))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] != "http":
            raise RuntimeError(f"this application speaks http; a {scope['type']} connection came")
        try:
            method, handler = self._route(scope)
            if scope["method"] not in method.split(", "):
                raise ApiError(405, f"{scope['path']} takes {method}, not {scope['method']}", allow=method)
            await handler(scope, receive, send)
        except ApiError as error:
            await send_error(send, error)
        except Exception:  # noqa: BLE001 - the client gets an answer whatever it was
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await send_error(send, ApiError(500, "the server failed; its log has the reason"))

    def _route(self, scope: Scope) -> tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]:
        path = scope["path"]
        if self._config.api_key is not None and path.startswith("/v1/"):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, b"Bearer " + self._config.api_key.encode()):
                raise ApiError(
                    401, "the API key is missing or wrong: Authorization: Bearer KEY", None, "invalid_api_key"
                )
        if path not in self._routes:
            raise ApiError(404, f"no such path: {path}; known are {', '.join(self._routes)}", None, "not_found")
        return self._routes[path]

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._engine.ready():
            raise unavailable("no engine is in reach")
        await send_body(send, 200, b"{}")

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, 200, self.metrics.exposition(), content_type=CONTENT_TYPE)

    async def _described(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, 200, self._description)

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, 200, json.dumps({"object": "list", "data": [self._card()]}).encode())

    async def _one_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, 200, json.dumps(self._card()).encode())

    def _card(self) -> dict[str, Any]:
        card = {
            "id": self._model.name,
            "object": "model",
            "created": self._model.created,
            "owned_by": "tolserve",
        }
        return {**card, "max_model_len": self._model.max_model_len, "vocab_size": self._model.vocab_size}

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._complete(receive, send)
        except ApiError as error:
            self.metrics.answered(error.status)
            raise

    async def _complete(self, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        request = parse_request(await self._read_body(receive))
        if request.model != self._model.name:
            text = f"the model {request.model!r} is not served here; {self._model.name!r} is"
            raise ApiError(404, text, "model", "model_not_found")
        prompts, works = await prepare(request, self._model, self._tokenizer)
        completion = Completion(
            request,
            prompts,
            self._tokenizer,
            self.metrics,
            began,
            f"cmpl-{uuid.uuid4().hex}",
            int(time.time()),
        )
        answer = self._stream if request.stream else self._collect
        with self._places(len(works)):
            submission = self._submit(works, stream=bool(request.stream))
            watcher = asyncio.create_task(_cancel_on_disconnect(receive, submission))
            try:
                self.metrics.answered(await answer(completion, submission, bounded(send, self._config.send_timeout_s)))
            except ClientStuckError:  # without an end of its answer the server cuts the connection
                self.metrics.answered(CLIENT_GONE)
            finally:
                watcher.cancel()
                submission.cancel()

    async def _read_body(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the client went away before its body had come")
            body += message.get("body", b"")
            if len(body) > self._config.max_body_bytes:
                raise ApiError(
                    413,
                    f"the body is larger than {self._config.max_body_bytes} bytes",
                    None,
                    "body_too_large",
                )
            if not message.get("more_body"):
                return bytes(body)

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """Hold places for some generations, or refuse them."""
        limit = self._config.max_open
        if count > limit:
            raise invalid(f"{count} completions were asked for at once; this server takes {limit}", "n")
        if self._num_open + count > limit:
            text = f"{self._num_open} of {limit} places are taken; try again in {self._config.retry_after_s} s"
            raise ApiError(429, text, None, "rate_limit_exceeded", self._config.retry_after_s)
        self._num_open += count
        try:
            yield
        finally:
            self._num_open -= count

    def _submit(self, works: list[Any], *, stream: bool) -> Submission:
        try:
            return self._engine.submit(works, stream=stream)
        except RuntimeError as error:
            raise unavailable(str(error)) from error

    async def _collect(self, completion: Completion, submission: Submission, send: Send) -> int:
        """Answer in one piece; the status."""
        while not completion.done:
            completion.take(await _next(submission, completion))
        if completion.aborted:
            return CLIENT_GONE
        await send_body(send, 200, completion.body(), extra=version_header(completion.fingerprint))
        return 200

    async def _stream(self, completion: Completion, submission: Submission, send: Send) -> int:
        """Answer event by event; everything that is there goes out at once. The status."""
        text = completion.take(await _next(submission, completion))
        headers = [*_STREAM_HEADERS, *version_header(completion.fingerprint)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while not completion.done:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                text = completion.take(await _next(submission, completion))
            status = CLIENT_GONE if completion.aborted else 200
            last = text.encode() + completion.usage_event().encode() + DONE
        except ApiError as error:
            status, last = error.status, error_chunk(error).encode() + DONE
        await send({"type": "http.response.body", "body": last})
        return status


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def _next(submission: Submission, completion: Completion) -> list[tuple[int, Any]]:
    """The next outputs; a generation that failed fails the request.

    Raises:
        ApiError: 400, 408, 503 or 500, by the kind of the engine's error; 408 if it does not end what is too late.
    """
    outputs = await _before(completion.give_up_at, submission, completion)
    for _, output in outputs:
        if output.error is not None:
            completion.failed()
            kind = error_kind(output.error)
            if kind == "invalid":
                raise invalid(str(output.error))
            if kind == "deadline":
                raise too_late(str(output.error))
            if kind == "unavailable":
                raise unavailable(str(output.error))
            raise ApiError(500, f"the engine failed: {output.error}")
    completion.fingerprint = submission.fingerprint
    return outputs


async def _before(
    give_up_at: float | None, submission: Submission, completion: Completion
) -> list[tuple[int, RequestOutput]]:
    if give_up_at is None:
        return await submission.next()
    try:
        async with asyncio.timeout(give_up_at - time.monotonic()):
            return await submission.next()
    except TimeoutError:
        completion.failed()
        raise too_late("the request's deadline passed, and its engine did not answer in time") from None


async def _cancel_on_disconnect(receive: Receive, submission: Submission) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    submission.cancel()
