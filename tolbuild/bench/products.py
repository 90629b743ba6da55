"""What matrix products reach here: the measure for everything that computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tolbuild.bench.measure import Contestant, Timing

SIZES = (1024, 2048, 4096)
"""Square products among which the best counts."""


def square_products(dtype: torch.dtype, device: torch.device, sizes: Sequence[int] = SIZES) -> list[Contestant]:
    """Products of N x N matrices of one type, for several N."""
    return [_product(size, dtype, device) for size in sizes]


def best_rate(timings: dict[str, Timing], dtype: torch.dtype, sizes: Sequence[int] = SIZES) -> float:
    """FLOP/s of the best of the products that `square_products` named."""
    return max(2 * size**3 / timings[_name(size, dtype)].median_s for size in sizes)


def _name(size: int, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} product {size} x {size}"


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Contestant:
    factor = torch.randn(size, size, device=device).to(dtype)
    result = torch.empty_like(factor)
    return Contestant(name=_name(size, dtype), run=lambda: torch.mm(factor, factor, out=result))
