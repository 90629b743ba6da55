"""What /metrics shows, for Prometheus: vLLM's names where the meaning is the same, `tol_` for the looked-up rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tolserve.membership import Member

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Stats = dict[str, dict[str, Any]]

_LATENCY_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    30.0,
    60.0,
)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

_LABELS = ["model_name", "engine"]

_Family = GaugeMetricFamily | CounterMetricFamily
_Read = Callable[[dict[str, Any]], float]

_GAUGES: dict[str, tuple[str, _Read]] = {
    "vllm:num_requests_running": ("Requests in the batch.", lambda s: s["num_running"]),
    "vllm:num_requests_waiting": ("Requests that wait for room in the batch.", lambda s: s["num_waiting"]),
    "vllm:kv_cache_usage_perc": (
        "Share of the KV cache's blocks in use, 0 to 1.",
        lambda s: 1.0 - s["num_free_blocks"] / s["num_blocks"],
    ),
    "tol_row_nodes_connected": ("Memory nodes that can be asked.", lambda s: s["client"]["num_connected"]),
    "tol_host_cache_rows": ("Rows in an attention node's cache in host memory.", lambda s: s["host"]["num_rows"]),
}

_COUNTERS: dict[str, tuple[str, _Read]] = {
    "vllm:num_preemptions": ("Requests put back to be recomputed later.", lambda s: s["num_preemptions"]),
    "vllm:prefix_cache_queries": (
        "Prompt tokens that were looked for among the prefixes in the KV cache.",
        lambda s: s["prefix_cache"]["num_queries"],
    ),
    "vllm:prefix_cache_hits": (
        "Prompt tokens that were there and not computed again.",
        lambda s: s["prefix_cache"]["num_hits"],
    ),
    "tol_deadlines_passed": ("Requests ended by their own deadline.", lambda s: s["num_expired"]),
    "tol_engine_steps": ("Engine steps.", lambda s: s["num_steps"]),
    "tol_engine_step_seconds": ("Time in engine steps.", lambda s: s["step_s"]),
    "tol_rows_needed": ("Rows that token positions needed.", lambda s: s["rows"]["rows_needed"]),
    "tol_rows_unique": ("Distinct rows of the steps.", lambda s: s["rows"]["rows_unique"]),
    "tol_rows_guessed": (
        "Rows requested by speculation; those needed are hits of the tier guess.",
        lambda s: s["rows"]["rows_guessed"],
    ),
    "tol_row_guess_bytes": ("Bytes of rows that speculation moved.", lambda s: s["rows"]["guess_bytes"]),
    "tol_row_bytes": ("Bytes of rows moved to the engine.", lambda s: s["rows"]["bytes_moved"]),
    "tol_row_fetch_seconds": (
        "Time from row requests until their last bands were taken, which may have come long before.",
        lambda s: s["rows"]["fetch_ms"] / 1e3,
    ),
    "tol_row_stall_seconds": ("Time that layers waited for rows.", lambda s: s["rows"]["stall_ms"] / 1e3),
    "tol_row_requests": ("Requests sent to memory nodes.", lambda s: s["client"]["num_requests"]),
    "tol_row_reroutes": (
        "Requests asked again because their memory node was given up.",
        lambda s: s["client"]["num_rerouted"],
    ),
    "tol_row_ejections": ("Memory nodes given up as lost or silent.", lambda s: s["client"]["num_ejections"]),
    "tol_row_connections": ("Connections made to memory nodes.", lambda s: s["client"]["num_connections"]),
    "tol_store_reads": ("Reads of the object store, hedges apart.", lambda s: s["store"]["num_reads"]),
    "tol_store_bytes": ("Bytes of rows read from the object store.", lambda s: s["store"]["num_bytes"]),
    "tol_store_hedges": ("Slow reads of the object store tried again.", lambda s: s["store"]["num_hedges"]),
    "tol_store_hedges_won": ("Second tries that came first.", lambda s: s["store"]["num_hedges_won"]),
    "tol_store_hedges_lost": ("Second tries that came second.", lambda s: s["store"]["num_hedges_lost"]),
    "tol_store_failures": ("Reads of which no try succeeded.", lambda s: s["store"]["num_failed"]),
    "tol_store_late": ("Fetches given up at the deadline.", lambda s: s["store"]["num_late"]),
    "tol_rows_verified": ("Served rows compared with the checkpoint.", lambda s: s["rows_verified"]),
    "tol_row_mismatches": ("Served rows beyond the table's stated error.", lambda s: s["row_mismatches"]),
}


_NODE_FIGURES: dict[str, tuple[type[_Family], str, str]] = {
    "tol_node_requests": (CounterMetricFamily, "Requests that a memory node answered with rows.", "num_requests"),
    "tol_node_rows": (CounterMetricFamily, "Rows that a memory node sent.", "num_rows"),
    "tol_node_bytes": (CounterMetricFamily, "Bytes of rows that a memory node sent.", "num_bytes"),
    "tol_node_clients": (GaugeMetricFamily, "Connections to a memory node.", "num_clients"),
    "tol_node_cache_hits": (CounterMetricFamily, "Rows that a memory node had in its cache.", "cache_hits"),
    "tol_node_cache_misses": (
        CounterMetricFamily,
        "Rows that a memory node did not have in its cache.",
        "cache_misses",
    ),
    "tol_node_shared_reads": (CounterMetricFamily, "Rows among them that were being read already.", "shared_reads"),
    "tol_node_cache_rows": (GaugeMetricFamily, "Rows in a memory node's cache.", "cache_rows"),
    "tol_node_store_reads": (CounterMetricFamily, "Reads of the object store, hedges apart.", "store_reads"),
    "tol_node_store_bytes": (CounterMetricFamily, "Bytes of rows read from the object store.", "store_bytes"),
    "tol_node_store_hedges": (CounterMetricFamily, "Slow reads tried again.", "store_hedges"),
    "tol_node_store_hedges_won": (CounterMetricFamily, "Second tries that came first.", "store_hedges_won"),
    "tol_node_store_hedges_lost": (CounterMetricFamily, "Second tries that came second.", "store_hedges_lost"),
    "tol_node_store_failures": (CounterMetricFamily, "Reads of which no try succeeded.", "store_failed"),
    "tol_node_store_late": (CounterMetricFamily, "Requests given up at the deadline.", "store_late"),
    "tol_node_disk_bytes": (CounterMetricFamily, "Bytes that a mapping node's process read from disk.", "disk_bytes"),
    "tol_node_page_faults": (CounterMetricFamily, "Page faults of it that waited for the disk.", "page_faults"),
}
"""A node has those of its own tiers."""


class _NodeCollector:
    """The memory nodes' own figures, as they last told the directory."""

    def __init__(self, model_name: str, members: Callable[[], Sequence[Member]]) -> None:
        self._model_name = model_name
        self._members = members

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client at every scrape."""
        labels = ["model_name", "node", "partition"]
        nodes = [(self._labels(member), member.figures) for member in self._members() if member.figures]
        for name, (family, text, key) in _NODE_FIGURES.items():
            metric = family(name, text, labels=labels)
            for values, figures in nodes:
                if key in figures:
                    metric.add_metric(values, figures[key])
            yield metric
        refused = CounterMetricFamily("tol_node_refusals", "Requests refused, by status.", labels=[*labels, "status"])
        for values, figures in nodes:
            for status, count in figures["refused"].items():
                refused.add_metric([*values, status], count)
        yield refused

    def _labels(self, member: Member) -> list[str]:
        host, port = member.address
        return [self._model_name, f"{host}:{port}", str(member.partition)]


class _EngineCollector:
    """The engines' own statistics, one sample an engine."""

    def __init__(self, model_name: str, stats: Callable[[], Stats]) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client at every scrape."""
        engines = {name: stats for name, stats in self._stats().items() if stats}
        for name, (text, read) in _GAUGES.items():
            yield self._samples(GaugeMetricFamily(name, text, labels=_LABELS), read, engines)
        for name, (text, read) in _COUNTERS.items():
            yield self._samples(CounterMetricFamily(name, text, labels=_LABELS), read, engines)
        hits = CounterMetricFamily("tol_row_hits", "Rows by where they came from.", labels=[*_LABELS, "tier"])
        for engine, stats in engines.items():
            for tier, count in stats.get("rows", {}).get("hits_by_tier", {}).items():
                hits.add_metric([self._model_name, engine, tier], float(count))
        yield hits
        replicas = GaugeMetricFamily("tol_attention_replicas", "Engines in reach.", labels=["model_name"])
        replicas.add_metric([self._model_name], len(self._stats()))
        yield replicas

    def _samples(self, metric: _Family, read: _Read, engines: Stats) -> _Family:
        for engine, stats in engines.items():
            try:
                metric.add_metric([self._model_name, engine], float(read(stats)))
            except KeyError:
                continue
        return metric


class Metrics:
    """The request metrics of one gateway and, through `stats` and `memory`, those of engines and memory nodes."""

    def __init__(
        self, model_name: str, stats: Callable[[], Stats], memory: Callable[[], Sequence[Member]] = tuple
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_EngineCollector(model_name, stats))
        self._registry.register(_NodeCollector(model_name, memory))
        self._answers = Counter(
            "tol_http_answers",
            "Answers to completion requests.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._model_name = model_name
        self._finished = Counter(
            "vllm:request_success",
            "Generations by how they ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens computed, at the first output.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.ttft = self._histogram("vllm:time_to_first_token_seconds", "From request to first token.", _LATENCY_S)
        self.inter_token = self._histogram("vllm:inter_token_latency_seconds", "From a token to the next.", _TOKEN_S)
        self.latency = self._histogram("vllm:e2e_request_latency_seconds", "From request to end.", _LATENCY_S)
        self.request_prompt = self._histogram("vllm:request_prompt_tokens", "Prompt tokens a prompt.", _TOKENS)
        self.request_generation = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated a generation.", _TOKENS
        )

    def answered(self, status: int) -> None:
        """Count one answer by its HTTP status (499: the client had gone)."""
        self._answers.labels(self._model_name, str(status)).inc()

    def finished(self, reason: str) -> None:
        """Count one generation's end."""
        self._finished.labels(self._model_name, reason).inc()

    def exposition(self) -> bytes:
        """The text that /metrics answers with, as CONTENT_TYPE says."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["model_name"], registry=self._registry).labels(self._model_name)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)
        return metric.labels(self._model_name)
