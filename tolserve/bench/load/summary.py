"""A run in figures: the fields of `vllm bench serve`'s result, computed as it does, and a table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tolserve.bench.load.client import Outcome
from tolserve.bench.load.config import LoadConfig, parse_goodput
from tolserve.bench.load.run import LoadRun

PERCENTILES = (50, 90, 99)
METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}

Result = dict[str, Any]


def summarise(run: LoadRun, config: LoadConfig) -> Result:
    """The result; milliseconds where a name ends in `_ms`, else seconds, tokens and requests a second.

    Requests that failed count in `failed`, `errors_by_reason` and the duration, nowhere else. Beyond vLLM's fields are
    `errors_by_reason`, `memory_bill` and `p99_send_lag_ms`: how late requests were sent; where it is more than a few
    milliseconds the generator was the bottleneck.
    """
    done = [one for one in run.outcomes if not one.error]
    failed = [one for one in run.outcomes if one.error]
    total_input, total_output = sum(one.input_len for one in done), sum(one.output_len for one in done)
    limits = parse_goodput(config.goodput)
    result: Result = {
        "model_id": run.model,
        "num_prompts": len(run.outcomes),
        "request_rate": "inf" if config.request_rate == float("inf") else config.request_rate,
        "max_concurrency": config.max_concurrency,
        "duration": run.duration_s,
        "completed": len(done),
        "failed": len(failed),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": len(done) / run.duration_s,
        "request_goodput": sum(is_good(one, limits) for one in done) / run.duration_s if limits else None,
        "output_throughput": total_output / run.duration_s,
        "total_token_throughput": (total_input + total_output) / run.duration_s,
        "max_output_tokens_per_s": peak_tokens_per_s(done),
        "max_concurrent_requests": peak_concurrency(done),
        "errors_by_reason": dict(Counter(one.error for one in failed).most_common()),
        "p99_send_lag_ms": _ms([one.lag_s for one in run.outcomes], 99),
    }
    for name, values in _values(done).items():
        result |= _spread(name, values)
    if config.memory_bill:
        result["memory_bill"] = add_bills([one.usage.get("memory_bill") for one in done])
    return result | (_details(run) if config.save_detailed else {})


def is_good(outcome: Outcome, limits_ms: dict[str, float]) -> bool:
    """Whether a request kept every limit."""
    took = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2el": outcome.latency_s}
    return all(took[name] * 1e3 <= limit for name, limit in limits_ms.items())


def peak_concurrency(done: Sequence[Outcome]) -> int:
    """Most requests that were open at once; one that ends when another begins is not beside it."""
    edges = [(one.start_s, 1) for one in done] + [(one.start_s + one.latency_s, -1) for one in done]
    now = peak = 0
    for _, step in sorted(edges):
        now += step
        peak = max(peak, now)
    return peak


def peak_tokens_per_s(done: Sequence[Outcome]) -> float:
    """Most tokens that came within one second of those counted from the first request's start."""
    if not done:
        return 0.0
    start = min(one.start_s for one in done)
    seconds = Counter(
        int(one.start_s + one.ttft_s + gap - start) for one in done for gap in (0.0, *np.cumsum(one.itl_s).tolist())
    )
    return float(max(seconds.values()))


def add_bills(bills: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Memory bills added up; None where no request had one."""
    total: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    known = [bill for bill in bills if bill]
    for bill in known:
        total.update({key: value for key, value in bill.items() if key != "hits_by_tier"})
        tiers.update(bill["hits_by_tier"])
    return {**total, "hits_by_tier": dict(tiers)} if known else None


def table(result: Result) -> str:
    """The result as lines for people."""
    lines = [
        f"{result['completed']} requests answered by {result['model_id']}, {result['failed']} failed, "
        f"in {result['duration']:.2f} s",
        f"  requests      {result['request_throughput']:.2f}/s{_goodput(result)}, "
        f"at most {result['max_concurrent_requests']} at once, sent late by {result['p99_send_lag_ms']:.1f} ms (p99)",
        f"  tokens        {result['total_input_tokens']} in, {result['total_output_tokens']} out: "
        f"{result['output_throughput']:.1f}/s out, {result['total_token_throughput']:.1f}/s in all",
        "",
        f"  ms      {'mean':>9}{'std':>9}{'median':>9}" + "".join(f"{f'p{p}':>9}" for p in PERCENTILES[1:]),
    ]
    for name, text in METRICS.items():
        columns = ("mean", "std", "median", *(f"p{p}" for p in PERCENTILES[1:]))
        values = "".join(f"{result[f'{column}_{name}_ms']:9.2f}" for column in columns)
        lines.append(f"  {name:<8}{values}   {text}")
    lines += [f"  {count} failed with {reason}" for reason, count in result["errors_by_reason"].items()]
    return "\n".join(lines)


def _values(done: Sequence[Outcome]) -> dict[str, list[float]]:
    """Seconds by metric; a request of one token has no tpot."""
    return {
        "ttft": [one.ttft_s for one in done],
        "tpot": [one.tpot_s for one in done if one.output_len > 1],
        "itl": [gap for one in done for gap in one.itl_s],
        "e2el": [one.latency_s for one in done],
    }


def _spread(name: str, seconds: Sequence[float]) -> Result:
    values = np.array(seconds or [0.0]) * 1e3
    spread = {"mean": np.mean(values), "median": np.median(values), "std": np.std(values)}
    spread |= {f"p{p}": np.percentile(values, p) for p in PERCENTILES}
    return {f"{key}_{name}_ms": float(value) for key, value in spread.items()}


def _ms(seconds: Sequence[float], percentile: int) -> float:
    return float(np.percentile(seconds or [0.0], percentile)) * 1e3


def _goodput(result: Result) -> str:
    return "" if result["request_goodput"] is None else f" ({result['request_goodput']:.2f}/s good)"


def _details(run: LoadRun) -> Result:
    """The lists by request, in the order of the workload."""
    outcomes = run.outcomes
    return {
        "input_lens": [one.input_len for one in outcomes],
        "output_lens": [one.output_len for one in outcomes],
        "ttfts": [one.ttft_s for one in outcomes],
        "itls": [one.itl_s for one in outcomes],
        "latencies": [one.latency_s for one in outcomes],
        "start_times": [one.start_s for one in outcomes],
        "generated_texts": [one.text for one in outcomes],
        "errors": [one.error for one in outcomes],
    }
