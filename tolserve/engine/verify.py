"""Checks served rows against what they stand for: one token and layer at a time, recomputed from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from tolbuild.compress.packing import unpack_layer
from tolserve.engine.batch import IntArray
from tolserve.engine.executor import Executor
from tolserve.engine.expand import LayerExpansion, MemoryTerms
from tolserve.engine.rows import StepRows

RecomputeRow = Callable[[int, int], Tensor]
"""(token id, layer) -> the row FFN_L(LN_L(E[v])), fp32 [D]."""


class RowVerifier:
    """Compares one layer's row of one token every `every` steps, layers and tokens in turn, pinned bands too.

    `bounds` gives by layer the largest distance |served - recomputed| / |recomputed| that the table's error allows.
    `num_mismatches` counts rows beyond it.
    """

    def __init__(
        self,
        terms: MemoryTerms,
        expansions: tuple[LayerExpansion, ...] | None,
        recompute: RecomputeRow,
        bounds: Mapping[int, float],
        every: int,
    ) -> None:
        self._terms = terms
        self._expansions = expansions
        self._recompute = recompute
        self._bounds = bounds
        self._every = every
        self._layers = sorted(terms.layers)
        self._num_steps = 0
        self.num_checked = 0
        self.num_mismatches = 0

    def observe(self, token_ids: IntArray, rows: StepRows | None, executor: Executor) -> None:
        """Look at a step whose rows have all arrived and are not released yet; None where every band is pinned."""
        self._num_steps += 1
        if not self._layers or self._num_steps % self._every:
            return
        layer = self._layers[self.num_checked % len(self._layers)]
        place = int(np.random.default_rng(self.num_checked).integers(len(token_ids)))
        term = self._terms.layers[layer]
        pinned = self._terms.pinned.get(term.band)
        row = executor.collect(rows, term.band)[place] if pinned is None else pinned[int(token_ids[place])]
        stored = row[None].cpu()
        expansion = self._expansions[layer] if self._expansions else LayerExpansion()
        served_D = expansion.rows(unpack_layer(stored, term.coding, term.place, torch.float32))[0]
        expected_D = self._recompute(int(token_ids[place]), layer)
        distance = (served_D - expected_D).norm() / expected_D.norm().clamp(min=1e-30)
        self.num_checked += 1
        if not torch.isfinite(distance) or float(distance) > self._bounds[layer]:
            self.num_mismatches += 1
