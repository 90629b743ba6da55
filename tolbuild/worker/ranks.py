"""Between the passes, where ranks follow from spectra: the ranks of all layers, and what codes need of each fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tolbuild.compress.allocate import ranks_of
from tolbuild.plan import Plan


def choose_ranks(plan: Plan, fitted_of: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The result of a RanksCell: int64 `ranks`, one a kept layer in their order, from the fits of all layers."""
    assert plan.rule is not None
    layers = plan.kept_layers
    spectra_LD = np.stack([fitted_of(layer)["energies"].numpy() for layer in layers])
    weights = tuple(plan.layer_weights[layer] for layer in layers) if plan.layer_weights else ()
    return {"ranks": torch.tensor(ranks_of(plan.rule, spectra_LD, plan.costs, weights), dtype=torch.int64)}


def cut_fit(plan: Plan, layer: int, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the codes of a layer need of its fit under a plan with final ranks, in fit_layer's names: the components
    that it keeps, nothing for whole rows; scales apart where they are fitted after the ranks.
    """
    assert plan.allocated
    if plan.rule is None:
        return fitted
    if plan.is_whole(layer):
        return {}
    return {"basis": fitted["basis"][: plan.rank(layer)], "mean": fitted["mean"], "energies": fitted["energies"]}
