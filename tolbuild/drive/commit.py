"""The end of a build: small arrays and manifest from receipts and fits, then the partial results go."""

from __future__ import annotations

from dataclasses import replace

import torch

from tolbuild.drive.place import State
from tolbuild.plan import FitCell, Plan
from tolbuild.table.errors import TableCorruptError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import publish
from tolbuild.table.receipts import in_parallel
from tolbuild.table.store import Store
from tolbuild.table.writer import LayerArrays, finish_table
from tolbuild.worker.encode import LayerFit
from tolbuild.worker.partials import build_prefix, partial_key, unpack
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
        cells = plan.fit_cells()
        loaded = in_parallel(lambda cell: _fitted(store, plan, cell), cells)
        fits = {cell.layer: fit for cell, fit in zip(cells, loaded, strict=True)}
        arrays = {layer: _arrays(fit) for layer, fit in fits.items()}
        manifest = finish_table(store, table_spec(plan, fits), arrays, version=state.next_version)
    published = publish(store, manifest)
    remove_partials(store, plan)
    return published


def remove_partials(store: Store, plan: Plan) -> None:
    """Delete what only an unfinished build needs."""
    in_parallel(store.delete, [info.key for info in store.list(build_prefix(plan))])


def _fitted(store: Store, plan: Plan, cell: FitCell) -> LayerFit:
    key = partial_key(plan, cell)
    try:
        tensors = unpack(store.read(key), key)
    except TableCorruptError as error:
        store.delete(key)
        raise TableCorruptError(f"{error}; it is deleted, and the same command makes it anew", [key]) from error
    return LayerFit.from_tensors(tensors, torch.device("cpu"))


def _arrays(fit: LayerFit) -> LayerArrays:
    """What of a fit the table holds."""
    if fit.basis is None or fit.decoder_RD is None:
        return LayerArrays(scale_D=None if fit.scale_C is None else fit.scale_C.numpy())
    return LayerArrays(
        mean_D=fit.basis.mean_D.numpy(), basis_RD=fit.decoder_RD.numpy(), spectrum_D=fit.basis.energies_D.numpy()
    )
