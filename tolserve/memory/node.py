"""A memory node: one partition of one table version behind the row protocol.

    python -m tolserve.memory.node --table URL --partition 0/2 --port 7001

Prints one line, `memory node ready at HOST:PORT ...`, when its rows are loaded and checked, and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from tolbuild.table.errors import ToLError
from tolserve.memory.hedge import ReadConfig
from tolserve.memory.loading import TableStore, load_partition
from tolserve.memory.object_rows import open_object_rows
from tolserve.memory.partition import Partition
from tolserve.memory.service import DEFAULT_MAX_IDS, RowService
from tolserve.memory.store import RowStore
from tolserve.memory.store_node import StoreBackedRows, StoreService
from tolserve.transport.choose import SERVED, make_server
from tolserve.transport.link import Address
from tolserve.transport.security import Security
from tolserve.transport.server import ServerConfig

KEEPS = ("ram", "mapped", "store")
_KEEP_HELP = (
    "ram: load and check all rows at the start; mapped: map the files of a local table; "
    "store: read rows from the table's place when they are asked for (default ram)"
)
_HEDGE_HELP = "try a read again that takes longer than this share of the last 512; 0 never (default 0.95)"
DEFAULT_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What a node holds and how it serves.

    Attributes:
        table: URL of the table.
        partition: the blocks that it holds.
        version: of the table; None is the latest when the node starts.
        keep: "ram" loads and checks every row; "mapped" maps the files of a local table, so that the system's page
            cache holds what is asked for, and checks rows as they are read; "store" reads rows from where the table is
            when they are asked for, behind a cache of `cache_bytes`.
        cache_bytes, reads: of a node that keeps "store": bytes of its cache in RAM, and how it reads.
        max_ids: most ids in one request.
        server: where and how it listens.
        transport: "tcp" or "flight".
        security: whom it lets in.

    Raises:
        ValueError: a value outside its range, or "mapped" for a table that is not of this machine.
    """

    table: str
    partition: Partition = field(default_factory=Partition)
    version: int | None = None
    keep: str = "ram"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    reads: ReadConfig = field(default_factory=ReadConfig)
    max_ids: int = DEFAULT_MAX_IDS
    server: ServerConfig = field(default_factory=ServerConfig)
    transport: str = "tcp"
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        if self.keep not in KEEPS:
            raise ValueError(f"keep is {self.keep!r}; it must be one of {', '.join(KEEPS)}")
        if self.cache_bytes < 0:
            raise ValueError(f"cache_bytes is {self.cache_bytes}; it must not be negative")
        if self.keep == "mapped":
            check_mappable(self.table)
        if not 0 < self.max_ids <= 1 << 20:
            raise ValueError(f"max_ids is {self.max_ids}; it must be in [1, 2^20]")
        if self.transport not in SERVED:
            raise ValueError(f"transport is {self.transport!r}; a node of its own serves {' or '.join(SERVED)}")


def check_mappable(table: str) -> None:
    """Files can be mapped, objects of a store cannot.

    Raises:
        ValueError: the table is not at a path or a file:// URL.
    """
    if urlsplit(table).scheme not in ("", "file"):
        raise ValueError(
            f"--keep mapped maps files of the node's own machine; {table} is not at a path or file://: use --keep ram "
            "or --keep store"
        )


class MemoryNode:
    """Loads when made, serves between `start` and `stop` in a thread of its own.

    Raises:
        ToLError: the table is not there, cannot be read or is corrupt, or a certificate or the token cannot be used.
        OSError: the port is taken.
    """

    def __init__(self, config: NodeConfig) -> None:
        config.security.check()  # before the table is loaded, which takes long
        began = time.perf_counter()
        self._keep = config.keep
        self.store = open_partition(config)
        self.load_s = time.perf_counter() - began
        self._service = make_service(self.store, max_ids=config.max_ids)
        self._server = make_server(config.transport, self._service, config.server, config.security)

    @property
    def address(self) -> Address:
        """Host and port that clients connect to."""
        return self._server.address

    @property
    def identity(self) -> bytes:
        """Of the table version held."""
        return self.store.spec.identity

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
        """What it has done, who is connected, and what its own tiers did; for metrics, any thread may ask."""
        served = self._service.served
        own = {**vars(served), "refused": dict(served.refused), "num_clients": self.num_clients}
        if isinstance(self.store, StoreBackedRows):
            return own | self.store.stats()
        return own | (disk_figures() if self._keep == "mapped" else {})

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
        self.store.close()

    def request_stop(self) -> None:
        """Let `run` return soon; may be called by a signal handler."""
        self._server.request_stop()


