"""Measuring a point of a real engine: rounds of the same requests in turn with its references, tokens compared."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tolserve.bench.cost.engines import Models, computed_material, contestants, num_requests
from tolserve.bench.cost.figures import REFERENCES, latency, prices, rounded, shares
from tolserve.bench.cost.material import Materials
from tolserve.bench.cost.places import Asked, resident_bytes
from tolserve.bench.cost.prices import Rents, Slo
from tolserve.bench.cost.sources import bare_source, device_bytes
from tolserve.bench.disturbed import Turns
from tolserve.bench.streams import TokenStream
from tolserve.engine.engine import Engine
from tolserve.engine.request import SamplingParams

NUM_TOKENS = 16
"""Tokens that each request is answered with."""
_LEAST_ROUNDS = 3
_ALONE = 20
_WARM_ROUNDS = 1


@dataclass(kw_only=True)
class Round:
    """One round of requests at one engine; times in seconds.

    Attributes:
        first: of each request from its arrival to its first token.
        between: of each request, between its tokens.
        tokens: what each was answered with.
    """

    first: list[float] = field(default_factory=list)
    between: list[list[float]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    total_s: float = 0.0
    rows: dict[str, Any] = field(default_factory=dict)
    num_steps: int = 0

    @property
    def token_s(self) -> float:
        """Mean time between tokens."""
        return float(np.mean([one for gaps in self.between for one in gaps]))


def serve(engine: Engine, prompts: Sequence[list[int]], arrivals_s: Sequence[float]) -> Round:
    """Answer every prompt greedily; each is given to the engine when its time has come."""
    before = engine.stats()
    names = [str(index) for index in range(len(prompts))]
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    given = 0
    at: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[int]] = {name: [] for name in names}
    began = time.perf_counter()
    while given < len(names) or engine.has_work():
        now = time.perf_counter() - began
        while given < len(names) and arrivals_s[given] <= now:
            engine.add_request(names[given], prompts[given], params)
            given += 1
        for output in engine.step():
            if output.error is not None:
                raise output.error
            if output.tokens:
                at[output.request_id].append(time.perf_counter() - began)
                tokens[output.request_id] += [token.token_id for token in output.tokens]
    done = Round(tokens=list(tokens.values()), total_s=time.perf_counter() - began)
    done.first = [at[name][0] - arrivals_s[index] for index, name in enumerate(names)]
    done.between = [np.diff(at[name]).tolist() for name in names]
    after = engine.stats()
    done.num_steps = after["num_steps"] - before["num_steps"]
    done.rows = _difference(after.get("rows", {}), before.get("rows", {}))
    return done


def measure(
    asked: Asked,
    stream: TokenStream,
    models: Models,
    materials: Materials,
    *,
    num_rounds: int,
    limit_s: float,
    rents: Rents,
    slo: Slo,
) -> dict[str, Any]:
    """All figures of a point, from at most `num_rounds` rounds or `limit_s`, and at least 3 rounds."""
    point = asked.point
    if point.place == "computed":
        asked = Asked(point=point, material=computed_material(models), fleet=asked.fleet)
    with contestants(asked, models, materials, stream.counts, max_tokens=NUM_TOKENS) as engines:
        taken = _alternate(asked, stream, engines, num_rounds, limit_s)
    rounds = {name: [turn[name] for turn in taken.undisturbed] for name in ("rows", *REFERENCES)}
    own, spec = rounds["rows"], asked.material.spec
    between = [one for done in own for gaps in done.between for one in gaps]
    count = sum(len(tokens) for done in own for tokens in done.tokens)
    total_s, num_steps = sum(done.total_s for done in own), sum(done.num_steps for done in own)
    stall_s = sum(done.rows["stall_ms"] for done in own) * 1e-3
    rate = count / total_s
    held = resident_bytes(point, spec, 0 if point.place in ("device", "computed") else device_bytes(asked))
    needed = sum(done.rows["rows_needed"] for done in own)
    return {
        "num_pairs": len(own),
        **taken.counts(),
        "ttft_ms": latency([one for done in own for one in done.first]),
        "itl_ms": latency(between),
        "reference_itl_ms": {
            name: latency([one for done in rounds[name] for gaps in done.between for one in gaps])
            for name in REFERENCES
        },
        "tokens_per_s": rounded(rate),
        "goodput_tokens_per_s": rounded(_good_tokens(own, slo) / total_s),
        "rows_a_step": rounded(needed / num_steps),
        "unique_rows_a_step": rounded(sum(done.rows["rows_unique"] for done in own) / num_steps),
        "bytes_a_token": rounded(sum(done.rows["bytes_moved"] for done in own) / needed),
        "hits": shares(_sum_of([done.rows["hits_by_tier"] for done in own])),
        "fetch_ms": None if point.place in ("device", "computed") else _fetch_alone(asked, stream),
        "stall_us": rounded(stall_s / num_steps * 1e6),
        "step_us": rounded(total_s / num_steps * 1e6),
        "stall_share": rounded(stall_s / total_s),
        "resident_bytes": held,
        "dollars_per_million": rounded(
            rents.per_million(
                point.engine,
                rate,
                device_bytes=held["attention_node"],
                node_bytes=sum(held["memory_nodes"]) + held["host"],
            )
        ),
        "price": prices(*_costs(rounds, by_token=bool(point.arrivals_per_s))),
        "median_ms": rounded(float(np.median(between)) * 1e3),
        "tokens_equal": all(turn["rows"].tokens == turn["codes_local"].tokens for turn in taken.all),
    }


def _alternate(
    asked: Asked, stream: TokenStream, engines: dict[str, Engine], num_rounds: int, limit_s: float
) -> Turns[dict[str, Round]]:
    """The same requests at every engine, in an order that turns; the first round is not counted."""
    point = asked.point
    names = list(engines)
    turns: Turns[dict[str, Round]] = Turns()
    draw = np.random.default_rng(0)
    count = num_requests(point)
    began = time.monotonic()
    for turn in range(num_rounds + _WARM_ROUNDS):
        if turn >= _LEAST_ROUNDS + _WARM_ROUNDS and time.monotonic() - began > limit_s:
            break
        starts = draw.integers(0, len(stream.tokens) - point.prompt, count)
        prompts = [stream.tokens[start : start + point.prompt].tolist() for start in starts]
        gaps = draw.exponential(1 / point.arrivals_per_s, count) if point.arrivals_per_s else np.zeros(count)
        first, times = turn % len(names), np.cumsum(gaps).tolist()
        turns.add({name: serve(engines[name], prompts, times) for name in names[first:] + names[:first]})
    turns.forget(_WARM_ROUNDS)
    return turns


def _fetch_alone(asked: Asked, stream: TokenStream) -> dict[str, float] | None:
    """Fetches of a step's distinct rows with no cache and nothing beside them."""
    took_s = []
    with bare_source(asked) as source:
        for row in stream.batches(asked.point.batch, _ALONE):
            ids = np.unique(np.ascontiguousarray(row))
            began = time.perf_counter()
            handle = source.start(ids)
            for band in source.spec.choose(None):
                source.arrive(handle, band)
            took_s.append(time.perf_counter() - began)
            source.release(handle)
    return latency(took_s)


def _costs(rounds: dict[str, list[Round]], *, by_token: bool) -> tuple[list[float], dict[str, list[float]]]:
    """What is compared round by round: the whole round, or, where arrivals decide how long that is, a token."""
    costs = {name: [one.token_s if by_token else one.total_s for one in done] for name, done in rounds.items()}
    return costs["rows"], {name: costs[name] for name in REFERENCES}


def _good_tokens(rounds: list[Round], slo: Slo) -> int:
    return sum(
        len(tokens)
        for done in rounds
        for first, gaps, tokens in zip(done.first, done.between, done.tokens, strict=True)
        if first * 1e3 <= slo.ttft_ms and np.mean(gaps) * 1e3 <= slo.itl_ms
    )


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key, {} if isinstance(value, dict) else 0)
        found[key] = _difference(value, old) if isinstance(value, dict) else value - old
    return found


def _sum_of(counts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total
