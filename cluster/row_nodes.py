"""Memory nodes of a served table for the length of a comparison: by Arrow Flight, and by Ray actor calls.

An endpoint's own nodes speak one transport. These hold the same partitions in processes of their own, as those do.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cluster.head import StartError
from tolserve.on_ray.builder import carried
from tolserve.on_ray.rows import RayMemoryNode
from tolserve.row_tiers import Addresses, node_config
from tolserve.serve_config import ServeConfig

_HOST = "127.0.0.1"
_READY = "memory node ready at "
_END_S = 10.0


@contextmanager
def flight_nodes(config: ServeConfig) -> Iterator[Addresses]:
    """Where a node of each partition listens, by Arrow Flight; they end with the context.

    Raises:
        StartError: one ended before it was ready; it has said why on standard error.
    """
    with ExitStack() as stack:
        count = config.num_partitions
        nodes = [stack.enter_context(_flight_node(str(config.table), f"{index}/{count}")) for index in range(count)]
        yield [[_address(node)] for node in nodes]


@contextmanager
def ray_nodes(config: ServeConfig) -> Iterator[Addresses]:
    """The actor of each partition, on the cluster that this process is connected to; they end with the context.

    Raises:
        RayError: one could not be made.
    """
    with ExitStack() as stack:
        addresses = []
        for partition in range(config.num_partitions):
            told = node_config(config, partition=partition, version=None, host=_HOST)
            node = RayMemoryNode(told, environment=carried())
            stack.callback(node.stop)
            addresses.append([node.address])
        yield addresses


@contextmanager
def _flight_node(table: str, partition: str) -> Iterator[subprocess.Popen[str]]:
    options = ("--table", table, "--partition", partition, "--transport", "flight", "--host", _HOST)
    command = [sys.executable, "-m", "tolserve.memory.node", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            yield node
        finally:
            node.terminate()
            try:
                node.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:
                node.kill()


def _address(node: subprocess.Popen[str]) -> tuple[str, int]:
    """What a node prints when its rows are loaded."""
    assert node.stdout is not None
    line = node.stdout.readline()
    if not line.startswith(_READY):
        raise StartError(f"a memory node ended with {node.wait()} before it was ready")
    host, _, port = line.removeprefix(_READY).split()[0].rpartition(":")
    return host, int(port)
