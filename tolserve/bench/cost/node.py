"""`python -m tolserve.bench.cost.node`: a memory node or a bare socket for the bench, told what to be by one JSON line
on standard input; it ends with standard input, so that none outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from typing import Any

from tolserve.bench.peers import serve_bytes
from tolserve.bench.random_rows import random_store
from tolserve.memory.loading import load_partition
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore, RowStore
from tolserve.transport.server import RowServer, ServerConfig


def open_store(told: dict[str, Any], partition: Partition) -> RowStore:
    """The rows of a description: "cyclic" (random bytes), "values" (small random numbers) or a "table" by its URL."""
    if told["kind"] == "table":
        from tolbuild.table import open_table

        with contextlib.closing(open_table(told["url"])) as table:
            return load_partition(table, partition)
    spec = RowSpec.uniform(**told["shape"])
    if told["kind"] == "cyclic":
        cyclic = CyclicStore(spec, num_rows=told["max_bytes"] // spec.row_bytes, seed=0)
        cyclic.partition = partition
        return cyclic
    assert told["kind"] == "values" and partition.count == 1, told
    return random_store(spec)


def serve_socket(host: str) -> socket.socket:
    """A listener whose every connection is answered by `serve_bytes`."""
    listener = socket.create_server((host, 0))

    def serve() -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                serve_bytes(listener, 0.0)

    threading.Thread(target=serve, daemon=True).start()
    return listener


def main() -> None:
    """Serve until standard input ends; the address is printed when it is ready."""
    told = json.loads(sys.stdin.readline())
    if told["core"] is not None:
        os.sched_setaffinity(0, {told["core"]})
    if told["kind"] == "socket":
        listener = serve_socket(told["host"])
        print(json.dumps(listener.getsockname()), flush=True)
        sys.stdin.read()
        listener.close()
        return
    store = open_store(told, Partition.parse(told["partition"]))
    server = RowServer(RowService(store), ServerConfig(host=told["host"], spin_us=told["spin_us"]))
    server.start()
    print(json.dumps(server.address), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
