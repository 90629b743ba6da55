"""How many components each layer keeps: one number for all, a share of each layer's energy, or one budget of bytes.

Ranks that follow from spectra are multiples of 8 below D, or D: the rows as they are, without basis or mean. A low rank
that costs as much as the whole rows is never given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tolbuild.compress.knapsack import least_loss

RANK_STEP = 8
"""Ranks that follow from spectra are multiples of this."""

RankOption = Literal["full"] | int
Spectra = NDArray[np.float64]
"""Eigenvalues of each layer's centred Gram matrix, descending, [L, D]."""

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EnergyShare:
    """Each layer keeps the fewest components with this share of its own centred, weighted energy.

    Raises:
        ValueError: no share in (0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"energy:{self.share}: a share is above 0 and at most 1, such as energy:0.999")

    def __str__(self) -> str:
        return f"energy:{self.share!r}"


@dataclass(frozen=True, kw_only=True)
class ByteBudget:
    """All layers together keep the components that leave the least error in a table of at most so many bytes.

    Raises:
        ValueError: no bytes.
    """

    num_bytes: int

    def __post_init__(self) -> None:
        if self.num_bytes < 1:
            raise ValueError(f"bytes:{self.num_bytes}: a table has at least one byte; say for example bytes:2GiB")

    def __str__(self) -> str:
        return f"bytes:{self.num_bytes}"


RankRule = EnergyShare | ByteBudget


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Bytes of a table's parts. component: one component of one layer, its row of the basis included. whole_layer: the
    rows of one layer as they are. fixed: all that the ranks do not change.
    """

    fixed: int
    component: int
    whole_layer: int

    def of_layer(self, rank: int, *, whole: bool) -> int:
        """Bytes of one layer."""
        return self.whole_layer if whole else rank * self.component

    def candidates(self, width: int) -> tuple[int, ...]:
        """Ranks worth storing, the cheapest first: multiples of 8 that cost less than the whole rows, then D."""
        steps = range(RANK_STEP, width, RANK_STEP)
        return (*(rank for rank in steps if rank * self.component < self.whole_layer), width)


def parse_rank(option: int | str) -> RankOption | RankRule:
    """What `--rank` says.

    Raises:
        ValueError: neither full, nor a number of at least 1, nor energy:SHARE, nor bytes:SIZE.
    """
    if isinstance(option, int):
        if option < 1:
            raise ValueError(f"--rank is {option}; it must be full or at least 1")
        return option
    kind, _, value = option.partition(":")
    if option == "full":
        return "full"
    if kind == "energy" and re.fullmatch(r"\d*\.?\d+", value):
        return EnergyShare(share=float(value))
    size = re.fullmatch(r"(\d*\.?\d+) ?(\w*)", value)
    if kind == "bytes" and size and size[2] in _UNITS:
        return ByteBudget(num_bytes=int(float(size[1]) * _UNITS[size[2]]))
    raise ValueError(
        f"--rank is {option!r}; it must be full, a number of components, energy:SHARE such as energy:0.999, or "
        "bytes:SIZE such as bytes:500MB or bytes:2GiB"
    )


def allocate_ranks(option: RankOption, num_layers: int, width: int) -> tuple[int, ...]:
    """The rank of every layer: D where the rows are kept whole, otherwise the number asked for.

    Args:
        option: "full", or components for every layer.
        width: D, the length of a row.

    Raises:
        ValueError: fewer than 1 or more than D components.
    """
    if option == "full":
        return (width,) * num_layers
    if not 1 <= option <= width:
        raise ValueError(f"rank is {option}; rows of width {width} have 1 to {width} components")
    return (option,) * num_layers


def rank_bounds(rule: RankRule, costs: Costs, num_layers: int, width: int) -> tuple[int, int]:
    """The least and the largest rank that the rule can give a layer, whatever the spectra.

    Raises:
        ValueError: the budget does not hold the least that a table can be.
    """
    candidates = costs.candidates(width)
    if isinstance(rule, EnergyShare):
        return candidates[0], width
    sizes = [costs.of_layer(rank, whole=rank == width) for rank in candidates]
    left = rule.num_bytes - costs.fixed - sizes[0] * num_layers
    if left < 0:
        raise ValueError(
            f"--rank {rule}: a table of this model takes at least {rule.num_bytes - left:,} bytes with these codes "
            f"({candidates[0]} components a layer)"
        )
    return candidates[0], max(rank for rank, size in zip(candidates, sizes, strict=True) if size <= sizes[0] + left)


def ranks_of(rule: RankRule, spectra_LD: Spectra, costs: Costs, layer_weights: Sequence[float] = ()) -> tuple[int, ...]:
    """The rank of every layer by its spectrum; D stands for the rows as they are.

    A budget minimises  sum over layers of  weight_l * sum of the energies beyond rank_l.  Components cost the same
    in every layer, so without full rank the largest weighted energies would be the best choice; whole rows need no
    basis and cost less than D components, so the choice is a knapsack, solved exactly.

    Args:
        layer_weights: what a unit of squared error in each layer is worth; empty is 1 for each.

    Raises:
        ValueError: the budget does not hold the least that a table can be.
    """
    num_layers, width = spectra_LD.shape
    rank_bounds(rule, costs, num_layers, width)
    candidates = costs.candidates(width)
    if isinstance(rule, EnergyShare):
        return tuple(_rank_of_share(energies_D, rule.share, candidates) for energies_D in spectra_LD)
    weights_L = np.asarray(layer_weights or (1.0,) * num_layers)
    beyond_LR = np.stack([spectra_LD[:, rank:].sum(axis=1) for rank in candidates], axis=1)
    sizes_R = np.array([costs.of_layer(rank, whole=rank == width) for rank in candidates])
    chosen = least_loss(sizes_R, weights_L[:, None] * beyond_LR, rule.num_bytes - costs.fixed)
    return tuple(candidates[place] for place in chosen)


def _rank_of_share(energies_D: Spectra, share: float, candidates: tuple[int, ...]) -> int:
    total = float(energies_D.sum())
    enough = (rank for rank in candidates if not total or float(energies_D[:rank].sum()) / total >= share)
    return next(enough, candidates[-1])
