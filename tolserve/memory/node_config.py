"""What one memory node is asked to hold, and where and to whom it gives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tolserve.memory.hedge import ReadConfig
from tolserve.memory.partition import Partition
from tolserve.memory.service import DEFAULT_MAX_IDS
from tolserve.transport.choose import SERVED
from tolserve.transport.security import Security
from tolserve.transport.server import ServerConfig

KEEPS = ("ram", "mapped", "store")
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
