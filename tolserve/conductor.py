"""Who is there and what they are to serve, in one place: a directory that also leads from one edition to another.

Its state is soft: the nodes tell it the plan that they go by, so that a new one goes on where the old one was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tolbuild.table import open_store
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import list_versions, read_manifest
from tolserve.membership import Directory, Member, View
from tolserve.rollout import ChangeRefusedError, Edition, Plan, advance, begin


@dataclass(frozen=True, kw_only=True)
class TableRules:
    """What a version of a table must fit to be served in the place of another.

    Attributes:
        url: of the table.
        pinned_bands: that attention nodes keep; the version needs as many.
    """

    url: str
    pinned_bands: int = 0

    def versions(self) -> list[int]:
        """Numbers of the published versions, ascending."""
        store = open_store(self.url)
        try:
            return list_versions(store)
        finally:
            store.close()

    def check(self, serving: int, version: int | None) -> int:
        """The number of a version (None: the latest) that may follow the one that serves.

        Raises:
            ChangeRefusedError: it is of another model, or the deployment's settings do not fit it.
            ToLError: it is not there, or the table cannot be read.
        """
        store = open_store(self.url)
        try:
            new, old = read_manifest(store, version), read_manifest(store, serving)
        finally:
            store.close()
        self._compare(new, old)
        return new.version

    def _compare(self, new: Manifest, old: Manifest) -> None:
        if new.model_fingerprint != old.model_fingerprint:
            raise ChangeRefusedError(
                f"version {new.version} of {self.url} was built from the checkpoint {new.model_fingerprint[:16]}; the "
                f"endpoint serves {old.model_fingerprint[:16]} (version {old.version}): deploy one for that checkpoint"
            )
        if self.pinned_bands > len(new.bands):
            raise ChangeRefusedError(
                f"version {new.version} has {len(new.bands)} bands; the endpoint pins {self.pinned_bands} "
                "(--pinned-bands)"
            )


class Conductor:
    """A `Directory` with a plan. One thread uses it.

    Args:
        plan: that holds until somebody announces a newer one of the same deployment.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self._directory = Directory(clock)

    @property
    def complete(self) -> bool:
        """Whether it has been there for so long that everyone has told of themselves."""
        return self._directory.view().complete

    def announce(self, member: Member) -> View:
        """The member is there and goes by a plan; what else is, and what is to be."""
        known = member.plan
        if known is not None and known.deployed == self.plan.deployed and known.newer_than(self.plan):
            self.plan = known
        self._directory.announce(member)
        return self.view()

    def leave(self, name: str) -> None:
        """See `Directory`."""
        self._directory.leave(name)

    def view(self) -> View:
        """Everyone who announced themselves lately, and the plan that they are to go by from now on."""
        view = self._directory.view()
        if view.complete:
            self.plan = advance(self.plan, view.members)
        return replace(view, plan=self.plan)

    def change(self, **to: Any) -> Plan:
        """Begin to lead to another edition: the one that serves with the fields `to` changed.

        Raises:
            ChangeRefusedError: there are two editions already, or it is not known yet who is there.
        """
        if not self.complete:
            raise ChangeRefusedError("the directory has just started and does not know every node; try again in 3 s")
        self.plan = begin(self.plan, replace(self.plan.serving, **to))
        return self.plan

    def state(self) -> dict[str, Any]:
        """Plan and members as JSON values."""
        view = self.view()
        plan = self.plan
        return {
            "serving": plan_edition(plan.serving),
            "other": None if plan.other is None else plan_edition(plan.other),
            "stage": plan.stage,
            "fault": plan.fault,
            "nodes": [_node(member) for member in sorted(view.members, key=lambda one: one.name)],
        }


def plan_edition(edition: Edition) -> dict[str, int | None]:
    """An edition as JSON values."""
    return {"version": edition.version, "memory_nodes": edition.num_partitions}


def _node(member: Member) -> dict[str, Any]:
    host, port = member.address
    return {
        "name": member.name,
        "kind": member.kind,
        "address": f"{host}:{port}",
        "partition": member.partition,
        "memory_nodes": member.num_partitions,
        "versions": sorted({edition.version for edition in member.editions if edition.version is not None}),
        "fault": member.fault,
        "figures": member.figures,
    }
