"""/openapi.json: real answers are what it says, and schemathesis, run as a program, finds no fault."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from http_kit import MODEL, Service, running

from tolserve.app import AppConfig
from tolserve.openai_api.request import CompletionRequest

SCHEMATHESIS = """
[checks.positive_data_acceptance]
# 400: what JSON Schema cannot say, as more prompts times n than are taken
expected-statuses = ["200", "400", "404", "429"]
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with running(AppConfig(max_open=8, api_key="secret"), faults={}) as one:
        yield one


@pytest.fixture(scope="module")
def described(service: Service) -> dict[str, Any]:
    status, found, _ = service.raw("GET", "/openapi.json")
    assert status == 200
    return dict(found)


def check(described: dict[str, Any], name: str, value: object) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)


def test_schemas_are_schemas_and_every_field_of_a_request_is_there(described: dict[str, Any]) -> None:
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    request = described["components"]["schemas"]["CompletionRequest"]
    assert set(request["properties"]) == set(CompletionRequest.model_fields)
    paths = described["paths"]
    assert set(paths) == {"/v1/completions", "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    assert all(
        ("security" in operation) == path.startswith("/v1/") for path in paths for operation in paths[path].values()
    )


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"prompt": [[1, 2], [3]], "stop": ["a"], "max_tokens": None}, True),
        ({"prompt": [MODEL.vocab_size]}, False),
        ({"prompt": []}, False),
        ({"model": "other"}, False),
        ({"stop": ""}, False),
        ({"colour": 1}, False),
    ],
)
def test_what_a_request_may_say(described: dict[str, Any], fields: dict[str, Any], fits: bool) -> None:
    asked = {"model": "letters", "prompt": "abc", **fields}
    if fits:
        check(described, "CompletionRequest", asked)
    else:
        with pytest.raises(jsonschema.ValidationError):
            check(described, "CompletionRequest", asked)


def test_answers_are_what_is_described(service: Service, described: dict[str, Any]) -> None:
    more = {"logprobs": 2, "memory_bill": True, "max_tokens": 16}
    check(described, "Completion", service.post(**more, echo=True)[1])
    stream = service.post(**more, stream=True)[1]
    *events, done = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert done == "[DONE]" and len(events) == 17
    for event in events:
        check(described, "Chunk", json.loads(event))
    check(described, "Error", service.post(colour=1)[1])
    check(described, "Model", service.raw("GET", "/v1/models/letters")[1])


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_fault(service: Service, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    program = str(Path(sys.executable).with_name("schemathesis"))
    limits = ["--phases=coverage,fuzzing", "--max-examples=10", "--seed=1", "--header=Authorization: Bearer secret"]
    url = service.url.removesuffix("/v1") + "/openapi.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS_")}
    done = subprocess.run(
        [program, "--config-file=schemathesis.toml", "run", url, *limits],
        cwd=tmp_path,
        env=environment | {"NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 selected / 5 total" in done.stdout and "No issues found" in done.stdout
