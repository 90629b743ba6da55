"""What pass 1 has told of the layers, for a plan that is only shown: from its table, or from an unfinished build."""

from __future__ import annotations

from tolbuild.plan import Plan
from tolbuild.table.errors import ToLError
from tolbuild.table.manifest import Manifest
from tolbuild.table.publish import list_versions, read_manifest
from tolbuild.table.receipts import in_parallel
from tolbuild.table.stats import LayerEnergy, layer_energy, table_energies
from tolbuild.table.store import Store
from tolbuild.worker.partials import partial_key, unpack
from tolbuild.worker.ranks import choose_ranks


def look(store: Store, plan: Plan) -> tuple[Plan, dict[int, LayerEnergy]]:
    """The plan with its final ranks and the energies of its layers, where the place tells them.

    What cannot be read counts as not there: showing a plan needs no table.
    """
    try:
        versions = (read_manifest(store, version) for version in reversed(list_versions(store)))
        manifest = next((found for found in versions if found.plan_hash == plan.plan_hash), None)
        if manifest is not None:
            return with_ranks_of(plan, manifest), table_energies(store, manifest)
        return _from_partials(store, plan)
    except ToLError:
        return plan, {}


def with_ranks_of(plan: Plan, manifest: Manifest) -> Plan:
    """The plan with the ranks of its table."""
    return plan.with_ranks([stats.rank for stats in manifest.layer_stats])


def _from_partials(store: Store, plan: Plan) -> tuple[Plan, dict[int, LayerEnergy]]:
    keys = {cell.layer: partial_key(plan, cell) for cell in plan.fit_cells()}
    fits = dict(zip(keys, in_parallel(lambda key: unpack(store.read(key), key), keys.values()), strict=True))
    if plan.rule is not None:
        plan = plan.with_ranks(choose_ranks(plan, fits.__getitem__)["ranks"].tolist())
    vocab_size = plan.vocab_size
    energies = {
        layer: layer_energy(fit["mean"].numpy(), fit["energies"].numpy(), vocab_size) for layer, fit in fits.items()
    }
    return plan, energies
