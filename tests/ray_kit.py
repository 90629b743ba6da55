"""Rows by Ray actor calls for tests: one small cluster, one actor that answers for as many nodes as are wanted."""

from __future__ import annotations

import atexit
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import Rows, RowSpec
from tolserve.memory.store import RamStore
from tolserve.on_ray.launch import own_cluster
from tolserve.on_ray.rows import NAMESPACE, RayTransport, RowCalls
from tolserve.transport.link import Address, Transport

_NAME = "test-rows"
_cluster = contextlib.ExitStack()
_actors: list[Any] = []
"""An actor ends when nobody refers to it."""


class TestRows(RowCalls):
    """Responders over rows that a test gives."""

    __test__ = False

    def __init__(self) -> None:
        super().__init__([])

    def add(self, spec: RowSpec, partition: Partition, bands: list[Rows], max_ids: int) -> int:
        """The place of a new one."""
        self._responders.append(RowService(RamStore(spec, partition, bands), max_ids=max_ids))
        return len(self._responders) - 1


def actor() -> Any:
    """The actor, and the cluster, made when they are first wanted."""
    if not _actors:
        folder = _cluster.enter_context(tempfile.TemporaryDirectory(prefix="tol-ray-"))
        _cluster.enter_context(own_cluster(Path(folder)))
        _cluster.callback(_actors.clear)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the folder of the tests
        remote: Any = ray.remote(num_cpus=0)(TestRows)
        _actors.append(remote.options(name=_NAME, namespace=NAMESPACE).remote())
    return _actors[0]


@atexit.register
def end() -> None:
    """Take the cluster down where there is one."""
    _cluster.close()


class RayNetwork:
    """Responders in the actor."""

    def __init__(self) -> None:
        self._actor = actor()
        self.transport: Transport = RayTransport()

    def serve(self, responder: Any) -> Address:
        store = responder._store
        place = ray.get(self._actor.add.remote(store.spec, store.partition, store.bands, responder.max_ids))
        return _NAME, place

    def nobody(self) -> Address:
        return "no-such-actor", 0

    def close(self) -> None:
        """The actor goes with the cluster."""