def disk_figures() -> dict[str, int]:
    """What this process read from disk, by any way, and how often it waited for a page of a mapped file.

    Bytes are left out where the system does not tell them.
    """
    figures = {"page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt}
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/self/io").read_text().splitlines()
        figures["disk_bytes"] = int(dict(line.split(": ") for line in lines)["read_bytes"])
    return figures


def make_service(store: RowStore | StoreBackedRows, *, max_ids: int) -> RowService:
    """What answers requests from a node's rows."""
    if isinstance(store, StoreBackedRows):
        return StoreService(store, max_ids=max_ids)
    return RowService(store, max_ids=max_ids)


def open_partition(config: NodeConfig) -> RowStore:
    """The rows of a node, ready to be served."""
    from tolbuild.table import open_table

    if config.keep == "store":
        objects = open_object_rows(config.table, version=config.version, config=config.reads)
        return StoreBackedRows(objects, cache_bytes=config.cache_bytes, partition=config.partition)
    if config.keep == "mapped":
        return TableStore(open_table(config.table, version=config.version, access="mmap"), config.partition)
    with contextlib.closing(open_table(config.table, version=config.version)) as table:
        return load_partition(table, config.partition)


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """The options of a node that keeps "store", named as those of `tolserve.run`."""
    usual = ReadConfig()
    option = parser.add_argument_group("with --keep store").add_argument
    option("--node-cache-bytes", type=int, default=DEFAULT_CACHE_BYTES, help="cache in RAM (default 1 GiB)")
    option("--store-reads", type=int, default=usual.num_reads, help="reads on their way at a time")
    option("--store-deadline-s", type=float, default=usual.deadline_s, help="later than this is an error")
    option("--hedge-quantile", type=float, default=usual.hedge_quantile, help=_HEDGE_HELP)
    option("--hedge-ms", type=float, help="try again after this time instead")


def read_config(given: argparse.Namespace) -> ReadConfig:
    """What `add_store_options` was given."""
    return ReadConfig(
        num_reads=given.store_reads,
        deadline_s=given.store_deadline_s,
        hedge_quantile=given.hedge_quantile,
        hedge_after_s=None if given.hedge_ms is None else given.hedge_ms / 1e3,
    )


def parse_arguments(arguments: list[str]) -> NodeConfig:
    """The configuration that a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tolserve.memory.node", description=__doc__.split("\n")[0])
    parser.add_argument("--table", required=True, help="URL of the table")
    parser.add_argument("--partition", default="0/1", help="i/P: blocks b with b mod P = i (default 0/1: all)")
    parser.add_argument("--version", type=int, help="table version (default: the latest)")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--keep", choices=KEEPS, default="ram", help=_KEEP_HELP)
    add_store_options(parser)
    parser.add_argument("--max-ids", type=int, default=DEFAULT_MAX_IDS, help="most ids in one request")
    parser.add_argument("--spin-us", type=int, default=0, help="look for requests so long before sleeping")
    parser.add_argument("--transport", choices=SERVED, default="tcp", help="how rows travel (default tcp)")
    parser.add_argument("--tls-cert", help="PEM certificate chain of this node, for mutual TLS with its clients")
    parser.add_argument("--tls-key", help="PEM private key of that certificate")
    parser.add_argument("--tls-ca", help="PEM certificates of the authorities that sign the clients' certificates")
    parser.add_argument("--token-file", help="a file whose first line is the token that clients must say")
    given = parser.parse_args(arguments)
    try:
        return NodeConfig(
            table=given.table,
            partition=Partition.parse(given.partition),
            version=given.version,
            keep=given.keep,
            cache_bytes=given.node_cache_bytes,
            reads=read_config(given),
            max_ids=given.max_ids,
            server=ServerConfig(host=given.host, port=given.port, spin_us=given.spin_us),
            transport=given.transport,
            security=Security(
                tls_cert=given.tls_cert, tls_key=given.tls_key, tls_ca=given.tls_ca, token_file=given.token_file
            ),
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
