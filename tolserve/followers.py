"""What nodes do so that they hold what a plan says, and nothing else. Called beside the threads that serve."""

from __future__ import annotations

import logging
from typing import Protocol

from tolserve.membership import View
from tolserve.rollout import Edition, Plan

_log = logging.getLogger(__name__)

Addresses = list[list[tuple[str, int]]]


class Holder(Protocol):
    """The part of a memory node that follows."""

    @property
    def versions(self) -> tuple[int, ...]:
        """Numbers of the table versions held."""

    def load(self, version: int | None) -> None:
        """Hold one more."""

    def drop(self, version: int) -> None:
        """Hold one less."""


class Replica(Protocol):
    """The part of `tolserve.attention_node.AttentionReplica` that follows."""

    @property
    def editions(self) -> tuple[Edition, ...]:
        """What it can compute with."""

    def prepare(self, edition: Edition, addresses: Addresses) -> None:
        """Compute with another one too."""

    def drop(self, edition: Edition) -> bool:
        """Give one up; False while it cannot."""


def versions_of(plan: Plan, num_partitions: int) -> list[int]:
    """What a memory node holds by a plan: versions that lie in as many partitions as it is one of."""
    own = [one for one in plan.on_memory_nodes if one.num_partitions == num_partitions]
    return [one.version for one in own if one.version is not None]


def memory_follows(node: Holder, num_partitions: int, plan: Plan) -> str:
    """Load and drop versions; why not, where one cannot be loaded. The others are then kept."""
    wanted = versions_of(plan, num_partitions)
    fault = ""
    for version in wanted:
        try:
            node.load(version)
        except Exception as error:  # noqa: BLE001 - whatever it was, what serves goes on
            _log.exception("version %s cannot be loaded", version)
            fault = f"a memory node cannot load it: {error}"
    for version in node.versions:
        if not fault and version not in wanted:
            node.drop(version)
    return fault


def attention_follows(replica: Replica, view: View) -> str:
    """Make and drop engines; why not, where one cannot be made.

    An edition is made once every partition has a node that holds it, and dropped once the one that serves is there.
    """
    plan = view.plan
    assert plan is not None
    fault = ""
    for edition in plan.to_prepare:
        addresses = view.holders(edition)
        if edition not in replica.editions and all(addresses):
            try:
                replica.prepare(edition, addresses)
            except Exception as error:  # noqa: BLE001 - whatever it was, what serves goes on
                _log.exception("%s cannot be served", edition)
                fault = f"an attention node cannot serve it: {error}"
    for edition in replica.editions:
        if edition not in plan.on_attention_nodes and plan.serving in replica.editions:
            replica.drop(edition)
    return fault
