"""OpenAI's JavaScript SDK, unchanged, against the endpoint: completions, streams, log-probabilities, models, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_kit import running

from tolserve.app import AppConfig

CLIENT = Path(__file__).parents[2] / "infra" / "node-client"


def missing() -> str:
    """Why it cannot be run here; empty where it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    there = (CLIENT / "node_modules" / "openai").exists()
    return "" if there else "the openai package is not installed; `make venv` does that where npm is"


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module", params=[0, 1], ids=["local", "linked"])
def said(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What the client had as answers."""
    with running(AppConfig(api_key="secret"), linked=request.param, faults={}) as service:
        command = ["node", "ask.js", service.url, "letters", "secret"]
        done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_completions_and_their_usage(said: dict[str, Any]) -> None:
    texts = ["abca", "abca", "xyxy", "xyxy"]
    assert said["whole"] == [[index, text, "length"] for index, text in enumerate(texts)]
    assert said["tokens"] == 5 + 16


def test_logprobs_of_an_echoed_prompt(said: dict[str, Any]) -> None:
    logprobs = said["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "a", "b"]
    assert logprobs["token_logprobs"] == [None, -2, -1, -1]
    assert logprobs["top_logprobs"][0] is None and logprobs["top_logprobs"][2] == {"a": -1, "b": -2}
    assert logprobs["text_offset"] == [0, 1, 2, 3]


def test_streams_end_with_the_usage(said: dict[str, Any]) -> None:
    assert said["pieces"] == list("abcab")
    assert said["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_models(said: dict[str, Any]) -> None:
    assert said["models"] == ["letters"]
    assert said["model"] == "letters"


@pytest.mark.parametrize(
    ("status", "name", "code", "param"),
    [
        (400, "BadRequestError", None, "max_tokens"),
        (401, "AuthenticationError", "invalid_api_key", None),
        (404, "NotFoundError", "model_not_found", "model"),
    ],
)
def test_errors_have_the_sdks_classes(
    said: dict[str, Any], status: int, name: str, code: str | None, param: str | None
) -> None:
    assert said["errors"][str(status)] == {"name": name, "status": status, "code": code, "param": param}
