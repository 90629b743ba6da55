"""The run: an open loop that keeps its schedule, or a closed loop of so many clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tolserve.bench.load.client import Endpoint, Outcome
from tolserve.bench.load.config import LoadConfig
from tolserve.bench.load.workload import Ask, make_workload


@dataclass(frozen=True, kw_only=True)
class LoadRun:
    """What a run gave.

    Attributes:
        duration_s: from its start to the end of the last request.
        outcomes: in the order of the workload.
    """

    model: str
    duration_s: float
    outcomes: tuple[Outcome, ...]


def measure(config: LoadConfig, asks: Sequence[Ask] | None = None) -> LoadRun:
    """Run it to its end; `asks` instead of the workload that the config describes.

    Raises:
        ValueError: the endpoint cannot be asked at all, or the workload cannot be made. Requests that fail raise
            nothing, they are counted.
    """
    return asyncio.run(measure_async(config, asks))


async def measure_async(config: LoadConfig, asks: Sequence[Ask] | None = None) -> LoadRun:
    """`measure` on a loop that runs already."""
    async with Endpoint(config) as endpoint:
        card = await endpoint.card()
        if asks is None:
            asks = await asyncio.to_thread(make_workload, config, config.vocab_size or card.get("vocab_size"))
        for ask in asks[: config.num_warmups]:
            await endpoint.send(ask, began=time.perf_counter())
        began = time.perf_counter()
        if config.max_concurrency is None:
            outcomes = await _open_loop(endpoint, asks, began)
        else:
            outcomes = await _closed_loop(endpoint, asks, began, config.max_concurrency)
        duration = time.perf_counter() - began
    return LoadRun(model=card["id"], duration_s=duration, outcomes=tuple(outcomes))


async def _open_loop(endpoint: Endpoint, asks: Sequence[Ask], began: float) -> list[Outcome]:
    """Send each request when it is due, whatever became of those before."""

    async def later(ask: Ask) -> Outcome:
        await asyncio.sleep(began + ask.at_s - time.perf_counter())
        return await endpoint.send(ask, began=began)

    return list(await asyncio.gather(*(later(ask) for ask in asks)))


async def _closed_loop(endpoint: Endpoint, asks: Sequence[Ask], began: float, num_clients: int) -> list[Outcome]:
    """`num_clients` clients; each sends the next request as soon as its last one has ended."""
    outcomes: list[Any] = [None] * len(asks)
    queue = iter(enumerate(asks))

    async def client() -> None:
        for index, ask in queue:
            outcomes[index] = await endpoint.send(ask, began=began)
            outcomes[index].lag_s = 0.0

    await asyncio.gather(*(client() for _ in range(min(num_clients, len(asks)))))
    return outcomes
