"""The end of a build: small arrays and manifest from receipts and fits, then the partial results go."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tolbuild.drive.place import State
from tolbuild.grid import FitCell, PartialCell
from tolbuild.plan import Plan
from tolbuild.table.errors import TableCorruptError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import publish
from tolbuild.table.receipts import in_parallel
from tolbuild.table.store import Store
from tolbuild.table.writer import LayerArrays, finish_table
from tolbuild.worker.encode import LayerFit
from tolbuild.worker.partials import build_prefix, partial_key, unpack
from tolbuild.worker.ranks import cut_fit
from tolbuild.worker.table_spec import table_spec


def commit(store: Store, plan: Plan, state: State) -> Manifest:
    """Publish a plan whose cells are all done, under the number that `examine` found free.

    Returns:
        The manifest as published. An earlier version of the same plan is published again as it is.

    Raises:
        TableConflictError: another writer took the number.
        TableCorruptError: a result is missing or damaged; running again makes it anew.
        StoreError: the store failed.
    """
    if state.earlier is not None:
        manifest = replace(state.earlier, version=state.next_version)
    else:
        plan = _with_ranks(store, plan)
        cells = plan.fit_cells()
        arrays = in_parallel(lambda cell: _fitted(store, plan, cell), cells)
        fitted = {cell.layer: layer_arrays for cell, layer_arrays in zip(cells, arrays, strict=True)}
        manifest = finish_table(store, table_spec(plan), fitted, version=state.next_version)
    published = publish(store, manifest)
    remove_partials(store, plan)
    return published


def remove_partials(store: Store, plan: Plan) -> None:
    """Delete what only an unfinished build needs."""
    in_parallel(store.delete, [info.key for info in store.list(build_prefix(plan))])


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


def _fitted(store: Store, plan: Plan, cell: FitCell) -> LayerArrays:
    tensors = _partial(store, plan, cell)
    fit = LayerFit.from_tensors(cut_fit(plan, cell.layer, tensors), torch.device("cpu"))
    decoder_RD = fit.decoder_RD
    return LayerArrays(
        mean_D=tensors["mean"].numpy() if "mean" in tensors else None,
        basis_RD=None if decoder_RD is None else decoder_RD.numpy(),
        scale_D=fit.scale_C.numpy() if decoder_RD is None and fit.scale_C is not None else None,
        spectrum_D=tensors["energies"].numpy() if "energies" in tensors else None,
    )
