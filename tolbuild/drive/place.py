"""What stands at the table's URL before a build: this table, another one, or the beginnings of either."""

from __future__ import annotations

from dataclasses import dataclass

from tolbuild.plan import Cell, Plan, ShardCell
from tolbuild.table.errors import TableConflictError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import list_versions, read_manifest
from tolbuild.table.receipts import finished_shards
from tolbuild.table.store import Store
from tolbuild.worker.partials import build_prefix

_DEFAULTS = {"row_scales": "never", "layout": "zarr"}
"""Options that manifests name only where they are something else."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a build finds.

    complete: the latest version, where it is of this very plan. earlier: an older version that is. done: cells that an
    earlier run of this plan finished. next_version: the number to publish.
    """

    complete: Manifest | None = None
    earlier: Manifest | None = None
    done: frozenset[Cell] = frozenset()
    next_version: int = 1


def examine(store: Store, plan: Plan, *, new_version: bool) -> State:
    """Look at the place: its manifests, and the names and receipts of this plan.

    Raises:
        TableConflictError: it holds another table, or the unfinished build of one, and `new_version` is not set.
        TableCorruptError: a manifest there is damaged.
        StoreError: the place cannot be reached.
    """
    versions = list_versions(store)
    latest = read_manifest(store, versions[-1]) if versions else None
    if latest is not None and latest.plan_hash == plan.plan_hash:
        return State(complete=latest, next_version=latest.version)
    if not new_version:
        if latest is not None:
            raise TableConflictError(_difference(store, plan, latest))
        _refuse_other_beginnings(store, plan)
    older = (read_manifest(store, version) for version in reversed(versions[:-1]))
    earlier = next((manifest for manifest in older if manifest.plan_hash == plan.plan_hash), None)
    done = frozenset[Cell]() if earlier else _done(store, plan)
    return State(earlier=earlier, done=done, next_version=versions[-1] + 1 if versions else 1)


def _done(store: Store, plan: Plan) -> frozenset[Cell]:
    """Cells with a durable result: valid receipts, and partial results by name (their readers check the bytes)."""
    shards = {ShardCell(band, shard) for band, shard in finished_shards(store, plan.plan_hash)}
    names = {info.key.rpartition("/")[2] for info in store.list(build_prefix(plan))}
    begun: tuple[Cell, ...] = (*plan.sum_cells(), *plan.fit_cells())
    return frozenset([*shards, *(cell for cell in begun if cell.name in names)])


def _difference(store: Store, plan: Plan, latest: Manifest) -> str:
    if latest.model_fingerprint != plan.fingerprint:
        why = f"is of another checkpoint ({latest.model_fingerprint[:12]}..., not {plan.fingerprint[:12]}...)"
    else:
        there = _DEFAULTS | latest.options
        here = plan.options | {name: value for name, value in _DEFAULTS.items() if name not in plan.options}
        if there.get("codes") != here["codes"]:
            del here["row_scales"]
        differing = [f"{name} {there.get(name)}, not {here[name]}" for name in here if there.get(name) != here[name]]
        why = f"has other options ({'; '.join(differing) or 'made by another version of this program'})"
    return (
        f"{store.url} version {latest.version} {why}; give another --table, or --new-version to publish this one as "
        f"version {latest.version + 1}"
    )


def _refuse_other_beginnings(store: Store, plan: Plan) -> None:
    begun = {info.key.split("/")[1] for prefix in ("_build", "receipts") for info in store.list(prefix)}
    others = sorted(name for name in begun - {plan.plan_hash} if not name.startswith(("tmp", "probe-")))
    if others:
        raise TableConflictError(
            f"{store.url} holds an unfinished build with other options or of another checkpoint (plan {others[0]}, "
            f"this one is {plan.plan_hash}); finish it with its own command, give another --table, or add --new-version"
        )
