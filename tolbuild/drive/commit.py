"""The end of a build: small arrays and manifest from receipts and fits, then the partial results go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tolbuild.drive.place import State, find_complete
from tolbuild.grid import FitCell, PartialCell, ScaleCell
from tolbuild.plan import Plan
from tolbuild.table.errors import TableConflictError, TableCorruptError
from tolbuild.table.local_store import LocalStore, remove_dead_scratch
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import publish, read_manifest
from tolbuild.table.receipts import in_parallel
from tolbuild.table.store import Store
from tolbuild.table.writer import LayerArrays, finish_table
from tolbuild.worker.encode import LayerFit
from tolbuild.worker.partials import build_prefix, partial_key, unpack
from tolbuild.worker.ranks import cut_fit
from tolbuild.worker.table_spec import table_spec


@dataclass(frozen=True)
class Committed:
    """The version that holds a plan at the end of a build, and whether this build published it."""

    manifest: Manifest
    by_us: bool


def commit(store: Store, plan: Plan, state: State, *, single_writer: bool) -> Committed:
    """Publish a plan whose cells are all done, under the number that `examine` found free or, taken meanwhile, a later.

    Args:
        single_writer: see `publish`.

    Returns:
        The version that holds the plan: another's where one has published it meanwhile, else ours. An earlier version
        of the same plan is published again as it is.

    Raises:
        TableCorruptError: a result is missing or damaged; running again makes it anew.
        StoreError: the store failed.
    """
    complete = find_complete(store, plan)
    if complete is not None:
        remove_partials(store, plan)
        return Committed(complete, by_us=False)
    if state.earlier is not None:
        manifest = replace(state.earlier, version=state.next_version)
    else:
        plan = _with_ranks(store, plan)
        cells = plan.fit_cells()
        found = in_parallel(lambda cell: _fitted(store, plan, cell), cells)
        fitted = {cell.layer: arrays for cell, (arrays, _) in zip(cells, found, strict=True)}
        by_token = [cell.layer for cell, (_, by_token) in zip(cells, found, strict=True) if by_token]
        manifest = finish_table(store, table_spec(plan, by_token), fitted, version=state.next_version)
    committed = _publish(store, plan, manifest, single_writer=single_writer)
    remove_partials(store, plan)
    return committed


def _publish(store: Store, plan: Plan, manifest: Manifest, *, single_writer: bool) -> Committed:
    """Publish under the first number that nobody takes, looking at what took one before the next is tried.

    What is published while a build runs is of its own plan, or of a build that asked to stand beside others.
    """
    while True:
        try:
            return Committed(publish(store, manifest, single_writer=single_writer), by_us=True)
        except TableConflictError:
            latest = read_manifest(store)
            if latest.plan_hash == plan.plan_hash:
                return Committed(latest, by_us=False)
            manifest = replace(manifest, version=latest.version + 1)


def remove_partials(store: Store, plan: Plan) -> None:
    """Delete what only an unfinished build needs, and what killed processes of this machine did not finish writing."""
    in_parallel(store.delete, [info.key for info in store.list(build_prefix(plan))])
    if isinstance(store, LocalStore):
        remove_dead_scratch(store)


def _with_ranks(store: Store, plan: Plan) -> Plan:
    for cell in plan.ranks_cells():
        plan = plan.with_ranks(_partial(store, plan, cell)["ranks"].tolist())
    return plan


def _partial(store: Store, plan: Plan, cell: PartialCell) -> dict[str, Tensor]:
    key = partial_key(plan, cell)
    try:
        return unpack(store.read(key), key)
    except TableCorruptError as error:
        store.delete(key)
        raise TableCorruptError(f"{error}; it is deleted, and the same command makes it anew", [key]) from error


def _fitted(store: Store, plan: Plan, cell: FitCell) -> tuple[LayerArrays, bool]:
    """What of a layer's fit the table holds, and whether its codes have a scale by token."""
    tensors = _partial(store, plan, cell)
    scales = _partial(store, plan, ScaleCell(cell.layer)) if plan.scale_cells() else {}
    fit = LayerFit.from_tensors(cut_fit(plan, cell.layer, tensors) | scales, torch.device("cpu"))
    decoder_RD = fit.decoder_RD
    arrays = LayerArrays(
        mean_D=tensors["mean"].numpy() if "mean" in tensors else None,
        basis_RD=None if decoder_RD is None else decoder_RD.numpy(),
        scale_D=fit.scale_C.numpy() if decoder_RD is None and fit.scale_C is not None else None,
        spectrum_D=tensors["energies"].numpy() if "energies" in tensors else None,
    )
    return arrays, fit.by_token
