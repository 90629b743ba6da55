"""A serving endpoint goes from one table version to another under load: no request fails, no answer mixes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from build_kit import RayHead
from serve_kit import Running, make_served_checkpoint, replica_pids, serving, serving_head, wait_until
from version_kit import PROMPTS, CheckedLoad, Versions, build_version

from cluster import status
from tolserve import versions
from tolserve.endpoint import Endpoint, EndpointError

pytestmark = pytest.mark.slow  # tests/integration/test_edition_switch.py has the same without a cluster


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with serving_head(tmp_path_factory.mktemp("r")) as one:
        yield one


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions.make(tmp_path_factory.mktemp("versions"))


@pytest.fixture(scope="module")
def endpoint(head: RayHead, made: Versions) -> Iterator[Running]:
    """Two memory nodes and an attention node that serve version 1."""
    options = ["--checkpoint", made.checkpoint, "--table", made.table, "--table-version", "1", "--memory-nodes", "2"]
    with serving(head.environment, *options, "--port", "0", "--cache-share", "0.3") as running:
        yield running


def use(endpoint: Running, version: int | str) -> int:
    return versions.main(["--url", endpoint.url, "use", str(version)])


def versions_of(endpoint: Running, kind: str) -> list[list[int]]:
    return [node["versions"] for node in Endpoint(endpoint.url).table()["nodes"] if node["kind"] == kind]


def test_a_switch_and_the_way_back_fail_no_request_and_mix_no_answer(endpoint: Running, made: Versions) -> None:
    one, two = made.fingerprint(1), made.fingerprint(2)
    assert made.texts[one] != made.texts[two]
    nodes = replica_pids("MemoryNodes") + replica_pids("AttentionDeployment")
    with CheckedLoad(endpoint.url, made.texts, clients=3) as load:
        assert use(endpoint, 2) == 0
        load.await_more(two)
        assert use(endpoint, 1) == 0
        load.await_more(one)
    assert load.wrong == []
    assert set(load.seen) == {one, two}
    assert versions_of(endpoint, "memory") == [[1], [1]]
    assert versions_of(endpoint, "attention") == [[1]]
    assert sorted(replica_pids("MemoryNodes") + replica_pids("AttentionDeployment")) == sorted(nodes)


def test_what_cannot_be_served_is_refused_and_what_serves_goes_on(
    endpoint: Running, made: Versions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_served_checkpoint(tmp_path / "other", seed=4)
    build_version(other, made.table, codes="fp32")
    assert use(endpoint, "latest") == 1
    assert "was built from the checkpoint" in capsys.readouterr().err
    assert use(endpoint, 9) == 1
    assert "9" in capsys.readouterr().err
    asked = Endpoint(endpoint.url)
    assert asked.use_version(2)["stage"] == "loading"
    with pytest.raises(EndpointError, match=r"409.*version 3 on 2 partitions would be the third"):
        asked.use_version(3)
    assert versions.wait_steady(asked, asked.table(), report=print)["serving"]["version"] == 2
    client = openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0)
    answer = client.completions.create(model="letters", prompt=PROMPTS[0], max_tokens=4, temperature=0)
    assert answer.system_fingerprint == made.fingerprint(2)


def test_the_listing_and_the_status_say_what_runs(endpoint: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert versions.main(["--url", endpoint.url, "list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [["1"], ["2", "serves"], ["3"], ["4"]]
    wait_until(lambda: len(versions_of(endpoint, "attention")) == 1)
    assert status.main(["--url", endpoint.url, "--interval", "0.1", "--json"]) == 0
    seen: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert seen["serving"] == {"version": 2, "memory_nodes": 2}
    assert [node["versions"] for node in seen["memory"]] == [[2], [2]]
    assert sorted(node["partition"] for node in seen["memory"]) == [0, 1]
    assert sum(seen["attention"][0]["rows_by_tier"].values()) == pytest.approx(1, abs=1e-3)
    assert status.main(["--url", endpoint.url, "--interval", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "version 2 on 2 partitions serves" in text and "0 of 2" in text and "rows from" in text


def test_the_status_where_nothing_runs_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["--url", "http://127.0.0.1:9"]) == 1
    assert "no endpoint answers at http://127.0.0.1:9" in capsys.readouterr().err
