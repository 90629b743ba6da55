"""What two looks at an endpoint say of it, and how that reads."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.glance import Look, glance, parse_samples
from cluster.tables import bytes_per_s, render

METRICS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m",engine="a1"} 3
# TYPE tol_row_hits counter
tol_row_hits_total{model_name="m",engine="a1",tier="cache"} %d
tol_row_hits_total{model_name="m",engine="a1",tier="remote"} 10
# TYPE tol_engine_step_seconds counter
tol_engine_step_seconds_total{model_name="m",engine="a1"} %f
# TYPE tol_row_stall_seconds counter
tol_row_stall_seconds_total{model_name="m",engine="a1"} 1
# TYPE tol_node_bytes counter
tol_node_bytes_total{model_name="m",node="h:2",partition="0"} %d
# TYPE tol_http_answers counter
tol_http_answers_total{model_name="m",status="200"} 7
"""

NODES = [
    {"name": "a1", "kind": "attention", "address": "h:1", "partition": 0, "memory_nodes": 0},
    {"name": "m1", "kind": "memory", "address": "h:2", "partition": 0, "memory_nodes": 1},
]


def look(at_s: float, cached: int, step_s: float, sent: int, fault: str = "") -> Look:
    state: dict[str, Any] = {
        "table": "s3://t/t",
        "published": [1, 2],
        "serving": {"version": 2, "memory_nodes": 1},
        "other": {"version": 1, "memory_nodes": 1},
        "stage": "leaving",
        "fault": fault,
        "nodes": [{**node, "versions": [1, 2], "fault": fault} for node in NODES],
    }
    return Look(at_s=at_s, samples=parse_samples(METRICS % (cached, step_s, sent)), state=state)


def test_rates_are_of_the_time_between_the_looks() -> None:
    seen = glance("u", look(1.0, 10, 4.0, 0), look(3.0, 40, 4.0, 4096))
    (attention,), (memory,) = seen["attention"], seen["memory"]
    assert memory["row_bytes_per_s"] == 2048
    assert attention["rows_by_tier"] == {"cache": 1.0, "remote": 0.0}
    assert attention["stalled"] == 0.25
    assert seen["requests"]["running"] == 3 and seen["requests"]["answers"] == {"200": 7}


def test_what_rests_shows_the_shares_of_all_time() -> None:
    seen = glance("u", look(1.0, 30, 4.0, 0), look(3.0, 30, 4.0, 0))
    assert seen["attention"][0]["rows_by_tier"] == {"cache": 0.75, "remote": 0.25}


def test_the_text_has_nodes_versions_and_faults() -> None:
    text = render(glance("u", look(1.0, 0, 4.0, 0), look(2.0, 0, 4.0, 0, "bad shard")))
    assert "u: version 2 on 1 partition serves, version 1 on 1 partition is left" in text
    assert "versions 1 to 2" in text and "0 of 1" in text and "h:2: bad shard" in text


@pytest.mark.parametrize(("rate", "text"), [(0, "0 B/s"), (2048, "2 KiB/s"), (5e6, "4.77 MiB/s"), (3e9, "2.79 GiB/s")])
def test_rates_in_units(rate: float, text: str) -> None:
    assert bytes_per_s(rate) == text
