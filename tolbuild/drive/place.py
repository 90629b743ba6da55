"""What stands at the table's URL before a build: this table, another one, or the beginnings of either."""

from __future__ import annotations

from dataclasses import dataclass

from tolbuild.drive.owner import owners
from tolbuild.grid import Cell, ShardCell
from tolbuild.plan import Plan
from tolbuild.table.errors import FormatError, TableConflictError, TableCorruptError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import list_versions, read_manifest
from tolbuild.table.receipts import finished_shards
from tolbuild.table.store import Store
from tolbuild.worker.partials import build_prefix

_USUAL = {"row_scales": "never", "layout": "zarr", "weights": "uniform", "layer_weights": "none"}
"""Options that manifests name only where they are something else."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What a build finds.

    complete: the latest version, where it is of this very plan. earlier: an older version that is. done: cells that an
    earlier run of this plan finished. next_version: the number to publish. notes: what a person should know.
    """

    complete: Manifest | None = None
    earlier: Manifest | None = None
    done: frozenset[Cell] = frozenset()
    next_version: int = 1
    notes: tuple[str, ...] = ()


def find_complete(store: Store, plan: Plan) -> Manifest | None:
    """The latest version, where it is of this very plan.

    Raises:
        TableCorruptError: its manifest is damaged.
        StoreError: the place cannot be reached.
    """
    versions = list_versions(store)
    latest = read_manifest(store, versions[-1]) if versions else None
    return latest if latest is not None and latest.plan_hash == plan.plan_hash else None


def examine(store: Store, plan: Plan, *, new_version: bool) -> State:
    """Look at the place: its manifests, and the names and receipts of this plan.

    Raises:
        TableConflictError: it holds another table, or the unfinished build of one, and `new_version` is not set.
        TableCorruptError: the latest manifest is damaged. (An older one that is only gets a note.)
        StoreError: the place cannot be reached.
    """
    versions = list_versions(store)
    latest = read_manifest(store, versions[-1]) if versions else None
    if latest is not None and latest.plan_hash == plan.plan_hash:
        return State(complete=latest, next_version=latest.version)
    if not new_version:
        if latest is not None:
            raise TableConflictError(
                f"{store.url} version {latest.version} {_difference(plan, latest)}; give another --table, or "
                f"--new-version to publish this one as version {latest.version + 1}"
            )
        _refuse_other_beginnings(store, plan)
    notes: list[str] = []
    older = (_readable(store, version, notes) for version in reversed(versions[:-1]))
    earlier = next((found for found in older if found is not None and found.plan_hash == plan.plan_hash), None)
    done = frozenset[Cell]() if earlier else _done(store, plan)
    return State(earlier=earlier, done=done, next_version=versions[-1] + 1 if versions else 1, notes=tuple(notes))


def check_objects(store: Store, manifest: Manifest) -> None:
    """Make sure, by one listing of each folder, that a version's objects are there and as long as they must be.

    Raises:
        TableCorruptError: naming those that are not, and what to do. (Their bytes are not read: `verify` does.)
        StoreError: the place cannot be reached.
    """
    folders = {"/".join(item.key.split("/")[:2]) for item in manifest.objects}
    sizes = {info.key: info.size for folder in sorted(folders) for info in store.list(folder)}
    bad = [item.key for item in manifest.objects if sizes.get(item.key) != item.size]
    if bad:
        raise TableCorruptError(
            f"{store.url} version {manifest.version} is this checkpoint with these options, but {len(bad)} of its "
            f"{len(manifest.objects)} objects are missing or of another size: {', '.join(bad[:3])}"
            f"{', ...' if len(bad) > 3 else ''}. Put them back from a copy; or delete {manifest.key} and run the same "
            "command: it makes them again and keeps what is whole",
            bad,
        )


def _readable(store: Store, version: int, notes: list[str]) -> Manifest | None:
    """A manifest, or None and a note where it is damaged or of another format."""
    try:
        return read_manifest(store, version)
    except (TableCorruptError, FormatError) as error:
        notes.append(f"note: {error}; this build goes on without it")
        return None


def _done(store: Store, plan: Plan) -> frozenset[Cell]:
    """Cells with a durable result: valid receipts, and partial results by name (their readers check the bytes)."""
    shards = {ShardCell(band, shard) for band, shard in finished_shards(store, plan.plan_hash)}
    names = {info.key.rpartition("/")[2] for info in store.list(build_prefix(plan))}
    begun: tuple[Cell, ...] = (*plan.sum_cells(), *plan.fit_cells(), *plan.ranks_cells(), *plan.scale_cells())
    return frozenset([*shards, *(cell for cell in begun if cell.name in names)])


def _difference(plan: Plan, latest: Manifest) -> str:
    """What a version is that is not of this plan, in words that follow its name."""
    if latest.model_fingerprint != plan.fingerprint:
        return f"is of another checkpoint ({latest.model_fingerprint[:12]}..., not {plan.fingerprint[:12]}...)"
    there, ours = _USUAL | latest.options, _USUAL | plan.options
    names = list(dict.fromkeys([*plan.options, *_USUAL]))
    if there.get("codes") != ours["codes"]:
        names.remove("row_scales")
    differing = [f"{name} {there.get(name)}, not {ours[name]}" for name in names if there.get(name) != ours[name]]
    return f"has other options ({'; '.join(differing) or 'made by another version of this program'})"


def _refuse_other_beginnings(store: Store, plan: Plan) -> None:
    """Refuse a place where another plan was begun, unless a running build means to publish that one beside others."""
    begun = {info.key.split("/")[1] for prefix in ("_build", "receipts") for info in store.list(prefix)}
    for name in sorted(name for name in begun - {plan.plan_hash, "tmp"} if not name.startswith("probe-")):
        running = owners(store, name)
        if any(mark.beside for mark in running):
            continue
        who = f"in work by {', '.join(mark.owner for mark in running)}" if running else "finish it with its own command"
        raise TableConflictError(
            f"{store.url} holds an unfinished build with other options or of another checkpoint (plan {name}, "
            f"this one is {plan.plan_hash}): {who}, give another --table, or add --new-version"
        )
