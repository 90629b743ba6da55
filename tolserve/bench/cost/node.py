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

from tolserve.bench.peers import serve_bytes, serve_rows
from tolserve.bench.random_rows import random_store
from tolserve.memory.loading import load_partition
from tolserve.memory.partition import Partition
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore, RowStore


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


def serve_moto(host: str, bucket: str) -> Any:
    """moto's S3 with a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=bucket)
    return server


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
    if told["kind"] == "moto":
        moto = serve_moto(told["host"], told["bucket"])
        print(json.dumps(moto.get_host_and_port()), flush=True)
        sys.stdin.read()
        moto.stop()
        return
    serve_rows(open_store(told, Partition.parse(told["partition"])), told)


if __name__ == "__main__":
    main()
