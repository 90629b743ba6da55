"""The same answers wherever rows lie and whatever is cached on the way; a store that is down is an error in time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_models import run_all, token_ids
from s3_kit import s3_server
from s3_proxy import ALWAYS, Proxy, be_silent, s3_proxy
from serve_kit import make_served_checkpoint, make_table

from tolbuild.checkpoint import open_checkpoint
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.engine.request import RowsUnavailableError, SamplingParams
from tolserve.memory.node import MemoryNode
from tolserve.replica import Rows, engine_config, open_rows
from tolserve.row_tiers import node_config
from tolserve.serve_config import ServeConfig

PROMPTS = {str(index): list(range(20 + index, 60 + 3 * index, 2)) for index in range(3)}
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_served_checkpoint(tmp_path_factory.mktemp("tiers") / "letters")


@pytest.fixture(scope="module")
def table(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_table(checkpoint, tmp_path_factory.mktemp("tiers") / "table")


@contextlib.contextmanager
def running(config: ServeConfig) -> Iterator[tuple[Engine, Rows]]:
    """An engine as an attention node has it, and memory nodes as there are in its deployment."""
    with contextlib.ExitStack() as nodes:
        addresses = []
        for index in range(config.num_partitions):
            node = MemoryNode(node_config(config, partition=index, version=None, host="127.0.0.1")).start()
            nodes.callback(node.stop)
            addresses.append([node.address])
        shape = open_checkpoint(config.checkpoint).config
        rows = open_rows(config, shape, None, addresses)
        engine = build_engine(config.checkpoint, rows.source, engine_config(config, shape), table=rows.table)
        try:
            yield engine, rows
        finally:
            engine.close()
            if rows.source is not None:
                rows.source.close()


def answers(engine: Engine) -> dict[str, list[int]]:
    outputs = run_all(engine, {name: (prompt, GREEDY) for name, prompt in PROMPTS.items()})
    return {name: token_ids(parts) for name, parts in outputs.items()}


@pytest.fixture(scope="module")
def expected(checkpoint: str, table: str) -> dict[str, list[int]]:
    with running(ServeConfig(checkpoint=checkpoint, table=table, memory_nodes=0)) as (engine, _):
        return answers(engine)


ROW_BYTES = 4 * 48 * 4

PLACES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "store": ({"rows": "store", "cache_share": 0.0}, {"store", "host"}),
    "store, every cache": ({"rows": "store", "host_cache_bytes": 40 * ROW_BYTES}, {"store", "cache"}),
    "store, no host cache": ({"rows": "store", "host_cache_bytes": 0, "pinned_bands": 1}, {"store", "cache"}),
    "nodes, host cache": ({"cache_share": 0.02, "host_cache_bytes": 100 * ROW_BYTES}, {"remote", "host", "cache"}),
    "nodes over the store": ({"keep": "store", "memory_nodes": 2, "node_cache_bytes": 30 * ROW_BYTES}, {"remote"}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_answers_are_the_same_wherever_rows_lie(
    checkpoint: str, table: str, expected: dict[str, list[int]], place: str
) -> None:
    settings, tiers = PLACES[place]
    with running(ServeConfig(checkpoint=checkpoint, table=table, **settings)) as (engine, rows):
        assert answers(engine) == answers(engine) == expected
        hits = engine.stats()["rows"]["hits_by_tier"]
        assert tiers <= set(hits)
        assert ("store" in hits) == (settings.get("rows") == "store")
        assert rows.tiers is not None
        stats = rows.tiers.stats()
        assert ("client" in stats) == ("rows" not in settings)
        if "store" in hits:
            assert stats["store"]["num_reads"] > 0 and stats["store"]["num_failed"] == 0
        if "host" in stats:
            assert stats["host"]["num_hits"] > 0 or "host" not in hits


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of an S3 server that the environment names."""
    with s3_server("tables") as s3, s3_proxy(s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        monkeypatch.setenv("AWS_REGION", s3.region)
        yield proxy


@pytest.mark.parametrize("settings", [{"rows": "store", "host_cache_bytes": 0}, {"keep": "store"}], ids=str)
def test_a_store_that_is_down_is_a_fault_in_time_and_answers_come_when_it_is_back(
    checkpoint: str, table: str, expected: dict[str, list[int]], proxy: Proxy, settings: dict[str, Any]
) -> None:
    upload(table, "tables", "t")
    config = ServeConfig(
        checkpoint=checkpoint,
        table="s3://tables/t",
        cache_share=0.0,
        store_deadline_s=0.5,
        deadline_s=1.5,
        hedge_quantile=0,
        **settings,
    )
    with running(config) as (engine, _):
        rule = proxy.on(be_silent, method="GET HEAD", path="arrays/", times=ALWAYS)
        outputs = run_all(engine, {"a": (PROMPTS["0"], GREEDY)})["a"]
        assert isinstance(outputs[-1].error, RowsUnavailableError)
        assert "the store is slow or down" in str(outputs[-1].error)
        rule.times = 0
        for _ in range(20):
            outputs = run_all(engine, {"a": (PROMPTS["0"], GREEDY)})["a"]
            if outputs[-1].error is None:
                break
        assert token_ids(outputs) == expected["0"]


def upload(table: str, bucket: str, prefix: str) -> None:
    """Copy a table's files, the manifest too."""
    from tolbuild.table import open_store

    target = open_store(f"s3://{bucket}/{prefix}")
    for path in sorted(Path(table).rglob("*")):
        if path.is_file():
            target.write(path.relative_to(table).as_posix(), path.read_bytes())
