"""/metrics: the row client's counters by engine, the memory nodes' figures by node, in Prometheus' text."""

from __future__ import annotations

from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from row_kit import IDENTITY, TcpNetwork, ask, partition_store, random_rows, row_spec, rows_frame, wait_until

from tolserve.membership import Member
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.service import RowService
from tolserve.metrics import Metrics
from tolserve.transport.tcp import TcpTransport

SPEC = row_spec()
ROWS = random_rows(SPEC)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels but for the model's."""
    found = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        assert family.documentation
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "model_name"]
            found[(sample.name, *labels)] = sample.value
    return found


def test_the_row_clients_counters_are_shown_by_engine() -> None:
    net = TcpNetwork()
    addresses = [net.serve(RowService(partition_store(SPEC, ROWS))) for _ in range(2)]
    client = PartitionedClient(SPEC, [addresses], ClientConfig(probe_s=0.05))
    wait_until(lambda: client.num_connected == 2)
    source = CachedSource(client)
    ids = np.arange(10)
    source.wait(source.start(ids), 2)
    net.servers[0].stop()
    source.wait(source.start(ids + 20), 2)
    shown = samples(Metrics("m", lambda: {"a": {"client": client.stats()}, "b": {"num_running": 1}}))
    assert shown["tol_row_requests_total", "a"] == 3
    assert shown["tol_row_ejections_total", "a"] == 1
    assert shown["tol_row_reroutes_total", "a"] == 1
    assert shown["tol_row_connections_total", "a"] == 2
    assert shown["tol_row_nodes_connected", "a"] == 1
    assert ("tol_row_requests_total", "b") not in shown
    source.close()
    net.close()


def member(name: str, port: int, figures: dict[str, Any]) -> Member:
    return Member(name=name, kind="memory", address=("10.0.0.1", port), partition=port % 2, figures=figures)


def test_memory_nodes_are_shown_by_address_and_partition() -> None:
    figures = {"num_requests": 3, "num_rows": 40, "num_bytes": 5000, "num_clients": 2, "refused": {"bad_ids": 1}}
    members = [member("a", 7001, figures), member("b", 7002, {})]
    shown = samples(Metrics("m", dict, lambda: members))
    node = ("10.0.0.1:7001", "1")
    assert {key: value for key, value in shown.items() if key[0].startswith("tol_node")} == {
        ("tol_node_requests_total", *node): 3,
        ("tol_node_rows_total", *node): 40,
        ("tol_node_bytes_total", *node): 5000,
        ("tol_node_clients", *node): 2,
        ("tol_node_refusals_total", *node, "bad_ids"): 1,
    }


def test_a_node_counts_what_it_sends_and_refuses() -> None:
    net = TcpNetwork()
    service = RowService(partition_store(SPEC, ROWS), max_ids=20)
    link = TcpTransport().connect(net.serve(service), 5.0)
    ids = np.arange(10)
    ask(link, rows_frame(1, ids, (0, 2)))
    ask(link, rows_frame(2, ids[:3], (1,)))
    ask(link, rows_frame(3, ids + 995, (1,)))
    ask(link, rows_frame(4, ids, (1,), identity=IDENTITY[::-1]))
    ask(link, rows_frame(5, np.arange(21), (1,)))
    served = service.served
    widths = [band.row_bytes for band in SPEC.bands]
    assert (served.num_requests, served.num_rows) == (2, 13)
    assert served.num_bytes == 10 * (widths[0] + widths[2]) + 3 * widths[1]
    assert served.refused == {"bad_ids": 1, "wrong_identity": 1, "too_many_ids": 1}
    link.close()
    net.close()


def test_the_tiers_of_engines_and_nodes_are_shown() -> None:
    store = {"num_reads": 9, "num_bytes": 900, "num_hedges": 3, "num_hedges_won": 2, "num_hedges_lost": 1}
    engine = {"store": {**store, "num_failed": 0, "num_late": 1}, "host": {"num_rows": 7}}
    node = {"cache_hits": 5, "cache_misses": 6, "store_reads": 4, "store_hedges": 2, "store_hedges_won": 1}
    figures = {"num_requests": 3, "num_rows": 40, "num_bytes": 5000, "num_clients": 2, "refused": {}, **node}
    shown = samples(Metrics("m", lambda: {"a": engine}, lambda: [member("a", 7001, figures)]))
    expected = {"reads": 9, "bytes": 900, "hedges": 3, "hedges_won": 2, "hedges_lost": 1, "failures": 0, "late": 1}
    assert {name: shown[f"tol_store_{name}_total", "a"] for name in expected} == expected
    assert shown["tol_host_cache_rows", "a"] == 7
    for name, count in node.items():
        assert shown[f"tol_node_{name}_total", "10.0.0.1:7001", "1"] == count
    assert ("tol_node_disk_bytes_total", "10.0.0.1:7001", "1") not in shown
