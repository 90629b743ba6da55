"""One attention node: engines, rows and the link that gateways connect to. Plain; `on_ray` runs it in a deployment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from tolbuild.checkpoint import open_checkpoint
from tolserve.edition_engine import EditionEngine, added
from tolserve.engine.engine import Engine
from tolserve.engine.load import build_engine
from tolserve.link.server import LinkServer
from tolserve.replica import Rows, engine_config, open_rows
from tolserve.rollout import Edition
from tolserve.row_tiers import Addresses
from tolserve.serve_config import ServeConfig
from tolserve.transport.link import Transport

_log = logging.getLogger(__name__)

_OF_THE_MOMENT = {"num_connected", "num_rows", "num_slots"}
"""Figures of tiers that end with them."""


class AttentionReplica:
    """Loads a model when made and serves it to gateways until `stop`.

    Args:
        host: interface that the link listens on.
        edition: what it computes with at first; `prepare` adds another, `drop` gives one up.
        addresses: of the memory nodes, at least one a partition.
        transport: see `tolserve.replica.open_rows`.

    Raises:
        ValueError: checkpoint, table and settings do not fit each other.
        ToLError: checkpoint or table cannot be read, or memory nodes cannot be reached.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        host: str,
        edition: Edition,
        addresses: Addresses,
        transport: Transport | None = None,
    ) -> None:
        self._config = config
        self._transport = transport
        self._opened: dict[Edition, OpenEdition] = {}
        self._past: dict[str, Any] = {}
        first = open_edition(config, edition, addresses, transport)
        self._engine = EditionEngine(edition, first.engine)
        self._opened[edition] = first
        self._link = LinkServer(
            self._engine,
            host=host,
            hello={"model": config.name, "version": edition.version, "editions": self._named()},
            more_stats=self._more_stats,
            place=self._engine.place,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where gateways connect."""
        return self._link.address

    @property
    def failure(self) -> Exception | None:
        """Why the engine does not run any more."""
        return self._link.failure

    @property
    def editions(self) -> tuple[Edition, ...]:
        """What it can compute with."""
        return tuple(self._opened)

    @property
    def num_open(self) -> int:
        """Generations that run or wait here."""
        return self._link.num_open

    def prepare(self, edition: Edition, addresses: Addresses) -> None:
        """Be able to compute with another edition too, while generations go on. One thread at a time.

        Raises:
            ValueError, ToLError: as when it was made; nothing has changed then.
        """
        base = next(iter(self._opened.values())).engine
        made = open_edition(
            self._config, edition, addresses, self._transport, base=base, alone=self._engine.between_steps()
        )
        self._opened = {**self._opened, edition: made}
        self._engine.put(edition, made.engine)

    def drop(self, edition: Edition) -> bool:
        """Give up an edition, with its cache and connections; False while a generation is of it."""
        if edition not in self._opened or not self._engine.drop(edition):
            return False
        opened = self._opened
        self._opened = {known: one for known, one in opened.items() if known != edition}
        self._past = added(self._past, opened[edition].past_stats())
        opened[edition].close()
        return True

    def update_addresses(self, edition: Edition, addresses: Sequence[Sequence[tuple[str, int]]]) -> None:
        """Use these memory nodes for an edition from now on."""
        if edition in self._opened:
            self._opened[edition].update_addresses(addresses)

    def drain(self) -> None:
        """Tell gateways to send nothing more; what they sent goes on."""
        self._link.drain()

    def _named(self) -> dict[str, str]:
        return {edition.key: one.fingerprint for edition, one in self._opened.items()}

    def _more_stats(self) -> dict[str, Any]:
        total = self._past
        for one in list(self._opened.values()):
            total = added(total, one.stats())
        return {"editions": self._named(), **total}

    def stop(self) -> None:
        """End the link and the engine, and give the rows back."""
        self._link.stop()
        for one in self._opened.values():
            one.close()


@dataclass(kw_only=True)
class OpenEdition:
    """One edition on this node: its rows and the engine over them.

    Attributes:
        fingerprint: what answers name it by; empty where there is no table.
        known: where its memory nodes were last said to be.
    """

    rows: Rows
    engine: Engine
    fingerprint: str
    known: Addresses

    def update_addresses(self, addresses: Sequence[Sequence[tuple[str, int]]]) -> None:
        """Use these memory nodes from now on."""
        new = [[(str(host), int(port)) for host, port in nodes] for nodes in addresses]
        client = None if self.rows.tiers is None else self.rows.tiers.client
        if client is not None and new != self.known:
            _log.info("memory nodes are now at %s", new)
            client.update_addresses(new)
            self.known = new

    def stats(self) -> dict[str, Any]:
        """Of its tiers by name, for metrics; empty where it has none."""
        return {} if self.rows.tiers is None else self.rows.tiers.stats()

    def past_stats(self) -> dict[str, Any]:
        """The same without what is true only while it is open."""
        return {
            tier: {name: value for name, value in figures.items() if name not in _OF_THE_MOMENT}
            for tier, figures in self.stats().items()
        }

    def close(self) -> None:
        """Give the rows back."""
        self.rows.close()


def open_edition(
    config: ServeConfig,
    edition: Edition,
    addresses: Addresses,
    transport: Transport | None = None,
    *,
    base: Engine | None = None,
    alone: AbstractContextManager[Any] | None = None,
) -> OpenEdition:
    """Rows of an edition and an engine over them.

    Args:
        base: an engine of the same configuration; see `build_engine`.
        alone: entered while an engine on a GPU is made.

    Raises:
        ValueError, ToLError: see `AttentionReplica`.
    """
    own = replace(config, memory_nodes=edition.num_partitions) if config.table else config
    shape = open_checkpoint(own.checkpoint).config
    rows = open_rows(own, shape, edition.version, addresses, transport)
    try:
        with alone if alone and own.device != "cpu" else contextlib.nullcontext():
            engine = build_engine(own.checkpoint, rows.source, engine_config(own, shape), table=rows.table, base=base)
    except BaseException:
        rows.close()
        raise
    identity = "" if rows.table is None else f"v{edition.version}-{rows.table.manifest.identity.hex()[:16]}"
    return OpenEdition(rows=rows, engine=engine, fingerprint=identity, known=addresses)
