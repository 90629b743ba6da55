"""How an endpoint goes from one table version, or one layout of its memory nodes, to another while it serves.

A change is a plan that a directory tells every node, and that moves on when the nodes say that they have followed:

    loading   nodes load the new edition beside the one that serves
    leaving   gateways give new requests to the new one; what began on the old one ends there
    closing   attention nodes give up the old one's engine and cache
    freeing   memory nodes give up its rows
    steady    one edition is left

Nothing is ever asked of two editions in one answer, and there are never more than two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from tolbuild.table.errors import ToLError

Stage = Literal["steady", "loading", "leaving", "closing", "freeing"]


class ChangeRefusedError(ToLError):
    """The endpoint cannot go to that version or layout, or not now; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What a generation is computed with.

    Attributes:
        version: of the table; None where there is none.
        num_partitions: that it lies in on memory nodes; 0 where attention nodes hold all of it.
    """

    version: int | None = None
    num_partitions: int = 0

    @property
    def key(self) -> str:
        """Its name between gateways and attention nodes."""
        return f"{self.version or 0}/{self.num_partitions}"

    def __str__(self) -> str:
        plural = "" if self.num_partitions == 1 else "s"
        where = f" on {self.num_partitions} partition{plural}" if self.num_partitions else ""
        return f"version {self.version}{where}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every node is to hold and use.

    Attributes:
        deployed: names the deployment that the plan is of; plans of others are not comparable.
        epoch: counts its changes; of two plans the one with the higher epoch holds.
        serving: what new requests get.
        other: the edition that is being loaded or left; None when steady.
        newest: the highest table version that was ever considered, for `--follow-versions`.
        fault: why the last change was given up; empty where it was not.
    """

    deployed: str
    epoch: int = 0
    serving: Edition
    other: Edition | None = None
    stage: Stage = "steady"
    newest: int = 0
    fault: str = ""

    def __post_init__(self) -> None:
        assert (self.other is None) == (self.stage == "steady"), f"{self.stage} with {self.other}"

    def newer_than(self, known: Plan | None) -> bool:
        """Whether a node that knows of `known` goes by this plan from now on."""
        return known is None or self.deployed != known.deployed or self.epoch > known.epoch

    @property
    def on_memory_nodes(self) -> tuple[Edition, ...]:
        """What memory nodes hold, of their own layout."""
        return self._while("loading", "leaving", "closing")

    @property
    def on_attention_nodes(self) -> tuple[Edition, ...]:
        """What attention nodes may keep."""
        return self._while("loading", "leaving")

    @property
    def to_prepare(self) -> tuple[Edition, ...]:
        """What attention nodes have to have, what serves first."""
        return self._while("loading")

    def _while(self, *stages: Stage) -> tuple[Edition, ...]:
        return (self.serving, self.other) if self.other is not None and self.stage in stages else (self.serving,)


class Follower(Protocol):
    """What a plan has to know of a node; see `tolserve.membership.Member`."""

    @property
    def kind(self) -> str:
        """memory, attention or gateway."""

    @property
    def partition(self) -> int:
        """Of a memory node."""

    @property
    def num_partitions(self) -> int:
        """Of a memory node's layout."""

    @property
    def plan(self) -> Plan | None:
        """The plan that it goes by."""

    @property
    def editions(self) -> tuple[Edition, ...]:
        """What a memory node holds, an attention node can compute with, a gateway has open or gives new requests."""

    @property
    def fault(self) -> str:
        """Why it cannot follow that plan; empty where it can."""


def begin(plan: Plan, target: Edition) -> Plan:
    """The plan that leads to `target`; `plan` itself where it does already.

    Raises:
        ChangeRefusedError: a third edition would be needed.
    """
    newest = max(plan.newest, target.version or 0)
    if plan.other is None:
        if target == plan.serving:
            return replace(plan, newest=newest, fault="")
        return _next(plan, other=target, stage="loading", newest=newest, fault="")
    if target not in (plan.serving, plan.other):
        raise ChangeRefusedError(
            f"{plan.serving} serves and {plan.other} is {plan.stage}; {target} would be the third: nodes hold two at "
            "most. Wait until that change has ended"
        )
    if target == plan.serving:
        return _next(plan, stage="leaving", newest=newest) if plan.stage == "loading" else plan
    return plan if plan.stage == "loading" else _next(plan, stage="loading", newest=newest, fault="")


def advance(plan: Plan, members: Sequence[Follower]) -> Plan:
    """The next plan if every one of `members`, who are all that there are, has followed this one; else itself."""
    other = plan.other
    if other is None:
        return plan
    attention = [one for one in members if one.kind == "attention"]
    gateways = [one for one in members if one.kind == "gateway"]
    if not attention or not gateways:
        return plan
    if plan.stage == "loading":
        faults = [one.fault for one in members if one.fault and one.plan is not None and one.plan.epoch == plan.epoch]
        if faults:
            return _next(plan, stage="leaving", fault=f"{other} was given up: {faults[0]}")
        if loaded(other, members) and all(other in one.editions for one in attention):
            return _next(plan, serving=other, other=plan.serving, stage="leaving")
    elif plan.stage == "leaving":
        if all(_follows(one, plan) and other not in one.editions for one in gateways):
            return _next(plan, stage="closing")
    elif plan.stage == "closing":
        if all(_follows(one, plan) and other not in one.editions for one in attention):
            return _next(plan, stage="freeing")
    elif all(_follows(one, plan) and other not in one.editions for one in members if one.kind == "memory"):
        return _next(plan, other=None, stage="steady")
    return plan


def loaded(edition: Edition, members: Iterable[Follower]) -> bool:
    """Whether every memory node of the edition's layout holds it, and every partition has one."""
    nodes = [one for one in members if one.kind == "memory" and one.num_partitions == edition.num_partitions]
    covered = {one.partition for one in nodes if edition in one.editions}
    return all(edition in one.editions for one in nodes) and len(covered) == edition.num_partitions


def _follows(member: Follower, plan: Plan) -> bool:
    return member.plan is not None and member.plan.deployed == plan.deployed and member.plan.epoch >= plan.epoch


def _next(plan: Plan, **changes: object) -> Plan:
    return replace(plan, epoch=plan.epoch + 1, **changes)  # type: ignore[arg-type]
