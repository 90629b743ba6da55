"""Who is there: nodes announce themselves again and again, and are forgotten when they stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tolserve.rollout import Edition, Plan

Kind = Literal["memory", "attention", "gateway"]

HEARTBEAT_S = 1.0
"""From one announcement to the next."""

EXPIRY_S = 10.0
"""A node that was silent for so long is forgotten. Clients notice sooner by themselves; this only tidies up."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One running node.

    Attributes:
        name: unique; a restarted node has another.
        address: (host, port) that it listens on.
        partition: of a memory node, else 0.
        num_partitions: of a memory node's layout, else 0; 0 fits any.
        pid: its process, on its host.
        figures: of a memory node what it has done (`MemoryNode.figures`), as of this announcement.
        plan: that it goes by; None before it has one.
        editions: what it holds, can compute with, or uses; see `tolserve.rollout.Follower`.
        fault: why it cannot follow the plan; empty where it can.
    """

    name: str
    kind: Kind
    address: tuple[str, int]
    partition: int = 0
    num_partitions: int = 0
    pid: int = 0
    figures: dict[str, Any] = field(default_factory=dict, compare=False)
    plan: Plan | None = None
    editions: tuple[Edition, ...] = ()
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a directory knows.

    Attributes:
        complete: whether it has existed for so long that everyone has announced themselves. Until then nodes that
            are missing here may well be there.
        plan: what to hold and use.
    """

    members: tuple[Member, ...]
    complete: bool
    plan: Plan | None = None

    def attention(self) -> dict[str, tuple[str, int]]:
        """Addresses of the attention nodes by name."""
        return {member.name: member.address for member in self.members if member.kind == "attention"}

    def memory_members(self) -> list[Member]:
        """The memory nodes in the order of their names."""
        return sorted((m for m in self.members if m.kind == "memory"), key=lambda member: member.name)

    def memory(self, num_partitions: int) -> list[list[tuple[str, int]]]:
        """Addresses of the memory nodes of so many partitions, by partition, in the order of their names."""
        nodes = [node for node in self.memory_members() if node.num_partitions in (0, num_partitions)]
        return [[node.address for node in nodes if node.partition == index] for index in range(num_partitions)]

    def holders(self, edition: Edition) -> list[list[tuple[str, int]]]:
        """Addresses of the memory nodes that hold an edition, by partition."""
        having = tuple(member for member in self.members if edition in member.editions)
        return View(members=having, complete=self.complete).memory(edition.num_partitions)


class Directory:
    """The members by name; its state is soft, so a new one is as good after a few heartbeats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seen: dict[str, tuple[float, Member]] = {}

    def announce(self, member: Member) -> View:
        """The member is there; what else is."""
        self._seen[member.name] = (self._clock(), member)
        return self.view()

    def leave(self, name: str) -> None:
        """The member ends."""
        self._seen.pop(name, None)

    def view(self) -> View:
        """Everyone who announced themselves lately."""
        now = self._clock()
        self._seen = {name: entry for name, entry in self._seen.items() if now - entry[0] < EXPIRY_S}
        members = tuple(member for _, member in self._seen.values())
        return View(members=members, complete=now - self._began > 2 * HEARTBEAT_S)
