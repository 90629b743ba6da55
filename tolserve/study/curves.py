"""Miss ratios by cache size: each policy of `tolserve.memory`, cold and warm, and the optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO
from tolserve.study.belady import optimal_hits
from tolserve.study.replay import replay
from tolserve.study.tokens import TokenSet
from tolserve.study.traces import Trace, Workload, trace

POLICIES: dict[tuple[str, str], Callable[[int, TokenSet], CachePolicy]] = {
    ("lru", "cold"): lambda slots, tokens: LRU(slots),
    ("lru", "warm"): lambda slots, tokens: LRU(slots, tokens.counts_V),
    ("s3fifo", "cold"): lambda slots, tokens: S3FIFO(slots, tokens.vocab_size),
    ("s3fifo", "warm"): lambda slots, tokens: S3FIFO(slots, tokens.vocab_size, tokens.counts_V),
    ("frequency", "warm"): lambda slots, tokens: StaticByFrequency(tokens.counts_V),
}
"""By name and start; a policy that is static has no cold start."""

STARTS = ("cold", "warm")


def curves(
    tokens: TokenSet, workload: Workload, *, shares: Sequence[float], policies: Sequence[str], seed: int
) -> dict[str, Any]:
    """One stream: what it is, and by policy and start the shares of its rows that miss, one for each cache size.

    A miss is a row that a step has to fetch, whatever its place in the step; rows loaded before the first step are
    none.
    """
    requests = trace(tokens.tokens, tokens.vocab_size, workload, seed=seed)
    slots = [max(1, round(share * tokens.vocab_size)) for share in shares]
    ratios: dict[str, dict[str, list[float]]] = {"belady": {}}
    for start in STARTS:
        ratios["belady"][start] = _misses(requests, optimal_hits(requests, slots, warm=start == "warm").tolist())
    for (name, start), make in POLICIES.items():
        if name in policies:
            hits = [replay(requests, make(count, tokens), count) for count in slots]
            ratios.setdefault(name, {})[start] = _misses(requests, hits)
    return {
        "tokenizer": tokens.name,
        "about": tokens.about,
        "vocab_size": tokens.vocab_size,
        "stream": workload.name,
        "tokens": requests.num_tokens,
        "steps": len(requests.steps),
        "rows": requests.num_rows,
        "distinct": requests.num_distinct,
        "slots": slots,
        "miss_ratio": ratios,
    }


def _misses(requests: Trace, hits: Sequence[int]) -> list[float]:
    return [round(1 - count / requests.num_rows, 5) for count in hits]
