"""The table versions that one memory node holds: loaded beside each other, served by identity, dropped."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import read_manifest
from tolbuild.table.store import open_store
from tolserve.memory.loading import TableStore, load_partition
from tolserve.memory.node_config import NodeConfig
from tolserve.memory.object_rows import open_object_rows
from tolserve.memory.spec import Rows
from tolserve.memory.store import RowStore
from tolserve.memory.store_node import StoreBackedRows
from tolserve.memory.versions import Held, VersionedService


class Holdings:
    """Versions of one table in one partition, behind one service.

    Args:
        versions: what is held at first; None is the one that `config` names.

    Raises:
        ToLError: the table is not there, cannot be read or is corrupt.
    """

    def __init__(self, config: NodeConfig, versions: Sequence[int] | None = None) -> None:
        self._config = config
        self._held: dict[int, Held] = {}
        self.service = VersionedService(max_ids=config.max_ids)
        for version in (config.version,) if versions is None else versions:
            self.load(version)

    @property
    def identity(self) -> bytes:
        """Of the version that has been held for longest; empty while none is."""
        return next((held.manifest.identity for held in self._held.values()), b"")

    @property
    def versions(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(self._held)

    def load(self, version: int | None) -> None:
        """Hold a version (None: the latest) beside the others; bands that are the same objects are held once.

        One thread at a time may load and drop, beside the one that serves.

        Raises:
            ToLError: it is not there, cannot be read or is corrupt.
        """
        manifest = _manifest(self._config.table, version)
        if manifest.version in self._held:
            return
        shared: dict[int, Rows] = {}
        for held in self._held.values():
            shared |= held.shared_with(manifest)
        store = open_partition(replace(self._config, version=manifest.version), shared)
        self._held[manifest.version] = Held(manifest=manifest, store=store)
        self.service.add(store)

    def drop(self, version: int) -> None:
        """Hold a version no more: requests for it are refused, its memory is given back."""
        held = self._held.pop(version, None)
        if held is not None:
            self.service.remove(held.manifest.identity)
            held.store.close()

    def figures(self) -> dict[str, Any]:
        """What was served and what its own tiers did, of all versions together; for metrics, any thread may ask."""
        served = self.service.served
        total: dict[str, Any] = {**vars(served), "refused": dict(served.refused)}
        if self._config.keep == "mapped":
            return total | disk_figures()
        for held in list(self._held.values()):
            if isinstance(held.store, StoreBackedRows):
                total |= {name: total.get(name, 0) + value for name, value in held.store.stats().items()}
        return total

    def close(self) -> None:
        """Give all of them back."""
        for held in self._held.values():
            held.store.close()


def open_partition(config: NodeConfig, shared: Mapping[int, Rows] | None = None) -> RowStore:
    """The rows of a node, ready to be served; of the bands in `shared` they are in memory already."""
    from tolbuild.table import open_table

    if config.keep == "store":
        objects = open_object_rows(config.table, version=config.version, config=config.reads)
        return StoreBackedRows(objects, cache_bytes=config.cache_bytes, partition=config.partition)
    if config.keep == "mapped":
        return TableStore(open_table(config.table, version=config.version, access="mmap"), config.partition)
    with contextlib.closing(open_table(config.table, version=config.version)) as table:
        return load_partition(table, config.partition, shared)


def disk_figures() -> dict[str, int]:
    """What this process read from disk, by any way, and how often it waited for a page of a mapped file.

    Bytes are left out where the system does not tell them.
    """
    figures = {"page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt}
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/self/io").read_text().splitlines()
        figures["disk_bytes"] = int(dict(line.split(": ") for line in lines)["read_bytes"])
    return figures


def _manifest(url: str, version: int | None) -> Manifest:
    store = open_store(url)
    try:
        return read_manifest(store, version)
    finally:
        store.close()
