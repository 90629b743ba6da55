"""Many at once, of `bench rows`: one memory node or 8 and 4 clients, and a heavy client among light ones.

Every client is a process of its own; all of them share one core, memory nodes and the bare socket's server another one,
and everybody waits asleep.

- `node_vs_socket_4_clients`: bytes/s that one memory node sends to 4 clients over what a bare socket's server with a
  thread a client sends, the clients being the same load generator (see `fleet_client`). The bare socket has as much
  memory as the node and sends one stretch of it after another. The lower of 64 rows of 12 KiB and 512 rows (6 MiB) a
  fetch; `client_vs_socket` beside it is with the row client, whose work shares the clients' core.
- `fleet`: 8 memory nodes of an eighth of the table each, 4 clients that stand for attention replicas, 64 rows a fetch.
- `fairness`: what 3 light clients (8 rows a fetch) wait for beside one heavy client (1,024 rows, 12 MiB a fetch) over
  what they wait for without it, by the row client, and of the bare socket.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tolserve.bench.peers import node_description, peer
from tolserve.bench.report import estimate
from tolserve.memory.spec import RowSpec

NUM_CLIENTS = 4
NUM_NODES = 8
VOCAB_SIZE = 65_536
_MAX_BYTES = 256 << 20
_SIZES = {"64_rows": 64, "512_rows": 512}
_LIGHT, _HEAVY = 8, 1024


class Clients:
    """Processes of `fleet_client` that take turns together."""

    def __init__(self, children: list[subprocess.Popen[str]]) -> None:
        self._children = children

    def turn(self, tasks: list[dict[str, Any]]) -> list[list[float]]:
        """Client i does `tasks[i]` while the others do theirs; microseconds of each fetch, by client."""
        for child, task in zip(self._children, tasks, strict=False):
            _tell(child, task)
        return [_answer(child)["us"] for child, _ in zip(self._children, tasks, strict=False)]


@contextmanager
def clients(told: dict[str, Any]) -> Iterator[Clients]:
    """Clients that are connected and have checked what comes; they end with the context."""
    children: list[subprocess.Popen[str]] = []
    try:
        for index in range(NUM_CLIENTS):
            command = [sys.executable, "-m", "tolserve.bench.fleet_client"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(child)
            _tell(child, {**told, "index": index})
        for child in children:
            _answer(child)
        yield Clients(children)
    finally:
        for child in children:
            with contextlib.suppress(OSError):
                child.stdin.close()  # type: ignore[union-attr]
            child.wait(timeout=60)
            child.stdout.close()  # type: ignore[union-attr]


def measure_fleet(cores: tuple[int | None, int | None], *, quick: bool) -> dict[str, Any]:
    """All figures; cores of the clients and of what they talk to."""
    here, there = cores
    node = node_description(rank=512, dtype="int8", vocab_size=VOCAB_SIZE, core=there, spin_us=0, max_bytes=_MAX_BYTES)
    spec = RowSpec.uniform(**node["shape"])
    told = {"shape": node["shape"], "core": here, "socket": None, "num_physical": _MAX_BYTES // spec.row_bytes}
    bare_description = {"kind": "socket", "core": there, "spin_us": 0, "max_bytes": _MAX_BYTES}
    seconds, rounds = (0.15, 2) if quick else (0.4, 5)
    with ExitStack() as stack:
        address, bare = stack.enter_context(peer(node)), stack.enter_context(peer(bare_description))
        four = stack.enter_context(clients({**told, "addresses": [[address]], "socket": bare}))
        against = {
            name: _against_socket(four, num_rows, spec, seconds=seconds, rounds=rounds)
            for name, num_rows in _SIZES.items()
        }
        fairness = {who: _fairness(four, who, seconds=4 * seconds) for who in ("client", "socket")}
    fleet = _many_nodes(node, told, spec, seconds=2 * seconds)
    return {
        "node_vs_socket_4_clients": round(min(one["ratio"] for one in against.values()), 3),
        "clients_4": against,
        "fairness": fairness,
        "fleet": fleet,
    }


def _against_socket(four: Clients, num_rows: int, spec: RowSpec, *, seconds: float, rounds: int) -> dict[str, Any]:
    """Both contestants in turns, in an order that turns; rows/s and GB/s are of all clients together."""
    rows_per_s: dict[str, list[float]] = {"node": [], "socket": [], "client": []}
    for turn in range(rounds + 1):
        for who in list(rows_per_s) if turn % 2 else reversed(rows_per_s):
            times = four.turn([{"who": who, "num_rows": num_rows, "seconds": seconds}] * NUM_CLIENTS)
            if turn:
                rows_per_s[who].append(sum(num_rows * len(one) / (sum(one) * 1e-6) for one in times))
    found = {who: _rates(values, spec.row_bytes) for who, values in rows_per_s.items()}
    bare = found["socket"]["rows_per_s"]
    ratios = {"ratio": found["node"]["rows_per_s"] / bare, "client_vs_socket": found["client"]["rows_per_s"] / bare}
    return {**found, **{key: round(value, 4) for key, value in ratios.items()}}


def _rates(values: list[float], row_bytes: int) -> dict[str, Any]:
    about = estimate(values)
    return {
        "rows_per_s": round(about.median),
        "interval": [round(about.low), round(about.high)],
        "gb_per_s": round(about.median * row_bytes / 1e9, 3),
    }


def _fairness(four: Clients, who: str, *, seconds: float) -> dict[str, Any]:
    light = {"who": who, "num_rows": _LIGHT, "seconds": seconds}
    alone = _all(four.turn([light] * (NUM_CLIENTS - 1)))
    heavy = {**light, "num_rows": _HEAVY}
    *beside, heavy_times = four.turn([light] * (NUM_CLIENTS - 1) + [heavy])
    found = {"light_alone_us": _percentiles(alone), "light_beside_heavy_us": _percentiles(_all(beside))}
    ratio = {
        key: round(value / found["light_alone_us"][key], 2) for key, value in found["light_beside_heavy_us"].items()
    }
    return {**found, "ratio": ratio, "heavy_us": _percentiles(heavy_times)}


def _many_nodes(node: dict[str, Any], told: dict[str, Any], spec: RowSpec, *, seconds: float) -> dict[str, Any]:
    with ExitStack() as stack:
        addresses = [
            [stack.enter_context(peer({**node, "kind": "partition", "partition": [index, NUM_NODES]}))]
            for index in range(NUM_NODES)
        ]
        four = stack.enter_context(clients({**told, "addresses": addresses, "num_physical": VOCAB_SIZE}))
        task = {"who": "client", "num_rows": 64, "seconds": seconds}
        times = [four.turn([task] * NUM_CLIENTS) for _ in range(2)][1]
    rows_per_s = sum(64 * len(one) / (sum(one) * 1e-6) for one in times)
    return {
        "nodes": NUM_NODES,
        "clients": NUM_CLIENTS,
        "rows_a_fetch": 64,
        "rows_per_s": round(rows_per_s),
        "gb_per_s": round(rows_per_s * spec.row_bytes / 1e9, 3),
        "fetch_us": _percentiles(_all(times)),
    }


def _all(times: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(times))


def _percentiles(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


def _tell(child: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(message) + "\n")
    child.stdin.flush()


def _answer(child: subprocess.Popen[str]) -> Any:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a client of the bench ended with {child.wait()}")
    return json.loads(line)
