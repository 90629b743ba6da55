"""A memory node: one partition of one table version behind the row protocol.

    python -m tolserve.memory.node --table URL --partition 0/2 --port 7001

Prints one line, `memory node ready at HOST:PORT ...`, when its rows are loaded and checked, and serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from tolbuild.table.errors import ToLError
from tolserve.memory.hedge import ReadConfig
from tolserve.memory.holdings import Holdings
from tolserve.memory.node_config import DEFAULT_CACHE_BYTES, KEEPS, NodeConfig
from tolserve.memory.partition import Partition
from tolserve.memory.service import DEFAULT_MAX_IDS
from tolserve.transport.choose import SERVED, make_server
from tolserve.transport.link import Address
from tolserve.transport.security import Security
from tolserve.transport.server import ServerConfig

_KEEP_HELP = (
    "ram: load and check all rows at the start; mapped: map the files of a local table; "
    "store: read rows from the table's place when they are asked for (default ram)"
)
_HEDGE_HELP = "try a read again that takes longer than this share of the last 512; 0 never (default 0.95)"


class MemoryNode:
    """Loads when made, serves between `start` and `stop` in a thread of its own.

    Args:
        versions: what it holds at first; None is the one that `config` names.

    Raises:
        ToLError: the table is not there, cannot be read or is corrupt, or a certificate or the token cannot be used.
        OSError: the port is taken.
    """

    def __init__(self, config: NodeConfig, versions: Sequence[int] | None = None) -> None:
        config.security.check()  # before the table is loaded, which takes long
        began = time.perf_counter()
        self._holdings = Holdings(config, versions)
        self.load_s = time.perf_counter() - began
        self._server = make_server(config.transport, self._holdings.service, config.server, config.security)

    @property
    def address(self) -> Address:
        """Host and port that clients connect to."""
        return self._server.address

    @property
    def identity(self) -> bytes:
        """Of the table version that it has held for longest."""
        return self._holdings.identity

    @property
    def versions(self) -> tuple[int, ...]:
        """Numbers of the table versions held."""
        return self._holdings.versions

    def load(self, version: int | None) -> None:
        """See `Holdings.load`."""
        self._holdings.load(version)

    def drop(self, version: int) -> None:
        """See `Holdings.drop`."""
        self._holdings.drop(version)

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
        return {**self._holdings.figures(), "num_clients": self.num_clients}

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
        self._holdings.close()

    def request_stop(self) -> None:
        """Let `run` return soon; may be called by a signal handler."""
        self._server.request_stop()


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
