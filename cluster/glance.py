"""What two looks at an endpoint's metrics and directory say together: who is there, and what it does a second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tolserve.endpoint import Endpoint

Samples = Mapping[str, list[tuple[dict[str, str], float]]]
"""By name the labels and values of a metric."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """An endpoint at one moment: seconds of the monotonic clock, its metrics, what `/v1/table` says."""

    at_s: float
    samples: Samples
    state: dict[str, Any]

    @classmethod
    def at(cls, endpoint: Endpoint) -> Look:
        """Look now.

        Raises:
            EndpointError: it cannot be reached.
        """
        text, state = endpoint.metrics(), endpoint.table()
        return cls(at_s=time.monotonic(), samples=parse_samples(text), state=state)

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(value for own, value in self.samples.get(name, ()) if wanted <= own.items())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same for each value of another label."""
        values = {own[label] for own, _ in self.samples.get(name, ()) if label in own and labels.items() <= own.items()}
        return {value: self.value(name, **labels, **{label: value}) for value in sorted(values)}


def parse_samples(text: str) -> Samples:
    """The samples of a Prometheus exposition."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@dataclass(frozen=True, kw_only=True)
class _Between:
    """What happened between two looks, to samples that have `labels`."""

    before: Look
    now: Look
    labels: dict[str, str]

    def grown(self, name: str) -> float:
        return max(0.0, self.now.value(name, **self.labels) - self.before.value(name, **self.labels))

    def per_s(self, name: str) -> float:
        return round(self.grown(name) / (self.now.at_s - self.before.at_s), 3)

    def share(self, part: str, whole: str) -> float | None:
        """A counter's growth as a share of another's, of all time where neither grew; None where there is nothing."""
        for grown in (self.grown, lambda name: self.now.value(name, **self.labels)):
            if (total := grown(whole)) > 0:
                return round(grown(part) / total, 4)
        return None

    def tiers(self) -> dict[str, float]:
        """Where rows came from, as shares."""
        now = self.now.by("tol_row_hits_total", "tier", **self.labels)
        before = self.before.by("tol_row_hits_total", "tier", **self.labels)
        grown = {tier: count - before.get(tier, 0.0) for tier, count in now.items()}
        counts = grown if sum(grown.values()) > 0 else now
        total = sum(counts.values())
        return {tier: round(count / total, 4) for tier, count in counts.items()} if total > 0 else {}


def glance(url: str, before: Look, now: Look) -> dict[str, Any]:
    """Everything as JSON values; rates are of the time between the looks."""
    state = now.state
    every = _Between(before=before, now=now, labels={})
    nodes = state["nodes"]
    return {
        "url": url,
        "interval_s": round(now.at_s - before.at_s, 3),
        **{key: state[key] for key in ("table", "published", "serving", "other", "stage", "fault")},
        "requests": {
            "running": now.value("vllm:num_requests_running"),
            "waiting": now.value("vllm:num_requests_waiting"),
            "answers_per_s": every.per_s("tol_http_answers_total"),
            "answers": now.by("tol_http_answers_total", "status"),
            "generated_tokens_per_s": every.per_s("vllm:generation_tokens_total"),
            "prompt_tokens_per_s": every.per_s("vllm:prompt_tokens_total"),
        },
        "attention": [_attention(node, before, now) for node in nodes if node["kind"] == "attention"],
        "memory": [_memory(node, before, now) for node in nodes if node["kind"] == "memory"],
    }


def _attention(node: dict[str, Any], before: Look, now: Look) -> dict[str, Any]:
    own = _Between(before=before, now=now, labels={"engine": node["name"]})
    return {
        **_who(node),
        "running": now.value("vllm:num_requests_running", **own.labels),
        "waiting": now.value("vllm:num_requests_waiting", **own.labels),
        "steps_per_s": own.per_s("tol_engine_steps_total"),
        "rows_per_s": own.per_s("tol_rows_unique_total"),
        "rows_by_tier": own.tiers(),
        "row_bytes_per_s": own.per_s("tol_row_bytes_total"),
        "stalled": own.share("tol_row_stall_seconds_total", "tol_engine_step_seconds_total"),
        "kv_cache_used": round(now.value("vllm:kv_cache_usage_perc", **own.labels), 4),
    }


def _memory(node: dict[str, Any], before: Look, now: Look) -> dict[str, Any]:
    own = _Between(before=before, now=now, labels={"node": node["address"]})
    return {
        **_who(node),
        "partition": node["partition"],
        "partitions": node["memory_nodes"],
        "clients": now.value("tol_node_clients", **own.labels),
        "requests_per_s": own.per_s("tol_node_requests_total"),
        "rows_per_s": own.per_s("tol_node_rows_total"),
        "row_bytes_per_s": own.per_s("tol_node_bytes_total"),
        "refused": now.value("tol_node_refusals_total", **own.labels),
    }


def _who(node: dict[str, Any]) -> dict[str, Any]:
    return {"address": node["address"], "versions": node["versions"], "fault": node["fault"]}
