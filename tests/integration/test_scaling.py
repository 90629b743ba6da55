"""Attention nodes come and go with the queue, memory nodes give way to another number of them: no request fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from build_kit import RayHead
from serve_kit import Running, replica_pids, serving, serving_head, wait_until
from version_kit import CheckedLoad, Versions, build_version

from cluster.glance import Look
from tolserve.endpoint import Endpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with serving_head(tmp_path_factory.mktemp("r")) as one:
        yield one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions.make(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def endpoint(head: RayHead, made: Versions) -> Iterator[Running]:
    """It follows new versions; an attention node computes two generations at once, and there may be two of them."""
    table = ["--checkpoint", made.checkpoint, "--table", made.table, "--follow-versions", "0.5"]
    scale = ["--max-attention-replicas", "2", "--max-num-seqs", "2", "--scale-down-after-s", "2"]
    with serving(head.environment, *table, *scale, "--port", "0") as running:
        yield running


def num_reached(endpoint: Running) -> float:
    return Look.at(Endpoint(endpoint.url)).value("tol_attention_replicas")


def test_attention_nodes_come_with_the_queue_and_end_when_they_have_finished(endpoint: Running, made: Versions) -> None:
    memory = replica_pids("MemoryNodes")
    assert num_reached(endpoint) == 1
    with CheckedLoad(endpoint.url, made.texts, clients=1) as steady:
        with CheckedLoad(endpoint.url, made.texts, clients=6) as crowd:
            wait_until(lambda: num_reached(endpoint) == 2 or bool(crowd.wrong), timeout_s=120)
            crowd.await_more(made.fingerprint(3))
        wait_until(lambda: num_reached(endpoint) == 1 or bool(steady.wrong), timeout_s=120)
        steady.await_more(made.fingerprint(3))
    assert crowd.wrong == steady.wrong == []
    assert replica_pids("MemoryNodes") == memory


def test_memory_nodes_give_way_to_others_under_load(head: RayHead, endpoint: Running, made: Versions) -> None:
    command = [sys.executable, "-m", "tolserve.repartition", "--memory-nodes"]
    environment = os.environ | dict(head.environment)
    with CheckedLoad(endpoint.url, made.texts, clients=2) as load:
        for number in ("2", "1"):
            done = subprocess.run(
                [*command, number], env=environment, capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            load.await_more(made.fingerprint(3))
            state = Endpoint(endpoint.url).table()
            assert state["serving"] == {"version": 3, "memory_nodes": int(number)}
            holders = {one["memory_nodes"] for one in state["nodes"] if one["kind"] == "memory" and one["versions"]}
            assert holders == {int(number)}
    assert load.wrong == []
    wait_until(lambda: len(replica_pids("MemoryNodes")) == 1)


def test_a_new_version_is_followed(endpoint: Running, made: Versions) -> None:
    build_version(made.checkpoint, made.table, codes="int8", rank=8)
    wait_until(lambda: Endpoint(endpoint.url).table()["serving"]["version"] == 4)
    wait_until(lambda: Endpoint(endpoint.url).table()["stage"] == "steady")


def test_the_end_takes_all_of_it_down(endpoint: Running) -> None:
    """The last test of this endpoint."""
    assert endpoint.interrupt() == 0
    wait_until(lambda: not replica_pids(""))
