"""Settings of the tiers that rows pass on their way to an attention node; a part of `ServeConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from tolserve.memory.hedge import ReadConfig
from tolserve.memory.node_config import DEFAULT_CACHE_BYTES

_OF_THE_STORE = ("store_reads", "store_deadline_s", "hedge_quantile", "hedge_ms")


@dataclass(frozen=True, kw_only=True)
class TierSettings:
    """Where rows lie, and what is cached on the way.

    Raises:
        ValueError: a value that no deployment can have, or one that would have no effect.
    """

    keep: Literal["ram", "mapped", "store"] = "ram"
    """Memory nodes load their rows into RAM, map the files of a table on their own machine, or read rows from the
    table's place when they are asked for."""
    rows: Literal["nodes", "store"] = "nodes"
    """Rows come from memory nodes, or attention nodes read them from the table's place themselves."""
    host_cache_bytes: int | None = None
    """Bytes of host memory that an attention node caches rows in, behind the device's cache; left out: none before
    memory nodes, 1 GiB with `--rows store`."""
    node_cache_bytes: int = DEFAULT_CACHE_BYTES
    """Bytes of RAM that a memory node caches rows in with `--keep store`."""
    store_reads: int = 32
    """Reads of the object store on their way at a time, for each node that reads it."""
    store_deadline_s: float = 5.0
    """A fetch for which the object store has sent nothing for so long has failed."""
    hedge_quantile: float = 0.95
    """A read of the object store that takes longer than this share of the last ones is tried again; 0 never."""
    hedge_ms: float | None = None
    """Try it again after this time instead."""

    @property
    def host_bytes(self) -> int:
        """Bytes of an attention node's cache in host memory."""
        if self.host_cache_bytes is None:
            return DEFAULT_CACHE_BYTES if self.rows == "store" else 0
        return self.host_cache_bytes

    @property
    def store_reading(self) -> ReadConfig:
        """How the object store is read."""
        after_s = None if self.hedge_ms is None else self.hedge_ms / 1e3
        return ReadConfig(
            num_reads=self.store_reads,
            deadline_s=self.store_deadline_s,
            hedge_quantile=self.hedge_quantile,
            hedge_after_s=after_s,
        )

    def check_tiers(self, deadline_s: float) -> None:
        """Refuse what contradicts itself, or a request's `deadline_s`, or would have no effect."""
        for name in ("host_cache_bytes", "node_cache_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{option(name)} is {getattr(self, name)}; it must not be negative")
        if self.keep != "store":
            self.refuse(["node_cache_bytes"], "without --keep store")
        if "store" not in (self.keep, self.rows):
            self.refuse(_OF_THE_STORE, "without --keep store or --rows store")
        elif self.store_reading.deadline_s > deadline_s:
            raise ValueError(
                f"--store-deadline-s is {self.store_deadline_s}, beyond --deadline-s {deadline_s}, after which nobody "
                "waits any more"
            )

    def refuse(self, names: Iterable[str], cause: str) -> None:
        """Refuse settings that are not as they come, since they would have no effect."""
        chosen = set(names)
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in chosen and value != one.default:
                raise ValueError(f"{option(one.name)} is {value} {cause}")


def option(name: str) -> str:
    """A setting as the command line has it."""
    return "--" + name.replace("_", "-")
