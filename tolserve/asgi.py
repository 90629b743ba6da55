"""ASGI as the application uses it: its types, an answer in one piece, and sends that do not wait for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tolserve.openai_api.errors import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientStuckError(Exception):
    """A client does not read its answer."""


def bounded(send: Send, timeout_s: float) -> Send:
    """`send`, raising `ClientStuckError` where a client leaves no room for the next message for so long."""

    async def bounded_send(message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await send(message)
        except TimeoutError as error:
            raise ClientStuckError from error

    return bounded_send


async def send_body(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: str = "application/json",
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """A whole answer."""
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """An error as the API words it, with the headers that its status asks for."""
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_s is not None:
        extra = ((b"retry-after", str(error.retry_after_s).encode()),)
    if error.allow is not None:
        extra += ((b"allow", error.allow.encode()),)
    if error.status == 401:
        extra += ((b"www-authenticate", b"Bearer"),)
    await send_body(send, error.status, json.dumps(error.body).encode(), extra=extra)
