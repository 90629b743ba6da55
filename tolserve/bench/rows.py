"""`bench rows`: the row path against a bare socket, the client's own work, and fetching's price at GPU speed.

- `tcp_vs_socket_96k`: latency of a whole fetch of one row of 96 KiB by the row client (look-up to row in the buffer)
  over that of a bare TCP socket which sends as many bytes from memory; ratio of medians. Both want all bytes: the
  client waits for the last band first.
- `tcp_vs_socket_12m`: throughput of fetching 128 such rows over the bare socket's; ratio of medians.
- `client_overhead_us`: the engine's work for the rows of 64 tokens of 12 KiB that are all cached, with the policy that
  serving defaults to, median.
- `paced_overhead`: see `tolserve.bench.paced_rows`.
- `transports`: TCP beside Arrow Flight and Ray actor calls, see `tolserve.bench.transports`; printed as a table too.
- `node_vs_socket_4_clients`, `fairness`, `fleet`: see `tolserve.bench.fleet`.

The memory node has a core of its own; where it is said that it spins, it looks for requests without sleeping while
traffic lasts. `tcp_vs_socket_*` are of the regime in which everybody waits asleep, as they do unless told otherwise;
`sockets` has both. The node's rows repeat within a smaller memory (`CyclicStore`), since 128,256 rows of 96 KiB are
more than most test machines hold.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from typing import Any

import numpy as np

from tolserve.bench.fleet import measure_fleet
from tolserve.bench.paced_rows import measure_paced
from tolserve.bench.peers import REQUEST, fill, node_description, own_cores, peer
from tolserve.bench.report import estimate
from tolserve.bench.transports import measure_transports, table
from tolserve.engine.rows import RowFeed
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU, CachePolicy, StaticByFrequency
from tolserve.memory.s3fifo import S3FIFO
from tolserve.memory.source import RowSource
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore
from tolserve.native import compiled

SEED = 0
VOCAB_SIZE = 128_256
NODE_BYTES = 512 << 20
SPIN_US = 20_000
TURN_FETCHES = 10
"""Fetches that a contestant makes in a row, after one that is not counted: its server is then awake, and spinning."""


def run(*, quick: bool) -> dict[str, Any]:
    """All figures; those that have bars stand at the top."""
    here, there = own_cores()
    before = os.sched_getaffinity(0)
    if here is not None:
        os.sched_setaffinity(0, {here})
    gc.collect()
    gc.freeze()
    try:
        sockets = {
            "waiting": measure_sockets(there, spin_us=0, quick=quick),
            "spinning": measure_sockets(there, spin_us=SPIN_US, quick=quick),
        }
        client = measure_client(quick=quick)
        paced = measure_paced(there, quick=quick)
        fleet = measure_fleet((here, there), quick=quick)
    finally:
        os.sched_setaffinity(0, before)
        gc.unfreeze()
    transports = measure_transports(quick=quick)
    print(table(transports), flush=True)
    return {
        "tcp_vs_socket_96k": round(sockets["waiting"]["96k"]["ratio"], 3),
        "tcp_vs_socket_12m": round(sockets["waiting"]["12m"]["ratio"], 3),
        "client_overhead_us": round(client["s3fifo"]["median"], 1),
        "paced_overhead": paced["paced_overhead"],
        **fleet,
        "sockets": sockets,
        "client": client,
        "paced": paced["paced"],
        "transports": transports,
        "cores": {"client": here, "memory node": there},
        "compiled": compiled.load() is not None,
        "node": {"spin_us": SPIN_US, "memory_bytes": NODE_BYTES, "rows": "repeat within this memory"},
    }


def measure_sockets(core: int | None, *, spin_us: int, quick: bool) -> dict[str, Any]:
    """The row client and a bare socket in turn, 1 and 128 rows of 96 KiB.

    Both contestants wait in the same way: asleep in the system, or, where `spin_us` is given, looking for bytes without
    sleeping on both sides. Before a contestant's turn the other's server, which has the same core, has gone to sleep.
    """
    node = node_description(
        rank=2048, dtype="float16", vocab_size=VOCAB_SIZE, core=core, spin_us=spin_us, max_bytes=NODE_BYTES
    )
    spec = RowSpec.uniform(**node["shape"])
    with peer(node) as address, peer({"kind": "socket", "core": core, "spin_us": spin_us}) as bare_address:
        client = PartitionedClient(spec, [[address]], ClientConfig(spin_us=spin_us))
        client.wait_connected(30)
        source = CachedSource(client, num_staging=1024)
        bare = socket.create_connection(bare_address)
        bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bare.setblocking(not spin_us)
        try:
            small = _against_socket(source, bare, 1, 100 if quick else 1000)
            large = _against_socket(source, bare, 128, 15 if quick else 100)
        finally:
            bare.close()
            source.close()
    small["ratio"] = small["client_us"]["median"] / small["socket_us"]["median"]
    large["ratio"] = large["socket_us"]["median"] / large["client_us"]["median"]
    return {"96k": small, "12m": large}


def _against_socket(source: RowSource, bare: socket.socket, num_rows: int, rounds: int) -> dict[str, Any]:
    draw = np.random.default_rng(SEED)
    num_bytes = num_rows * source.spec.row_bytes
    buffer = memoryview(bytearray(num_bytes))
    bands = source.spec.choose(None)

    def by_client() -> float:
        ids = draw.choice(VOCAB_SIZE, num_rows, replace=False).astype(np.int64)
        began = time.perf_counter()
        handle = source.start(ids)
        for band in reversed(bands):
            source.arrive(handle, band)
        elapsed_s = time.perf_counter() - began
        source.release(handle)
        return elapsed_s * 1e6

    def by_socket() -> float:
        began = time.perf_counter()
        bare.sendall(REQUEST.pack(num_bytes))
        fill(bare, buffer)
        return (time.perf_counter() - began) * 1e6

    figures: dict[str, list[float]] = {"client": [], "socket": []}
    turns = [("client", by_client), ("socket", by_socket)]
    for turn in range(max(2, rounds // TURN_FETCHES)):
        for name, fetch in turns if turn % 2 else reversed(turns):
            time.sleep(2e-6 * SPIN_US)
            fetch()
            figures[name] += [fetch() for _ in range(TURN_FETCHES)]
    return {f"{name}_us": _spread(values) for name, values in figures.items()} | {"bytes": num_bytes}


def measure_client(*, quick: bool) -> dict[str, Any]:
    """Microseconds of the engine's row path for 64 tokens of 12 KiB, all cached.

    De-duplication, look-up, pinning of slots, the six bands' arrival, the bill and the release, as `Engine.step` calls
    them. Rows are read where they lie, so that there is no copy to leave out.
    """
    spec = RowSpec.uniform(num_layers=24, layers_per_band=4, rank=512, dtype="int8", vocab_size=VOCAB_SIZE)
    num_slots = 4096
    counts = np.arange(VOCAB_SIZE, 0, -1)
    policies: dict[str, CachePolicy] = {
        "static": StaticByFrequency(counts),
        "lru": LRU(num_slots, counts),
        "s3fifo": S3FIFO(num_slots, VOCAB_SIZE, counts),
    }
    draw = np.random.default_rng(SEED)
    figures = {}
    for name, policy in policies.items():
        store = CyclicStore(spec, num_rows=256, seed=SEED)
        source = CachedSource(StoreFetcher(store), num_slots=num_slots, policy=policy, num_staging=2048)
        source.warm()
        bands = spec.choose(None)
        feed = RowFeed(source, bands)
        values = []
        for _ in range(300 if quick else 3000):
            ids = draw.integers(0, num_slots, 64)
            tokens = ids.tolist()
            began = time.perf_counter()
            feed.fetch_ahead("decode", tokens)
            rows = feed.begin(ids)
            for band in bands:
                feed.wait(rows, band)
            charge = feed.charge(rows, len(ids))
            feed.release(rows)
            values.append((time.perf_counter() - began) * 1e6)
            assert charge.bytes_moved == 0, "every row was cached"
        figures[name] = _spread(values)
    return figures


def _spread(values: list[float]) -> dict[str, float]:
    low, high = np.percentile(values, [50, 99])
    return estimate(values).to_dict() | {"p50": round(float(low), 1), "p99": round(float(high), 1)}
