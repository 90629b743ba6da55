"""Endpoints on a real Ray Serve whose rows come from the object store: through memory nodes, and without them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from build_kit import RayHead
from serve_kit import Running, make_served_checkpoint, make_table, serving, serving_head, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with serving_head(tmp_path_factory.mktemp("r")) as one:
        yield one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = make_served_checkpoint(folder / "letters")
    return ["--checkpoint", checkpoint, "--table", make_table(checkpoint, folder / "table"), "--port", "0"]


def complete(endpoint: Running) -> dict[str, Any]:
    fields = {"model": "letters", "prompt": "some words", "max_tokens": 8, "temperature": 0, "memory_bill": True}
    request = urllib.request.Request(f"{endpoint.url}/completions", json.dumps(fields).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def metric(endpoint: Running, name: str) -> float:
    """The sum of one metric's samples."""
    with urllib.request.urlopen(f"{endpoint.url.removesuffix('/v1')}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def test_rows_come_from_the_store_and_are_billed_by_tier(head: RayHead, model: list[str]) -> None:
    texts = []
    through_nodes = ["--keep", "store", "--memory-nodes", "2", "--cache-share", "0", "--host-cache-bytes", "200000"]
    with serving(head.environment, *model, *through_nodes) as endpoint:
        texts.append(complete(endpoint)["choices"][0]["text"])
        answer = complete(endpoint)
        assert set(answer["usage"]["memory_bill"]["hits_by_tier"]) <= {"host", "flight"}
        wait_until(lambda: metric(endpoint, "tol_node_store_reads_total") > 0)
        assert metric(endpoint, "tol_node_cache_misses_total") > 0
        assert metric(endpoint, "tol_host_cache_rows") > 0
    with serving(head.environment, *model, "--rows", "store", "--cache-share", "0") as endpoint:
        answer = complete(endpoint)
        texts.append(answer["choices"][0]["text"])
        assert answer["usage"]["memory_bill"]["hits_by_tier"]["store"] > 0
        wait_until(lambda: metric(endpoint, "tol_store_reads_total") > 0)
        assert metric(endpoint, "tol_attention_replicas") == 1
    assert texts[0] == texts[1]
