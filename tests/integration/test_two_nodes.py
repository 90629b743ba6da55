"""A build over two network namespaces, its store in one: a node that is lost on the way changes no byte."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_kit import contents, make_checkpoint, run_build

from cluster.namespaces import Namespace, NotPermittedError
from cluster.two_nodes import TwoNodes, two_nodes

OPTIONS = ("--rank", "24", "--codes", "int8", "--layers-per-band", "1", "--shard-rows", "64", "--device", "cpu")
"""765 cells of a 16,000-token, 3-layer model: 12 sums, 3 fits, 750 shards."""

COPY = """
import sys
from tolbuild.table.store import open_store
source, target = map(open_store, sys.argv[1:])
for info in source.list():
    target.write(info.key, source.read(info.key))
"""

MAKE_BUCKET = """
import os, boto3
boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket="tables")
"""

AWAIT_RECEIPTS = """
import sys, time
from tolbuild.table.store import open_store
store = open_store(sys.argv[1])
while len(store.list("receipts")) < int(sys.argv[2]):
    time.sleep(0.02)
"""


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    try:
        with two_nodes() as found:
            yield found
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces here: {error}")


def python(nodes: TwoNodes, *words: str, timeout_s: float = 120) -> None:
    """A command of this environment in the head's namespace, which has to succeed."""
    assert nodes.start("python", *words).wait(timeout_s) == 0


def build_workers(place: Namespace) -> list[int]:
    """Processes in a namespace in which Ray runs build workers."""
    lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in place.pids()}
    return [pid for pid, path in lines.items() if path.exists() and path.read_bytes().startswith(b"ray::WorkerActor")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_changes_no_byte(nodes: TwoNodes, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", vocab_size=16_000)
    alone = run_build("--checkpoint", checkpoint, "--table", str(tmp_path / "alone"), *OPTIONS, "--no-ray")
    assert alone.returncode == 0, alone.stderr
    python(nodes, "-c", MAKE_BUCKET)
    python(nodes, "-c", COPY, checkpoint, "s3://tables/model")

    line = ("--checkpoint", "s3://tables/model", "--table", "s3://tables/built", *OPTIONS, "--workers", "2")
    log = tmp_path / "build.log"
    build = nodes.start("python", "-m", "tolbuild.run", *line, "--spool-dir", str(tmp_path / "spool"), log=log)
    python(nodes, "-c", AWAIT_RECEIPTS, "s3://tables/built", "8")
    while not build_workers(nodes.worker):
        assert build.poll() is None, f"the build ended without the second host: {log.read_text()}"
        time.sleep(0.02)
    assert len(build_workers(nodes.head)) == len(build_workers(nodes.worker)) == 1
    assert nodes.worker.kill() >= 2
    try:
        assert build.wait(180) == 0, log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(log.read_text())
    said = log.read_text()
    assert "was lost" in said and "version 1" in said

    python(nodes, "-c", COPY, "s3://tables/built", str(tmp_path / "copied"))
    assert contents(tmp_path / "copied") == contents(tmp_path / "alone")
