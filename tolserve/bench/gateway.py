"""What the gateway adds to an engine called directly: CPU time a token, time to the first token, throughput.

The whole deployment runs on a Ray cluster of its own: gateway and attention node as Serve deployments, streams over
HTTP. The competitor is the same engine on the same weights, stepped in this process. CPU time is that of the gateway's
process with Ray's threads in it; no request passes a proxy of Serve, as the gateway listens itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tolbuild.checkpoint import open_checkpoint
from tolserve.bench.report import alternate, estimate
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.replica import engine_config
from tolserve.serve_config import ServeConfig

CHECKPOINT = "builtin:tiny"
NUM_CLIENTS = 32
PROMPT = list(range(100, 132))

_HEAD = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_START_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How one streamed request went: seconds to its first token and to its end, tokens that came."""

    first_s: float
    total_s: float
    num_tokens: int


async def stream_once(address: tuple[str, int], model: str, max_tokens: int) -> Stream:
    """One greedy streamed request over a connection of its own.

    Raises:
        RuntimeError: it was not answered with 200, or ended early.
    """
    fields = {"model": model, "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body = json.dumps({**fields, "ignore_eos": True}).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    writer.write(_HEAD.format(len(body)).encode() + body)
    first, received = 0.0, bytearray()
    while b"data: [DONE]" not in received[-64:]:
        data = await reader.read(1 << 16)
        if not data:
            raise RuntimeError(f"the stream ended early: {received[:300].decode(errors='replace')}")
        received += data
        if not first and b"data: {" in received:
            first = time.perf_counter() - began
    total = time.perf_counter() - began
    writer.close()
    return Stream(first_s=first, total_s=total, num_tokens=received.count(b"data: {"))


async def stream_many(address: tuple[str, int], model: str, count: int, max_tokens: int) -> list[Stream]:
    """`count` clients at once, one request each."""
    return list(await asyncio.gather(*(stream_once(address, model, max_tokens) for _ in range(count))))


@contextmanager
def deployment(config: ServeConfig) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """The endpoint on a Ray cluster of its own; its address and the processes that HTTP passes through."""
    from tolserve.on_ray.launch import Endpoint, own_cluster

    with TemporaryDirectory() as folder, own_cluster(Path(folder)):
        endpoint = Endpoint(config)
        try:
            endpoint.deploy()
            address = endpoint.wait(lambda line: None, timeout_s=_START_S)
            gateways = [member.pid for member in endpoint.view().members if member.kind == "gateway"]
            yield address, gateways
        finally:
            endpoint.stop()


def cpu_s(pids: list[int]) -> float:
    """CPU time that the processes have used, all their threads, user and system."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Direct:
    """The engine called without a server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._serial = 0

    def run(self, count: int, max_tokens: int) -> tuple[float, float]:
        """Seconds to the first token of `count` equal requests given at once, and to the end of all."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        began, first = time.perf_counter(), 0.0
        for _ in range(count):
            self._serial += 1
            self._engine.add_request(str(self._serial), PROMPT, params)
        while self._engine.has_work():
            outputs = self._engine.step()
            if outputs and not first:
                first = time.perf_counter() - began
        return first, time.perf_counter() - began


def measure(*, quick: bool, checkpoint: str = CHECKPOINT) -> dict[str, Any]:
    """`gateway_us_per_token` at 32 clients, `gateway_ttft_overhead_ms` at one, and the figures beside them."""
    config = ServeConfig(checkpoint=checkpoint, port=0)
    direct = Direct(_direct_engine(config))
    with deployment(config) as (address, pids):
        asyncio.run(stream_many(address, config.name, NUM_CLIENTS, 8))
        direct.run(NUM_CLIENTS, 8)
        first = _time_to_first(address, config.name, direct, rounds=5 if quick else 60)
        busy = _throughput(address, config.name, pids, direct, rounds=2 if quick else 8, tokens=8 if quick else 64)
    return {**first, **busy}


def _direct_engine(config: ServeConfig) -> Engine:
    torch.set_num_threads(max(1, int(config.num_cpus)))
    shape = open_checkpoint(config.checkpoint).config
    return build_engine(config.checkpoint, None, engine_config(config, shape))


def _time_to_first(address: tuple[str, int], model: str, direct: Direct, *, rounds: int) -> dict[str, Any]:
    figures = alternate(
        {
            "gateway": lambda: asyncio.run(stream_once(address, model, 1)).first_s * 1e3,
            "direct": lambda: direct.run(1, 1)[0] * 1e3,
        },
        rounds=rounds,
        limit_s=60,
    )
    pairs = zip(figures["gateway"], figures["direct"], strict=True)
    overhead = estimate([ours - theirs for ours, theirs in pairs])
    return {
        "gateway_ttft_overhead_ms": round(overhead.mean, 3),
        "gateway_ttft_detail_ms": {
            "overhead": overhead.to_dict(),
            **{name: estimate(values).to_dict() for name, values in figures.items()},
        },
    }


def _throughput(
    address: tuple[str, int], model: str, pids: list[int], direct: Direct, *, rounds: int, tokens: int
) -> dict[str, Any]:
    cpu_us: list[float] = []
    first_ms: list[float] = []

    def served() -> float:
        before, began = cpu_s(pids), time.perf_counter()
        streams = asyncio.run(stream_many(address, model, NUM_CLIENTS, tokens))
        elapsed, count = time.perf_counter() - began, sum(one.num_tokens for one in streams)
        cpu_us.append((cpu_s(pids) - before) * 1e6 / count)
        first_ms.append(1e3 * sum(one.first_s for one in streams) / NUM_CLIENTS)
        return count / elapsed

    def called() -> float:
        return NUM_CLIENTS * tokens / direct.run(NUM_CLIENTS, tokens)[1]

    figures = alternate({"gateway": served, "direct": called}, rounds=rounds, limit_s=90)
    ratios = [ours / theirs for ours, theirs in zip(figures["gateway"], figures["direct"], strict=True)]
    return {
        "gateway_us_per_token": round(estimate(cpu_us).mean, 1),
        "gateway_detail": {
            "clients": NUM_CLIENTS,
            "us_per_token": estimate(cpu_us).to_dict(),
            "ttft_ms": estimate(first_ms).to_dict(),
            "throughput_vs_direct": estimate(ratios).to_dict(),
            "tokens_per_s": {name: estimate(values).to_dict() for name, values in figures.items()},
        },
    }
