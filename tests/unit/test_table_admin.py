"""/v1/table: what a body asks for, and what the directory's refusals become."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tolserve.openai_api.errors import ApiError
from tolserve.rollout import ChangeRefusedError
from tolserve.table_admin import handle_table, parse_version


class Told:
    """Who answers with what it was asked for, or fails."""

    def __init__(self, fault: Exception | None = None) -> None:
        self._fault = fault

    async def table_state(self) -> dict[str, Any]:
        return await self.use_version(0)

    async def use_version(self, version: int | None) -> dict[str, Any]:
        if self._fault is not None:
            raise self._fault
        return {"asked": version}


def answer(admin: Told, method: str, body: bytes = b"") -> dict[str, Any]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(handle_table(admin, {"method": method}, receive, send))
    assert sent[0]["status"] == 200
    found: dict[str, Any] = json.loads(sent[1]["body"])
    return found


def test_a_version_is_asked_for_by_its_number_or_as_the_latest() -> None:
    assert answer(Told(), "POST", b'{"version": 3}') == {"asked": 3}
    assert answer(Told(), "POST", b'{"version": "latest"}') == {"asked": None}
    assert answer(Told(), "GET") == {"asked": 0}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"version": 0}', b'{"version": true}', b'{"version": "1"}', b'{"version": 1, "x": 2}']
)
def test_a_body_that_asks_for_no_version_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse_version(body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("fault", "status"), [(ChangeRefusedError("another is under way"), 409), (TimeoutError("late"), 503)]
)
def test_what_the_directory_cannot_do_is_told(fault: Exception, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        answer(Told(fault), "POST", b'{"version": 3}')
    assert refused.value.status == status and refused.value.body


def test_a_large_body_is_refused() -> None:
    with pytest.raises(ApiError) as refused:
        answer(Told(), "POST", b" " * 5000)
    assert refused.value.status == 413
