"""`bench engine`: this engine against Hugging Face transformers on the same weights (`engine_vs_transformers`).

Kind base, 12 layers, d 768, V 32k, fp32. The rival is the faster of transformers' eager `generate` and its continuous
batching, found in a first trial and then run in turn with ours; the figure is our tokens/s over its, by pair. What the
endpoint adds to the engine is measured behind it; see `tolserve.bench.gateway`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from tolserve.bench import gateway
from tolserve.bench.report import alternate, estimate
from tolserve.bench.rivals import Contestant, make_contestants

SEED = 0
"""Of prompts and lengths; weights are torch's with the same seed."""
VOCAB_SIZE = 32_000
PROMPT_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests given at once, each of `PROMPT_LENGTH` tokens, and how often and how long they are measured."""

    outputs: tuple[int, ...]
    rounds: int
    limit_s: float

    def prompts(self) -> list[list[int]]:
        """The same random prompts in every run."""
        draw = random.Random(SEED + len(self.outputs))
        return [[draw.randrange(VOCAB_SIZE) for _ in range(PROMPT_LENGTH)] for _ in self.outputs]


def workloads(*, quick: bool) -> dict[str, Workload]:
    """The three regimes: many ragged requests, 16 equal ones, a single one."""
    if quick:
        return {
            "ragged": Workload(outputs=spread(8, 2, 12), rounds=2, limit_s=4),
            "lockstep": Workload(outputs=(3,) * 16, rounds=2, limit_s=4),
            "b1": Workload(outputs=(4,), rounds=3, limit_s=3),
        }
    return {
        "ragged": Workload(outputs=spread(64, 8, 128), rounds=5, limit_s=200),
        "lockstep": Workload(outputs=(32,) * 16, rounds=6, limit_s=60),
        "b1": Workload(outputs=(24,), rounds=30, limit_s=50),
    }


def spread(count: int, low: int, high: int) -> tuple[int, ...]:
    """`count` output lengths spread evenly over low .. high, shuffled."""
    lengths = [low + round(index * (high - low) / (count - 1)) for index in range(count)]
    random.Random(SEED).shuffle(lengths)
    return tuple(lengths)


def run(*, quick: bool) -> dict[str, Any]:
    """The bench's figures; `engine_vs_transformers` has the mean ratio of each workload, `gateway_*` the endpoint's."""
    ours, rivals = make_contestants(VOCAB_SIZE)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {}
    for name, workload in workloads(quick=quick).items():
        detail[name] = _measure(workload, ours, rivals)
        ratios[name] = detail[name]["ratio"]["mean"]
        print(f"{name}: {detail[name]}", flush=True)
    endpoint = gateway.measure(quick=quick)
    return {
        "engine_vs_transformers": ratios,
        "gateway_us_per_token": endpoint.pop("gateway_us_per_token"),
        "gateway_ttft_overhead_ms": endpoint.pop("gateway_ttft_overhead_ms"),
        "detail": detail,
        **endpoint,
    }


def _measure(workload: Workload, ours: Contestant, rivals: tuple[Contestant, ...]) -> dict[str, Any]:
    prompts, outputs = workload.prompts(), list(workload.outputs)
    num_tokens = sum(outputs)

    def tokens_per_s(contestant: Contestant) -> float:
        began = time.perf_counter()
        contestant.generate(prompts, outputs)
        return num_tokens / (time.perf_counter() - began)

    expected = ours.generate(prompts, outputs)
    trial = {rival.name: tokens_per_s(rival) for rival in rivals}
    rival = max(rivals, key=lambda one: trial[one.name])
    given = rival.generate(prompts, outputs) if num_tokens < 1000 else expected
    figures = alternate(
        {"ours": lambda: tokens_per_s(ours), rival.name: lambda: tokens_per_s(rival)},
        rounds=workload.rounds,
        limit_s=workload.limit_s,
    )
    pairs = zip(figures["ours"], figures[rival.name], strict=True)
    return {
        "rival": rival.name,
        "trial_tokens_per_s": {name: round(value, 1) for name, value in trial.items()},
        "ratio": estimate([mine / theirs for mine, theirs in pairs]).to_dict(),
        "tokens_per_s": {name: estimate(values).to_dict() for name, values in figures.items()},
        "equal_outputs": sum(mine == theirs for mine, theirs in zip(expected, given, strict=True)) / len(outputs),
    }
