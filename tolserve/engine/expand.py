"""From received codes to the memory term of a layer, added where the layer's last branch is added.

Full-rank rows are added as they are (times alpha, and times their per-component scale where they are integers). Packed
codes are unpacked layer by layer, times their token's scale where the row has one.
Low-rank codes ride on the product that is there anyway: with alpha folded into basis and mean,

    x' = x + [branch, codes] @ [W; alpha * basis] + alpha * mean
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tolbuild.compress.packing import unpack_layer
from tolbuild.table.coding import RowCoding
from tolserve.engine.product import Product
from tolserve.engine.weights import LayerWeights
from tolserve.memory.spec import BandSpec


@dataclass(frozen=True, kw_only=True)
class LayerExpansion:
    """How one layer's codes become rows.

    `basis_RD` (an integer code's scale folded in) and `mean_D` for low-rank codes, `scale_C` for integer codes at full
    rank, all None for rows stored as numbers. fp32.
    """

    basis_RD: Tensor | None = None
    mean_D: Tensor | None = None
    scale_C: Tensor | None = None

    def rows(self, codes_NC: Tensor) -> Tensor:
        """The rows [N, D] that fp32 codes stand for."""
        if self.basis_RD is not None:
            rows_ND = codes_NC @ self.basis_RD
            return rows_ND if self.mean_D is None else rows_ND + self.mean_D
        return codes_NC if self.scale_C is None else codes_NC * self.scale_C


class RowTable(Protocol):
    """The part of an open table that expansion needs."""

    def basis(self, layer: int) -> object:
        """[R, D] array or None."""

    def mean(self, layer: int) -> object:
        """[D] array or None."""

    def scale(self, layer: int) -> object:
        """[D] array or None."""


@dataclass(frozen=True, kw_only=True)
class MemoryTerm:
    """One layer's part of its band: the codes of its layer number `place`, `width` of them.

    `low_rank` codes take part in the layer's merge product, which has alpha, basis and mean; others are rows, to be
    added times `alpha` (and times `scale_C` where they are integers).
    """

    band: int
    place: int
    coding: RowCoding
    alpha: float
    low_rank: bool = False
    scale_C: Tensor | None = None

    @property
    def width(self) -> int:
        """Codes of the layer."""
        return self.coding.ranks[self.place]

    def merge(self, x_ND: Tensor, branch_NE: Tensor, product: Product, codes_NC: Tensor) -> None:
        """Add the branch's projection and the layer's rows to the residual stream, in place."""
        if self.low_rank:
            product.add_to(x_ND, torch.cat((branch_NE, codes_NC), dim=1))
            return
        product.add_to(x_ND, branch_NE)
        if self.scale_C is not None:
            codes_NC = codes_NC * self.scale_C
        x_ND.add_(codes_NC, alpha=self.alpha)


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """All layers' terms, and the bands held on the device.

    Attributes:
        layers: by layer; a layer without memory term is absent.
        pinned: by band, rows as stored [V, num_items] of every token.
        dtype: that codes are computed with.
    """

    layers: Mapping[int, MemoryTerm]
    pinned: Mapping[int, Tensor]
    dtype: torch.dtype

    @property
    def requested(self) -> dict[int, int]:
        """For each layer whose rows have to arrive its band."""
        return {layer: term.band for layer, term in self.layers.items() if term.band not in self.pinned}

    def codes(
        self, term: MemoryTerm, codes_by_band: dict[int, Tensor], received: Mapping[int, Tensor], token_ids_N: Tensor
    ) -> Tensor:
        """Codes [N, width] of `term`'s layer, times their tokens' scales where the rows have them.

        Args:
            codes_by_band: a step's rows, filled here band by band: in the type that is computed with, or packed.
            received: by band, rows as stored [N, num_items] as they came.
        """
        coding = term.coding
        if term.band not in codes_by_band:
            pinned = self.pinned.get(term.band)
            rows = received[term.band] if pinned is None else pinned.index_select(0, token_ids_N)
            codes_by_band[term.band] = rows if coding.packed else rows.to(self.dtype)
        return unpack_layer(codes_by_band[term.band], coding, term.place, self.dtype)


def table_expansions(table: RowTable, num_layers: int) -> tuple[LayerExpansion, ...]:
    """What an open table says of each layer's expansion."""

    def tensor(array: object) -> Tensor | None:
        return None if array is None else torch.tensor(array, dtype=torch.float32)

    return tuple(
        LayerExpansion(
            basis_RD=tensor(table.basis(layer)), mean_D=tensor(table.mean(layer)), scale_C=tensor(table.scale(layer))
        )
        for layer in range(num_layers)
    )


def make_terms(
    layers: tuple[LayerWeights, ...],
    bands: tuple[BandSpec, ...],
    expansions: tuple[LayerExpansion, ...] | None,
    pinned: Mapping[int, Tensor],
    *,
    alpha: float,
    drop_layers: tuple[int, ...],
) -> tuple[MemoryTerms, tuple[LayerWeights, ...]]:
    """Terms of every layer that adds rows, and the layers' weights with low-rank bases beside the merge product.

    Args:
        expansions: by layer; None where rows are stored in full as numbers.
        pinned: rows as stored of the bands held on the device.

    Raises:
        ValueError: a layer to drop does not exist, or codes are low-rank and their basis is not given.
    """
    beyond = [layer for layer in drop_layers if layer >= len(layers)]
    if beyond:
        raise ValueError(f"drop_layers names layers {beyond}; the model has {len(layers)}, counted from 0")
    fused = list(layers)
    terms: dict[int, MemoryTerm] = {}
    for band in bands:
        for place, (layer, width) in enumerate(zip(band.layers, band.ranks, strict=True)):
            if width and alpha and layer not in drop_layers:
                expansion = expansions[layer] if expansions else LayerExpansion()
                plain = MemoryTerm(band=band.index, place=place, coding=band.coding, alpha=alpha)
                terms[layer], fused[layer] = _place(plain, expansion, fused[layer], layer)
    return MemoryTerms(layers=terms, pinned=pinned, dtype=layers[0].merge_ED.dtype), tuple(fused)


def _place(
    term: MemoryTerm, expansion: LayerExpansion, weights: LayerWeights, layer: int
) -> tuple[MemoryTerm, LayerWeights]:
    merge_ED = weights.merge_ED

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(merge_ED.device, merge_ED.dtype)

    if expansion.basis_RD is None:
        if term.width != merge_ED.shape[1]:
            raise ValueError(
                f"layer {layer} has {term.width} code columns for a width of {merge_ED.shape[1]}; low-rank codes need "
                "the table that they come from, for its bases"
            )
        return replace(term, scale_C=None if expansion.scale_C is None else move(expansion.scale_C)), weights
    basis_RD = expansion.basis_RD * term.alpha
    mean_D = torch.zeros(merge_ED.shape[1]) if expansion.mean_D is None else expansion.mean_D * term.alpha
    together = torch.cat((merge_ED, move(basis_RD)))
    return replace(term, low_rank=True), replace(weights, merge_ED=together, merge_bias_D=move(mean_D))
