"""Where a step is cut: before each layer that is the first to add rows which have to arrive.

A layer is two halves: what needs no rows ("attend": attention and, for flex, FFN-C up to its down projection) and what
adds ("merge"). A step of b requested bands is b + 1 segments; a band is waited for before the segment that merges it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Half:
    """One half of a layer."""

    kind: Literal["attend", "merge"]
    layer: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Halves that run without waiting once `band` has arrived (None: nothing to wait for)."""

    band: int | None
    halves: tuple[Half, ...]


def plan_segments(num_layers: int, requested: dict[int, int]) -> tuple[Segment, ...]:
    """Cut a step of `num_layers` layers.

    Args:
        requested: for each layer that adds requested rows, its band.
    """
    segments: list[Segment] = []
    band: int | None = None
    arrived: set[int] = set()
    halves: list[Half] = []
    for layer in range(num_layers):
        halves.append(Half(kind="attend", layer=layer))
        needed = requested.get(layer)
        if needed is not None and needed not in arrived:
            segments.append(Segment(band=band, halves=tuple(halves)))
            arrived.add(needed)
            band, halves = needed, []
        halves.append(Half(kind="merge", layer=layer))
    segments.append(Segment(band=band, halves=tuple(halves)))
    return tuple(segments)
