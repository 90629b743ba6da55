"""The memory nodes that `bench cost` measures Ray actor calls with: actors of a cluster of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from tolserve.bench.cost.node import open_store
from tolserve.bench.cost.nodes import on_core
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.on_ray.launch import own_cluster
from tolserve.on_ray.rows import NAMESPACE, RayTransport, RowCalls
from tolserve.transport.link import Address, Transport


class HeldRows(RowCalls):
    """The rows of a description; see `tolserve.bench.cost.node.open_store`."""

    def __init__(self, told: dict[str, Any], partition: str) -> None:
        super().__init__([RowService(open_store(told, Partition.parse(partition)))])

    def ready(self) -> bool:
        """An actor that answers is loaded."""
        return True


@contextlib.contextmanager
def ray_nodes(told: dict[str, Any], num_nodes: int, core: int | None) -> Iterator[tuple[list[Address], Transport]]:
    """An actor for each partition and what it is reached by; the cluster ends with the context.

    Args:
        core: that Ray's processes run on, and its threads in this one.
    """
    actor: Any = ray.remote(num_cpus=0)(HeldRows)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tol-ray-"))
        with on_core(core):
            stack.enter_context(own_cluster(Path(folder)))
        names = [f"rows-{index}-of-{num_nodes}" for index in range(num_nodes)]
        kept = [
            actor.options(name=name, namespace=NAMESPACE).remote(told, f"{index}/{num_nodes}")
            for index, name in enumerate(names)
        ]
        ray.get([one.ready.remote() for one in kept])
        yield [(name, 0) for name in names], RayTransport()
