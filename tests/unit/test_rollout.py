"""Plans go from stage to stage only when everyone has followed, and never to a third edition."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tolserve.membership import Member
from tolserve.rollout import ChangeRefusedError, Edition, Plan, Stage, advance, begin

ONE, TWO, THREE = (Edition(version=version, num_partitions=2) for version in (1, 2, 3))
STEADY = Plan(deployed="d", serving=ONE, newest=1)


def members(plan: Plan, memory: set[Edition], attention: set[Edition], gateway: set[Edition]) -> list[Member]:
    """Two memory nodes, an attention node and a gateway that go by a plan."""
    own = [("memory", 0, memory), ("memory", 1, memory), ("attention", 0, attention), ("gateway", 0, gateway)]
    return [
        Member(
            name=f"{kind}{partition}",
            kind=kind,  # type: ignore[arg-type]
            address=("h", 1),
            partition=partition,
            num_partitions=2 if kind == "memory" else 0,
            plan=plan,
            editions=tuple(sorted(editions, key=str)),
        )
        for kind, partition, editions in own
    ]


def test_a_change_goes_on_when_everyone_has_followed() -> None:
    both, old, new = {ONE, TWO}, {ONE}, {TWO}
    plan = begin(STEADY, TWO)
    for memory, attention, gateway, stage in (
        (old, old, old, "loading"),
        (both, old, old, "loading"),
        (both, both, old, "leaving"),
        (both, both, both, "leaving"),
        (both, both, new, "closing"),
        (both, new, new, "freeing"),
        (new, new, new, "steady"),
    ):
        before = plan
        plan = advance(plan, members(plan, memory, attention, gateway))
        assert plan.stage == stage
        assert plan is before or plan.epoch == before.epoch + 1
    assert (plan.serving, plan.other, plan.newest) == (TWO, None, 2)


def test_whoever_has_not_heard_of_the_plan_is_waited_for() -> None:
    plan = replace(STEADY, serving=TWO, other=ONE, stage="leaving", epoch=5)
    there = members(plan, {ONE, TWO}, {ONE, TWO}, {TWO})
    late = [replace(one, plan=STEADY) if one.kind == "gateway" else one for one in there]
    assert advance(plan, late) is plan
    assert advance(plan, there).stage == "closing"
    assert advance(plan, [one for one in there if one.kind != "gateway"]) is plan


def test_a_partition_without_the_new_version_is_waited_for() -> None:
    plan = begin(STEADY, TWO)
    there = members(plan, {ONE, TWO}, {ONE, TWO}, {ONE})
    assert advance(plan, there).stage == "leaving"
    assert advance(plan, there[1:]) is plan
    assert advance(plan, [replace(there[0], editions=(ONE,)), *there[1:]]) is plan


def test_what_cannot_be_loaded_is_given_up() -> None:
    plan = begin(STEADY, TWO)
    there = members(plan, {ONE}, {ONE}, {ONE})
    given_up = advance(plan, [replace(there[0], fault="bad shard"), *there[1:]])
    assert (given_up.serving, given_up.other, given_up.stage) == (ONE, TWO, "leaving")
    assert given_up.fault == "version 2 on 2 partitions was given up: bad shard"
    there_already = begin(replace(STEADY, fault=given_up.fault), ONE)
    assert (there_already.stage, there_already.fault) == ("steady", "")
    stale = replace(there[0], fault="of before", plan=STEADY)
    assert advance(plan, [stale, *there[1:]]) is plan


@pytest.mark.parametrize("stage", ["leaving", "closing", "freeing"])
def test_on_the_way_only_back_or_further(stage: Stage) -> None:
    plan = replace(STEADY, serving=TWO, other=ONE, stage=stage, epoch=5)
    back = begin(plan, ONE)
    assert (back.serving, back.other, back.stage, back.epoch) == (TWO, ONE, "loading", 6)
    assert begin(plan, TWO) is plan
    with pytest.raises(ChangeRefusedError, match="version 3 on 2 partitions would be the third"):
        begin(plan, THREE)
    assert begin(begin(STEADY, TWO), ONE).stage == "leaving"


def test_plans_of_another_deployment_are_not_compared_by_their_epochs() -> None:
    later = replace(STEADY, epoch=3)
    assert later.newer_than(STEADY) and not STEADY.newer_than(later)
    assert replace(STEADY, deployed="e").newer_than(later)
