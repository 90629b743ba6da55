"""A memory node: one partition of one table version behind the row protocol.

    python -m tolserve.memory.node --table URL --partition 0/2 --port 7001

Prints one line, `memory node ready at HOST:PORT ...`, when its rows are loaded and checked, and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from tolbuild.table.errors import ToLError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import read_manifest
from tolbuild.table.store import open_store
from tolserve.memory.loading import TableStore, load_partition
from tolserve.memory.partition import Partition
from tolserve.memory.service import DEFAULT_MAX_IDS
from tolserve.memory.spec import Rows
from tolserve.memory.store import RowStore
from tolserve.memory.versions import Held, VersionedService
from tolserve.transport.link import Address
from tolserve.transport.server import RowServer, ServerConfig

_KEEP_HELP = "ram: load and check all rows at the start; mapped: map the files of a local table (default ram)"


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What a node holds and how it serves.

    Attributes:
        table: URL of the table.
        partition: the blocks that it holds.
        version: of the table; None is the latest when the node starts.
        keep: "ram" loads and checks every row; "mapped" maps the files of a local table, so that the system's page
            cache holds what is asked for, and checks rows as they are read.
        max_ids: most ids in one request.
        server: where and how it listens.

    Raises:
        ValueError: a value outside its range, or "mapped" for a table that is not of this machine.
    """

    table: str
    partition: Partition = field(default_factory=Partition)
    version: int | None = None
    keep: str = "ram"
    max_ids: int = DEFAULT_MAX_IDS
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        if self.keep not in ("ram", "mapped"):
            raise ValueError(f"keep is {self.keep!r}; it must be 'ram' or 'mapped'")
        if self.keep == "mapped":
            check_mappable(self.table)
        if not 0 < self.max_ids <= 1 << 20:
            raise ValueError(f"max_ids is {self.max_ids}; it must be in [1, 2^20]")


def check_mappable(table: str) -> None:
    """Files can be mapped, objects of a store cannot.

    Raises:
        ValueError: the table is not at a path or a file:// URL.
    """
    if urlsplit(table).scheme not in ("", "file"):
        raise ValueError(
            f"--keep mapped maps files of the node's own machine; {table} is not at a path or file://: use --keep ram"
        )


class MemoryNode:
    """Loads when made, serves between `start` and `stop` in a thread of its own.

    Args:
        versions: what it holds at first; None is the one that `config` names.

    Raises:
        ToLError: the table is not there, cannot be read or is corrupt.
        OSError: the port is taken.
    """

    def __init__(self, config: NodeConfig, versions: Sequence[int] | None = None) -> None:
        began = time.perf_counter()
        self._config = config
        self._held: dict[int, Held] = {}
        self._service = VersionedService(max_ids=config.max_ids)
        for version in (config.version,) if versions is None else versions:
            self.load(version)
        self.load_s = time.perf_counter() - began
        self._server = RowServer(self._service, config.server)

    @property
    def address(self) -> Address:
        """Host and port that clients connect to."""
        return self._server.address

    @property
    def identity(self) -> bytes:
        """Of the table version that it has held for longest."""
        return next(iter(self._held.values())).manifest.identity

    @property
    def versions(self) -> tuple[int, ...]:
        """Numbers of the table versions held."""
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
        self._service.add(store)

    def drop(self, version: int) -> None:
        """Hold a version no more: requests for it are refused, its memory is given back."""
        held = self._held.pop(version, None)
        if held is not None:
            self._service.remove(held.manifest.identity)
            held.store.close()

    @property
    def loaded(self) -> bool:
        """A node that exists is loaded."""
        return True

    @property
    def alive(self) -> bool:
        """Whether the thread that `start` made serves."""
        return self._server.alive

    @property
    def num_clients(self) -> int:
        """Connections open now."""
        return self._server.num_clients

    def figures(self) -> dict[str, Any]:
        """What it has done and who is connected, for metrics; any thread may ask."""
        served = self._service.served
        return {**vars(served), "refused": dict(served.refused), "num_clients": self.num_clients}

    def start(self) -> MemoryNode:
        """Serve in a thread."""
        self._server.start()
        return self

    def run(self) -> None:
        """Serve in the caller's thread until `stop`."""
        self._server.run()

    def stop(self) -> None:
        """End all connections; stopping twice changes nothing."""
        self._server.stop()
        for held in self._held.values():
            held.store.close()

    def request_stop(self) -> None:
        """Let `run` return soon; may be called by a signal handler."""
        self._server.request_stop()


def open_partition(config: NodeConfig, shared: Mapping[int, Rows] | None = None) -> RowStore:
    """The rows of a node, ready to be served; of the bands in `shared` they are in memory already."""
    from tolbuild.table import open_table

    if config.keep == "mapped":
        return TableStore(open_table(config.table, version=config.version, access="mmap"), config.partition)
    with contextlib.closing(open_table(config.table, version=config.version)) as table:
        return load_partition(table, config.partition, shared)


def _manifest(url: str, version: int | None) -> Manifest:
    store = open_store(url)
    try:
        return read_manifest(store, version)
    finally:
        store.close()


def parse_arguments(arguments: list[str]) -> NodeConfig:
    """The configuration that a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tolserve.memory.node", description=__doc__.split("\n")[0])
    parser.add_argument("--table", required=True, help="URL of the table")
    parser.add_argument("--partition", default="0/1", help="i/P: blocks b with b mod P = i (default 0/1: all)")
    parser.add_argument("--version", type=int, help="table version (default: the latest)")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--keep", choices=("ram", "mapped"), default="ram", help=_KEEP_HELP)
    parser.add_argument("--max-ids", type=int, default=DEFAULT_MAX_IDS, help="most ids in one request")
    parser.add_argument("--spin-us", type=int, default=0, help="look for requests so long before sleeping")
    given = parser.parse_args(arguments)
    try:
        return NodeConfig(
            table=given.table,
            partition=Partition.parse(given.partition),
            version=given.version,
            keep=given.keep,
            max_ids=given.max_ids,
            server=ServerConfig(host=given.host, port=given.port, spin_us=given.spin_us),
        )
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str]) -> int:
    """Load, print the address, serve; 1 where the table or the port cannot be had."""
    config = parse_arguments(arguments)
    try:
        node = MemoryNode(config)
    except (ToLError, OSError) as error:
        print(f"memory node {config.partition.index}/{config.partition.count}: {error}", file=sys.stderr)
        return 1

    def stop(signum: int, frame: FrameType | None) -> None:
        node.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    host, port = node.address
    print(
        f"memory node ready at {host}:{port} partition {config.partition.index}/{config.partition.count} "
        f"identity {node.identity.hex()} loaded in {node.load_s:.2f} s",
        flush=True,
    )
    node.run()
    node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
