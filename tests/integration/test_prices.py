"""The demo's table: the same tokens from rows in this process, by each transport, and from the object store."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from serve_kit import make_served_checkpoint, make_table

from cluster import prices
from cluster.head import StartError
from cluster.row_nodes import flight_nodes
from tolserve.memory.node import MemoryNode
from tolserve.on_ray.launch import own_cluster
from tolserve.row_tiers import node_config
from tolserve.serve_config import ServeConfig


@pytest.mark.slow
def test_each_line_of_the_table_has_rows_from_where_it_says(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "ROUNDS", 5)
    monkeypatch.setattr(prices, "NUM_TOKENS", 4)
    checkpoint = make_served_checkpoint(tmp_path / "letters")
    here = ServeConfig(checkpoint=checkpoint, table=make_table(checkpoint, tmp_path / "table"), memory_nodes=0)
    there = ServeConfig(checkpoint=here.checkpoint, table=here.table, memory_nodes=2)
    with ExitStack() as stack:
        stack.enter_context(own_cluster(tmp_path_factory.mktemp("r")))
        by_tcp = []
        for partition in range(2):
            node = MemoryNode(node_config(there, partition=partition, version=None, host="127.0.0.1")).start()
            stack.callback(node.stop)
            by_tcp.append([node.address])
        contestants = prices.open_contestants(here, by_tcp, stack)
        figures = prices.take_turns(contestants)
        prices.check_tokens(contestants)
        table = prices.report(contestants, figures)
        tiers = [set(one.engine.stats()["rows"]["hits_by_tier"]) - {"cache"} for one in contestants]
        contestants[-1].tokens[0][0][0] ^= 1
        with pytest.raises(prices.TokensDifferError, match="object store"):
            prices.check_tokens(contestants)
    assert [len(values) for values in figures.values()] == [5, 5, 5, 5, 5, prices.STORE_ROUNDS]
    assert tiers == [{"device"}, *[{"remote"}] * 4, {"store"}]
    lines = [re.split(r"\s{2,}", line.strip())[0] for line in table.splitlines()[4:]]
    assert lines[:3] == ["in this process", "on 2 memory nodes", "the same, 10% cached"]
    assert lines[3:] == ["over Arrow Flight", "by Ray actor calls", "from the object store"]


def test_a_node_that_does_not_start_is_named(tmp_path: Path) -> None:
    config = ServeConfig(checkpoint="builtin:tiny", table=str(tmp_path / "no-table"), memory_nodes=1)
    with pytest.raises(StartError, match="ended with 1"), flight_nodes(config):
        raise AssertionError("there is no such table")
