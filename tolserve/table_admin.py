"""/v1/table: which table version an endpoint serves, and leading it to another while it serves.

GET tells the state (see `tolserve.conductor.Conductor.state`, and "published", the versions that there are). POST
{"version": 2} or {"version": "latest"} begins a change and answers at once; GET shows how it goes.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from tolbuild.table.errors import ToLError
from tolserve.asgi import Receive, Scope, Send, send_body
from tolserve.openai_api.errors import ApiError, invalid

METHODS = "GET, POST"
_MAX_BODY_BYTES = 4096


class TableAdmin(Protocol):
    """Who knows and changes what is served."""

    async def table_state(self) -> dict[str, Any]:
        """What is served, by which nodes; JSON values."""
        ...

    async def use_version(self, version: int | None) -> dict[str, Any]:
        """Begin to go to a version, None is the latest; the state then.

        Raises:
            ToLError: it cannot be, or not now.
        """
        ...


async def handle_table(admin: TableAdmin, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request.

    Raises:
        ApiError: 400 for a body that names no version, 409 for a change that cannot be, or not now, 503 where nobody
            can say.
    """
    try:
        if scope["method"] == "GET":
            state = await admin.table_state()
        else:
            state = await admin.use_version(parse_version(await _body(receive)))
    except ToLError as error:
        raise ApiError(409, str(error), None, "change_refused") from error
    except TimeoutError as error:
        raise ApiError(503, "the directory did not answer; try again", None, "unavailable", 1) from error
    await send_body(send, 200, json.dumps(state).encode())


def parse_version(body: bytes) -> int | None:
    """The version that a body asks for; None for the latest.

    Raises:
        ApiError: 400, it asks for none.
    """
    try:
        change = json.loads(body)
    except ValueError as error:
        raise invalid(f"the body is no JSON: {error}") from error
    if not isinstance(change, dict) or set(change) != {"version"}:
        raise invalid('the body must be {"version": N} or {"version": "latest"}')
    version = change["version"]
    if version == "latest":
        return None
    if type(version) is not int or version < 1:
        raise invalid(f'version is {version!r}; it must be a number from 1, or "latest"', "version")
    return version


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            raise ApiError(413, f"the body is larger than {_MAX_BODY_BYTES} bytes", None, "body_too_large")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return bytes(body)
