"""Processes that benches talk to, each on a core of its own where it is told so: a memory node over random rows, and a
bare socket that sends bytes from memory.

`python -m tolserve.bench.peers` runs the one that its standard input describes and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tolserve.bench.random_rows import random_store
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import PartitionedClient
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore, RowStore
from tolserve.transport.choose import make_server
from tolserve.transport.link import Address
from tolserve.transport.security import Security
from tolserve.transport.server import ServerConfig

REQUEST = struct.Struct("<Q")
"""What the bare socket is sent: how many bytes it shall send."""
_CONNECT_S = 60.0
_BARE_BYTES = 16 << 20
_END_S = 30.0


def own_cores() -> tuple[int | None, int | None]:
    """A core for this process and one for its peer; None where there is one core only."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)


@contextmanager
def peer(description: dict[str, Any]) -> Iterator[Address]:
    """The address of a peer in a process of its own, which ends with the context."""
    command = [sys.executable, "-m", "tolserve.bench.peers"]
    with started(command, description, _peer_fault) as address:
        yield address


def _peer_fault(code: int) -> RuntimeError:
    return RuntimeError(f"the peer ended with {code} before it was ready")


@contextmanager
def started(command: list[str], description: dict[str, Any], fault: Callable[[int], Exception]) -> Iterator[Address]:
    """The address that a process prints once it serves what a line of JSON describes; it ends with the context.

    Args:
        fault: raised where the process ends before it is ready, made of its exit status.
    """
    child = subprocess.Popen(  # Ctrl-C is for this process, which ends the child by its standard input
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(description) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise fault(child.wait())
        host, port = json.loads(line)
        yield host, port
    finally:
        child.stdin.close()
        try:
            child.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


@contextmanager
def remote_rows(spec: RowSpec, num_staging: int) -> Iterator[CachedSource]:
    """A source, without a cache, of the rows of `random_store(spec)` in another process on this machine."""
    first = spec.bands[0]
    shape = {
        "num_layers": sum(len(band.layers) for band in spec.bands),
        "layers_per_band": len(first.layers),
        "rank": first.ranks[0],
        "dtype": first.dtype,
        "vocab_size": spec.vocab_size,
    }
    with peer({"kind": "random", "shape": shape, "core": None, "spin_us": ServerConfig.spin_us}) as address:
        client = PartitionedClient(spec, [[address]])
        client.wait_connected(_CONNECT_S)
        source = CachedSource(client, num_staging=num_staging)
        try:
            yield source
        finally:
            source.close()


def node_description(
    *,
    rank: int,
    dtype: str,
    vocab_size: int,
    core: int | None,
    spin_us: int,
    max_bytes: int,
    layers_per_band: int = 4,
) -> dict[str, Any]:
    """A memory node of 24 layers in equal bands, its rows in at most `max_bytes` of memory (see `CyclicStore`)."""
    shape = {
        "num_layers": 24,
        "layers_per_band": layers_per_band,
        "rank": rank,
        "dtype": dtype,
        "vocab_size": vocab_size,
    }
    return {"kind": "node", "shape": shape, "core": core, "spin_us": spin_us, "max_bytes": max_bytes}


def fill(sock: socket.socket, buffer: memoryview) -> None:
    """Fill `buffer`; a non-blocking socket is looked at without sleeping.

    Raises:
        ConnectionError: the peer is gone.
    """
    filled = 0
    while filled < len(buffer):
        with contextlib.suppress(BlockingIOError):
            count = sock.recv_into(buffer[filled:])
            if count == 0:
                raise ConnectionError("the peer is gone")
            filled += count


def serve_bytes(listener: socket.socket, spin_s: float, num_bytes: int = _BARE_BYTES) -> None:
    """The bare socket: reads a length, sends so many bytes from memory, until a client is gone.

    For `spin_s` after a request it looks for the next without sleeping, then it waits. Every client has a thread. Of
    more than the usual memory, `num_bytes`, each answer is from the place behind the one before.
    """
    data = memoryview(np.random.default_rng(0).bytes(num_bytes))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve_one, args=(connection, data, spin_s), daemon=True).start()


def _serve_one(connection: socket.socket, data: memoryview, spin_s: float) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    until, start = 0.0, 0
    while True:
        connection.setblocking(time.monotonic() >= until)
        try:
            request = connection.recv(REQUEST.size)
        except BlockingIOError:
            continue
        if not request:
            return
        connection.setblocking(True)
        (length,) = REQUEST.unpack(request)
        if start + length > len(data) or len(data) == _BARE_BYTES:
            start = 0
        connection.sendall(data[start : start + length])
        start += length
        until = time.monotonic() + spin_s


def main() -> None:
    """Serve until standard input ends."""
    told = json.loads(sys.stdin.readline())
    if told["core"] is not None:
        os.sched_setaffinity(0, {told["core"]})
    if told["kind"] == "socket":
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(
            target=serve_bytes, args=(listener, told["spin_us"] * 1e-6, told.get("max_bytes", _BARE_BYTES)), daemon=True
        ).start()
        print(json.dumps(listener.getsockname()), flush=True)
        sys.stdin.read()
        return
    spec = RowSpec.uniform(**told["shape"])
    store: RowStore
    if told["kind"] == "node":
        store = CyclicStore(spec, num_rows=told["max_bytes"] // spec.row_bytes, seed=0)
    elif told["kind"] == "partition":
        index, count = told["partition"]
        store = random_store(spec, Partition(index=index, count=count))
    else:
        store = random_store(spec)
    serve_rows(store, told)


def serve_rows(store: RowStore, told: dict[str, Any]) -> None:
    """Serve a store's rows until standard input ends; the address is printed when it is ready."""
    config = ServerConfig(host=told.get("host", "127.0.0.1"), spin_us=told["spin_us"])
    server = make_server(told.get("transport", "tcp"), RowService(store), config, Security())
    server.start()
    print(json.dumps(server.address), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
