"""What stands at the table's URL before a build: this table, another one, or the beginnings of either."""

from __future__ import annotations

from dataclasses import dataclass

from tolbuild.plan import Cell, Plan
from tolbuild.table.errors import TableConflictError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import list_versions, read_manifest
from tolbuild.table.store import Store
from tolbuild.worker.partials import build_prefix


@dataclass(frozen=True, kw_only=True)
class State:
    """What a build finds.

    complete: the latest version, where it is this very plan. same: an older version that is. done: cells that an earlier
    run of this plan finished. next_version: the number to publish.
    """

    complete: Manifest | None = None
    same: Manifest | None = None
    done: frozenset[Cell] = frozenset()
    next_version: int = 1


def examine(store: Store, plan: Plan, *, new_version: bool) -> State:
    """Look at the place, reading manifests and listing names.

    Raises:
        TableConflictError: it holds another table, or the unfinished build of one, and `new_version` is not set.
        StoreError: the place cannot be reached.
    """
