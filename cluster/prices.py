"""`python -m cluster.prices --checkpoint C --table URL`: what it costs to have the rows on the memory nodes.

Asks the endpoint that runs on the Ray cluster for its memory nodes, and lets engines of this process generate the same
tokens in turns: with the rows in its own memory, on those nodes, and on those nodes behind a cache.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer

from tolbuild.checkpoint import open_checkpoint
from tolserve.bench.report import alternate, estimate
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.on_ray import launch
from tolserve.replica import Rows, engine_config, open_rows
from tolserve.row_tiers import Addresses
from tolserve.serve_config import ServeConfig

PROMPTS = (
    "In the beginning", "It was a dark and", "The President of the United States", "Call me", "My dear sister,",
    "The whale rose", "Blessed are they that", "She had always wanted to",
)  # fmt: skip
ROUNDS = 9
LIMIT_S = 20.0
NUM_TOKENS = 24
CACHE_SHARE = 0.1


@dataclass(kw_only=True)
class Contestant:
    """An engine over rows that lie somewhere."""

    name: str
    rows: Rows
    engine: Engine
    tokenizer: Tokenizer
    num_rounds: int = 0

    def generate(self) -> float:
        """Answer all prompts as one batch; returns ms a step. The seeds differ from round to round."""
        steps = self.engine.stats()["num_steps"]
        for index, prompt in enumerate(PROMPTS):
            seed = self.num_rounds * len(PROMPTS) + index
            params = SamplingParams(max_tokens=NUM_TOKENS, seed=seed, ignore_eos=True)
            self.engine.add_request(f"{self.num_rounds}-{index}", self.tokenizer.encode(prompt).ids, params)
        began = time.perf_counter()
        while self.engine.has_work():
            for output in self.engine.step():
                if output.error:
                    raise output.error
        self.num_rounds += 1
        return 1e3 * (time.perf_counter() - began) / float(self.engine.stats()["num_steps"] - steps)

    def close(self) -> None:
        """Give the rows back."""
        self.engine.close()
        if self.rows.source:
            self.rows.source.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m cluster.prices", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="URL of the checkpoint")
    parser.add_argument("--table", required=True, help="URL of the table that the endpoint serves")
    parser.add_argument("--memory-nodes", type=int, required=True, help="partitions that the endpoint has")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    here = ServeConfig(checkpoint=given.checkpoint, table=given.table, memory_nodes=0)
    there = replace(here, memory_nodes=given.memory_nodes)
    addresses = memory_addresses(there)
    contestants = [
        contestant("in this process", here, []),
        contestant(f"on {given.memory_nodes} memory nodes", replace(there, cache_share=0.0), addresses),
        contestant(f"the same, {CACHE_SHARE:.0%} cached", replace(there, cache_share=CACHE_SHARE), addresses),
    ]
    try:
        turns: dict[str, Callable[[], float]] = {one.name: one.generate for one in contestants}
        figures = alternate(turns, rounds=ROUNDS, limit_s=LIMIT_S)
        print(report(contestants, figures))
    finally:
        for one in contestants:
            one.close()
    return 0


def memory_addresses(config: ServeConfig) -> Addresses:
    """Where the endpoint's memory nodes listen, by partition."""
    launch.connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        return launch.Endpoint(config).view().memory(config.memory_nodes)
    finally:
        launch.disconnect()


def contestant(name: str, config: ServeConfig, addresses: Addresses) -> Contestant:
    """An engine whose rows are where `config` says; the settings are those of the endpoint's attention nodes."""
    checkpoint = open_checkpoint(config.checkpoint)
    rows = open_rows(config, checkpoint.config, None, addresses)
    settings = engine_config(config, checkpoint.config)
    engine = build_engine(config.checkpoint, rows.source, settings, table=rows.table)
    return Contestant(name=name, rows=rows, engine=engine, tokenizer=checkpoint.tokenizer())


def report(contestants: Sequence[Contestant], figures: dict[str, list[float]]) -> str:
    """A line a contestant: time of a step, and where its rows came from."""
    base = estimate(figures[contestants[0].name]).median
    num_rounds = len(figures[contestants[0].name])
    lines = [
        f"  {len(PROMPTS)} prompts at a time, {NUM_TOKENS} tokens each, the same for all; {num_rounds} rounds in turns",
        "",
        f"  {'rows are':<24}{'ms a step':>10}{'against':>10}{'waiting':>12}{'from cache':>12}{'network a step':>16}",
    ]
    for one in contestants:
        stats = one.engine.stats()
        rows, steps = stats["rows"], stats["num_steps"]
        median = estimate(figures[one.name]).median
        cached = rows["hits_by_tier"].get("cache", 0) / max(1, rows["rows_unique"])
        waiting, moved = f"{rows['stall_ms'] / steps:.2f} ms", f"{rows['bytes_moved'] / steps / 1024:.1f} KiB"
        lines.append(
            f"  {one.name:<24}{median:>10.2f}{f'{100 * (median / base - 1):+.1f} %':>10}"
            f"{waiting:>12}{f'{cached:.0%}':>12}"
            f"{moved:>16}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
