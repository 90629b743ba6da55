"""infra/prometheus and infra/grafana: every metric and label that they name is one that /metrics shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tolserve.membership import Member
from tolserve.metrics import Metrics

INFRA = Path(__file__).parents[2] / "infra"
FIGURES = {"num_requests": 1, "num_rows": 1, "num_bytes": 1, "num_clients": 1, "refused": {"bad_ids": 1}}
STATS: dict[str, Any] = {
    **dict.fromkeys(("num_running", "num_waiting", "num_preemptions", "num_steps", "step_s"), 1),
    "num_blocks": 4,
    "num_free_blocks": 1,
    "rows_verified": 1,
    "row_mismatches": 0,
    "rows": {
        **dict.fromkeys(("rows_needed", "rows_unique", "bytes_moved", "fetch_ms", "stall_ms"), 1),
        "hits_by_tier": {"cache": 1},
    },
    "client": dict.fromkeys(("num_connected", "num_requests", "num_rerouted", "num_ejections", "num_connections"), 1),
}


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """The labels of every sample that /metrics has, by the sample's name."""
    members = [Member(name="a", kind="memory", address=("10.0.0.1", 1), figures=FIGURES)]
    metrics = Metrics("m", lambda: {"e": STATS}, lambda: members)
    metrics.answered(200)
    metrics.finished("stop")
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((INFRA / "grafana" / "tolserve.json").read_text())
    return found


def expressions() -> list[str]:
    rules = yaml.safe_load((INFRA / "prometheus" / "alerts.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return alerts + targets


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_there(expression: str, shown: dict[str, set[str]]) -> None:
    names = re.findall(r"\b(?:vllm:|tol_)\w+", expression)
    assert names and set(names) <= set(shown)
    known = set.intersection(*(shown[name] for name in names))
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= known
    for name, chosen in re.findall(r"((?:vllm:|tol_)\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=~?\"", chosen)) <= shown[name]
    assert expression.count("(") == expression.count(")") and expression.count("[") == expression.count("]")


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${source}"} for panel in panels)


def test_prometheus_scrapes_the_endpoint_and_reads_the_alerts() -> None:
    config = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert [(INFRA / "prometheus" / name).exists() for name in config["rule_files"]] == [True]
