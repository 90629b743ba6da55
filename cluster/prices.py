"""`python -m cluster.prices --checkpoint C --table URL`: what it costs to have the rows on the memory nodes.

Asks the endpoint that runs on the Ray cluster for its memory nodes, and lets engines of this process generate the same
tokens in turns: with the rows in its own memory, on those nodes, and on those nodes behind a cache; behind the same
cache on nodes that speak Arrow Flight, in Ray actors, and in the object store, with no node in between.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from tokenizers import Tokenizer

from cluster.row_nodes import flight_nodes, ray_nodes
from tolbuild.checkpoint import open_checkpoint
from tolbuild.table.errors import ToLError
from tolserve.bench.report import alternate, estimate
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.on_ray import launch
from tolserve.on_ray.rows import RayTransport
from tolserve.replica import Rows, engine_config, open_rows
from tolserve.row_tiers import Addresses
from tolserve.serve_config import ServeConfig
from tolserve.transport.link import Transport

PROMPTS = (
    "In the beginning", "It was a dark and", "The President of the United States", "Call me", "My dear sister,",
    "The whale rose", "Blessed are they that", "She had always wanted to",
)  # fmt: skip
ROUNDS = 9
LIMIT_S = 20.0
NUM_TOKENS = 24
CACHE_SHARE = 0.1
STORE = "from the object store"
STORE_ROUNDS = 4
STORE_LIMIT_S = 15.0
"""The S3 stand-in takes some 30 ms of processor time a read: its contestant ends with the first round after this."""
_STORE_DEADLINE_S = 20.0


class TokensDifferError(ToLError):
    """Contestants whose tokens must be the same have others."""


@dataclass(kw_only=True)
class Contestant:
    """An engine over rows that lie somewhere.

    Attributes:
        tokens: those of each round, by prompt.
    """

    name: str
    rows: Rows
    engine: Engine
    tokenizer: Tokenizer
    tokens: list[list[list[int]]] = field(default_factory=list)

    def generate(self) -> float:
        """Answer all prompts as one batch; returns ms a step. The seeds differ from round to round."""
        steps = self.engine.stats()["num_steps"]
        number = len(self.tokens)
        found: dict[str, list[int]] = {}
        for index, prompt in enumerate(PROMPTS):
            name, seed = f"{number}-{index}", number * len(PROMPTS) + index
            params = SamplingParams(max_tokens=NUM_TOKENS, seed=seed, ignore_eos=True)
            found[name] = []
            self.engine.add_request(name, self.tokenizer.encode(prompt).ids, params)
        began = time.perf_counter()
        while self.engine.has_work():
            for output in self.engine.step():
                if output.error:
                    raise output.error
                found[output.request_id] += [token.token_id for token in output.tokens]
        took_s = time.perf_counter() - began
        self.tokens.append(list(found.values()))
        return 1e3 * took_s / float(self.engine.stats()["num_steps"] - steps)

    def close(self) -> None:
        """Give the rows back."""
        self.engine.close()
        self.rows.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m cluster.prices", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="URL of the checkpoint")
    parser.add_argument("--table", required=True, help="URL of the table that the endpoint serves")
    parser.add_argument("--memory-nodes", type=int, required=True, help="partitions that the endpoint has")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    here = ServeConfig(checkpoint=given.checkpoint, table=given.table, memory_nodes=0)
    with ExitStack() as stack:
        launch.connect()
        stack.callback(launch.disconnect)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        by_tcp = launch.Endpoint(replace(here, memory_nodes=given.memory_nodes)).view().memory(given.memory_nodes)
        contestants = open_contestants(here, by_tcp, stack)
        figures = take_turns(contestants)
        check_tokens(contestants)
        print(report(contestants, figures))
    return 0


def open_contestants(here: ServeConfig, by_tcp: Addresses, stack: ExitStack) -> list[Contestant]:
    """One for each line of the table, `here` first; they and the nodes that they need end with `stack`.

    Args:
        here: the whole table in this process.
        by_tcp: the nodes of an endpoint, by partition.
    """
    memory_nodes = len(by_tcp)
    there = replace(here, memory_nodes=memory_nodes, cache_share=CACHE_SHARE)
    flight, ray = replace(there, transport="flight"), replace(there, transport="ray")
    store = replace(here, rows="store", cache_share=CACHE_SHARE, host_cache_bytes=0, store_deadline_s=_STORE_DEADLINE_S)
    by_flight, by_calls = stack.enter_context(flight_nodes(flight)), stack.enter_context(ray_nodes(ray))
    found: list[Contestant] = []

    def add(name: str, config: ServeConfig, addresses: Addresses, transport: Transport | None = None) -> None:
        found.append(contestant(name, config, addresses, transport))
        stack.callback(found[-1].close)

    add("in this process", here, [])
    add(f"on {memory_nodes} memory nodes", replace(there, cache_share=0.0), by_tcp)
    add(f"the same, {CACHE_SHARE:.0%} cached", there, by_tcp)
    add("over Arrow Flight", flight, by_flight)
    add("by Ray actor calls", ray, by_calls, RayTransport())
    add(STORE, store, [])
    return found


def take_turns(contestants: Sequence[Contestant]) -> dict[str, list[float]]:
    """Milliseconds a step in each round, by contestant; the object store is there in the first ones alone."""
    turns: dict[str, Callable[[], float]] = {one.name: one.generate for one in contestants}
    figures = alternate(turns, rounds=STORE_ROUNDS, limit_s=STORE_LIMIT_S, least=1)
    turns.pop(STORE)
    left = alternate(turns, rounds=ROUNDS - len(figures[STORE]), limit_s=LIMIT_S)
    return {name: values + left.get(name, []) for name, values in figures.items()}


def check_tokens(contestants: Sequence[Contestant]) -> None:
    """Rows are the same wherever they come from.

    Raises:
        TokensDifferError: some answered a round with other tokens than the first.
    """
    for one in contestants[1:]:
        if one.tokens != contestants[0].tokens[: len(one.tokens)]:
            raise TokensDifferError(f"with rows {one.name} the tokens are others than with rows {contestants[0].name}")


def contestant(name: str, config: ServeConfig, addresses: Addresses, transport: Transport | None = None) -> Contestant:
    """An engine whose rows are where `config` says; the settings are those of the endpoint's attention nodes."""
    checkpoint = open_checkpoint(config.checkpoint)
    rows = open_rows(config, checkpoint.config, None, addresses, transport)
    settings = engine_config(config, checkpoint.config)
    engine = build_engine(config.checkpoint, rows.source, settings, table=rows.table)
    return Contestant(name=name, rows=rows, engine=engine, tokenizer=checkpoint.tokenizer())


def report(contestants: Sequence[Contestant], figures: dict[str, list[float]]) -> str:
    """A line a contestant: time of a step, and where its rows came from."""
    base = estimate(figures[contestants[0].name]).median
    num_rounds = len(figures[contestants[0].name])
    lines = [
        f"  {len(PROMPTS)} prompts at a time, {NUM_TOKENS} tokens each, the same for all; {num_rounds} rounds in turns",
        f"  ({len(figures[STORE])} {STORE}); the last four keep {CACHE_SHARE:.0%} of the rows cached",
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
