"""Rows of 96 KiB by TCP, Arrow Flight and Ray actor calls, in turn: what each transport costs a fetch.

`transports.<name>`: `latency_us`, a fetch of one row; `gb_per_s`, of 128 rows; medians, with the whole distribution
beside them. The same client, node and rows; everybody waits asleep, and may use all cores, since Flight and Ray have
threads of their own beside the client's. `ray` is null where Ray is not installed, and
`ray_missing` says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tolserve.bench.peers import node_description, peer
from tolserve.bench.report import alternate, estimate
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.spec import RowSpec
from tolserve.transport.choose import SERVED, make_transport
from tolserve.transport.link import Address, Transport
from tolserve.transport.security import Security

SEED = 0
VOCAB_SIZE = 128_256
NODE_BYTES = 128 << 20
NUM_ROWS = 128
RAY_MISSING = "Ray is not installed: pip install 'memoryllm-tol[serve]'"
_PATIENCE = ClientConfig(spin_us=0, silence_s=30.0, connect_s=30.0)
_LIMIT_S = 60.0


def measure_transports(*, quick: bool) -> dict[str, Any]:
    """The figures of each transport under its name."""
    node = node_description(
        rank=2048, dtype="float16", vocab_size=VOCAB_SIZE, core=None, spin_us=0, max_bytes=NODE_BYTES
    )
    spec = RowSpec.uniform(**node["shape"])
    has_ray = importlib.util.find_spec("ray") is not None
    with contextlib.ExitStack() as stack:
        sources = {}
        for name in SERVED:
            address = stack.enter_context(peer({**node, "transport": name}))
            sources[name] = stack.enter_context(_source(spec, address, make_transport(name, Security())))
        if has_ray:
            from tolserve.on_ray.rows_bench import ray_peer

            address, transport = stack.enter_context(ray_peer(node["shape"], NODE_BYTES))
            sources["ray"] = stack.enter_context(_source(spec, address, transport))
        small = _by_turns(sources, 1, 30 if quick else 300)
        large = _by_turns(sources, NUM_ROWS, 4 if quick else 40)
    found: dict[str, Any] = {name: _figures(small[name], large[name], spec) for name in sources}
    return found if has_ray else {**found, "ray": None, "ray_missing": RAY_MISSING}


def table(transports: dict[str, Any]) -> str:
    """The figures as one table of text."""
    lines = [f"{'transport':<10} {'1 row of 96 KiB':>16} {f'{NUM_ROWS} rows':>14}"]
    for name in (*SERVED, "ray"):
        one = transports[name]
        cells = f"{one['latency_us']:>13.0f} us {one['gb_per_s']:>9.2f} GB/s" if one else transports["ray_missing"]
        lines.append(f"{name:<10} {cells}")
    return "\n".join(lines)


def _figures(small: list[float], large: list[float], spec: RowSpec) -> dict[str, Any]:
    rates = [NUM_ROWS * spec.row_bytes / elapsed_s / 1e9 for elapsed_s in large]
    latency = estimate([elapsed_s * 1e6 for elapsed_s in small])
    throughput = estimate(rates)
    return {
        "latency_us": round(latency.median, 1),
        "gb_per_s": round(throughput.median, 3),
        "latency": latency.to_dict(),
        "throughput": throughput.to_dict(),
    }


def _by_turns(sources: dict[str, CachedSource], num_rows: int, rounds: int) -> dict[str, list[float]]:
    draw = np.random.default_rng(SEED)

    def contestant(source: CachedSource) -> Callable[[], float]:
        bands = source.spec.choose(None)

        def fetch() -> float:
            ids = draw.choice(VOCAB_SIZE, num_rows, replace=False).astype(np.int64)
            began = time.perf_counter()
            handle = source.start(ids)
            for band in bands:
                source.arrive(handle, band)
            elapsed_s = time.perf_counter() - began
            source.release(handle)
            return elapsed_s

        return fetch

    contestants = {name: contestant(source) for name, source in sources.items()}
    for fetch in contestants.values():
        fetch()
    return alternate(contestants, rounds=rounds, limit_s=_LIMIT_S)


@contextlib.contextmanager
def _source(spec: RowSpec, address: Address, transport: Transport) -> Iterator[CachedSource]:
    client = PartitionedClient(spec, [[address]], _PATIENCE, transport)
    client.wait_connected(60)
    source = CachedSource(client, num_staging=2 * NUM_ROWS)
    try:
        yield source
    finally:
        source.close()
