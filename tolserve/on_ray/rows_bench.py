"""The memory node that `bench rows` measures Ray actor calls with: made-up rows in an actor of a cluster of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from tolserve.memory.service import RowService
from tolserve.memory.spec import RowSpec
from tolserve.memory.store import CyclicStore
from tolserve.on_ray.launch import own_cluster
from tolserve.on_ray.rows import NAMESPACE, RayTransport, RowCalls
from tolserve.transport.link import Address, Transport

_NAME = "rows-of-a-bench"


class CyclicRows(RowCalls):
    """Rows that repeat within a smaller memory; see `CyclicStore`."""

    def __init__(self, shape: dict[str, Any], max_bytes: int) -> None:
        spec = RowSpec.uniform(**shape)
        store = CyclicStore(spec, num_rows=max_bytes // spec.row_bytes, seed=0)
        super().__init__([RowService(store)])


@contextlib.contextmanager
def ray_peer(shape: dict[str, Any], max_bytes: int) -> Iterator[tuple[Address, Transport]]:
    """Where such a node is and what it is reached by; the cluster ends with the context."""
    with tempfile.TemporaryDirectory(prefix="tol-ray-") as folder, own_cluster(Path(folder)):
        actor: Any = ray.remote(num_cpus=0)(CyclicRows)
        kept = actor.options(name=_NAME, namespace=NAMESPACE).remote(shape, max_bytes)
        try:
            yield (_NAME, 0), RayTransport()
        finally:
            ray.kill(kept)
