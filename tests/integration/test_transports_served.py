"""An endpoint whose rows travel by Flight with certificates and a token, and one whose rows are Ray calls."""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from build_kit import RayHead
from row_kit import TIMEOUT_S, wait_until
from security_kit import TOKEN, Authority
from serve_kit import make_served_checkpoint, make_table, serving, serving_head
from table_kit import table_spec, write_table

from tolbuild.checkpoint import open_checkpoint
from tolbuild.table import open_store
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.node import MemoryNode
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.spec import RowSpec
from tolserve.on_ray.launch import own_cluster
from tolserve.on_ray.rows import RayMemoryNode, RayTransport
from tolserve.replica import open_rows
from tolserve.serve_config import ServeConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = make_served_checkpoint(folder / "letters")
    return checkpoint, make_table(checkpoint, folder / "table")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with serving_head(tmp_path_factory.mktemp("r")) as one:
        yield one


def complete(url: str) -> dict[str, Any]:
    body = json.dumps({"model": "letters", "prompt": "abc", "max_tokens": 20, "temperature": 0, "memory_bill": True})
    with urllib.request.urlopen(f"{url}/completions", body.encode(), timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def metric(url: str, name: str) -> float:
    """The sum over all labels."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@pytest.mark.parametrize("transport", ["tcp", "flight"])
def test_an_attention_node_reads_its_rows_by_each_transport(
    model: tuple[str, str], tmp_path: Path, transport: str
) -> None:
    checkpoint, table = model
    (tmp_path / "token").write_text(TOKEN)
    files = vars(Authority(tmp_path).security(token_file=str(tmp_path / "token"), tls_name="rows.example"))
    config = ServeConfig(checkpoint=checkpoint, table=table, transport=transport, **files)  # type: ignore[arg-type]
    node = MemoryNode(NodeConfig(table=table, transport=transport, security=config.security)).start()
    rows = open_rows(config, open_checkpoint(checkpoint).config, None, [[node.address]])
    assert rows.source is not None
    handle = rows.source.start(np.arange(20))
    for band in range(2):
        assert np.asarray(rows.source.wait(handle, band)).any()
    assert node.figures()["num_rows"] == 20
    rows.source.close()
    node.stop()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "flight", "ray"])
def test_an_endpoint_serves_by_each_transport(
    head: RayHead, model: tuple[str, str], tmp_path: Path, transport: str
) -> None:
    options = ["--checkpoint", model[0], "--table", model[1], "--memory-nodes", "2", "--cache-share", "0"]
    if transport != "ray":
        (tmp_path / "token").write_text(TOKEN)
        files = Authority(tmp_path).security(token_file=str(tmp_path / "token"), tls_name="rows.example")
        options += itertools.chain(*((f"--{key.replace('_', '-')}", value) for key, value in vars(files).items()))
    with serving(head.environment, *options, "--transport", transport, "--port", "0", "--verify-rows") as running:
        answer = complete(running.url)
        bill = answer["usage"]["memory_bill"]
        assert bill["hits_by_tier"]["remote"] > 0 and bill["bytes_moved"] > 0
        wait_until(lambda: metric(running.url, "tol_node_rows_total") > 0)
        assert metric(running.url, "tol_rows_verified_total") > 0
        assert metric(running.url, "tol_row_mismatches_total") == 0
        assert running.interrupt() == 0


@pytest.mark.slow
def test_an_actor_that_dies_or_is_frozen_is_replaced_by_its_replica(tmp_path: Path) -> None:
    made = write_table(open_store(tmp_path / "table"), table_spec(vocab_size=300, width=1024))
    expected = [np.ascontiguousarray(codes).view(np.uint8) for codes in made.codes]
    config = NodeConfig(table=str(tmp_path / "table"))
    with tempfile.TemporaryDirectory(prefix="tol-ray-") as folder, own_cluster(Path(folder)):
        nodes = [RayMemoryNode(config) for _ in range(3)]
        assert all(node.identity == made.manifest.identity for node in nodes)
        patience = ClientConfig(silence_s=1.0, connect_s=5.0, deadline_s=TIMEOUT_S)
        spec = RowSpec.from_manifest(made.manifest)
        client = PartitionedClient(spec, [[node.address for node in nodes]], patience, RayTransport())
        wait_until(lambda: client.num_connected == 3)
        source = CachedSource(client)

        def fetch() -> None:
            ids = np.arange(100)
            handle = source.start(ids)
            for band, rows in enumerate(expected):
                assert np.array_equal(source.wait(handle, band), rows[ids])
            source.release(handle)

        fetch()
        nodes[0].stop()
        fetch()
        pid = ray.get(nodes[1]._actor.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGSTOP)
        fetch()
        os.kill(pid, signal.SIGCONT)
        for node in nodes[1:]:
            node.stop()
        client.config = ClientConfig(deadline_s=1.0)  # type: ignore[misc]
        with pytest.raises(NodesUnavailableError, match=nodes[2].address[0]):
            fetch()
        source.close()
