"""The build's way to a layer's components against torch.linalg.svd, and its accuracy against numpy in fp64."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tolbuild.bench.measure import Contestant, in_turn, say, show
from tolbuild.compress.basis import LayerBasis, fit_basis, gram_update, project

SEGMENTS = 4
"""Partial sums a layer, as in a build."""


def measure(*, quick: bool, device: torch.device, seed: int) -> dict[str, float | None]:
    """All components and codes of rows [V, d] whose singular values fall from 1 to 1e-4: V 32,768, d 1024."""
    num_rows, width = (8192, 384) if quick else (32_768, 1024)
    say(f"svd: V {num_rows:,}, d {width}, all components and the codes of all rows")
    rows_VD = falling_rows(num_rows, width, seed).to(device)
    rows64_VD = rows_VD.double()
    contestants = [
        Contestant(name="fp64 Gram matrix, eigh, projection", run=lambda: components(rows_VD)),
        Contestant(name="torch.linalg.svd fp32", run=lambda: torch.linalg.svd(rows_VD, full_matrices=False)),
        Contestant(name="torch.linalg.svd fp64", run=lambda: torch.linalg.svd(rows64_VD, full_matrices=False)),
    ]
    ours, single, double = in_turn(contestants, rounds=3, warm_up=False, device=device).values()
    show({timing.name: timing for timing in (ours, single, double)})
    error = largest_error(rows64_VD.cpu().numpy(), components(rows_VD)[0])
    return {
        "svd_speedup_vs_torch": single.median_s / ours.median_s,
        "svd_speedup_vs_torch64": double.median_s / ours.median_s,
        "svd_max_rel_error": error,
    }


def falling_rows(num_rows: int, width: int, seed: int) -> Tensor:
    """fp32 rows with a mean, in random directions of falling size."""
    draw = torch.Generator().manual_seed(seed)
    directions_DD = torch.linalg.qr(torch.randn(width, width, generator=draw))[0]
    sizes_D = torch.logspace(0, -4, width)
    rows_VD: Tensor = (torch.randn(num_rows, width, generator=draw) * sizes_D) @ directions_DD
    rows_VD += 0.01 * torch.randn(width, generator=draw)
    return rows_VD


def components(rows_VD: Tensor, rank: int | None = None) -> tuple[LayerBasis, Tensor]:
    """Basis of the `rank` largest components (all D of them if None) and the codes [V, rank], by the steps of a build.

    One thread a kernel, parallel over pieces of V.
    """
    rank = rank or rows_VD.shape[1]
    parts = rows_VD.chunk(SEGMENTS)
    on_gpu = rows_VD.is_cuda
    threads, lanes = torch.get_num_threads(), 1 if on_gpu else len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(lanes) as pool:
            sums = list(pool.map(_sums, parts))
            gram_DD, sum_D = sums[0]
            for gram, total in sums[1:]:
                gram_DD += gram
                sum_D += total
            basis = fit_basis(gram_DD, sum_D, len(rows_VD), rank)
            codes_VR = rows_VD.new_empty((len(rows_VD), rank))
            list(pool.map(lambda pair: pair[0].copy_(project(pair[1], basis)), _pieces(codes_VR, rows_VD)))
    finally:
        torch.set_num_threads(threads)
    return basis, codes_VR


def _pieces(codes_VR: Tensor, rows_VD: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = len(rows_VD) if rows_VD.is_cuda else 2048
    return [(codes_VR[start : start + size], rows_VD[start : start + size]) for start in range(0, len(rows_VD), size)]


def _sums(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    width = rows_ND.shape[1]
    gram_DD = torch.zeros((width, width), dtype=torch.float64, device=rows_ND.device)
    sum_D = torch.zeros(width, dtype=torch.float64, device=rows_ND.device)
    gram_update(gram_DD, sum_D, rows_ND)
    return gram_DD, sum_D


def largest_error(rows_VD: np.ndarray[tuple[int, ...], np.dtype[np.float64]], basis: LayerBasis) -> float:
    """Largest relative error of a singular value of the centred rows, among those above 1e-3 of the largest."""
    expected = np.linalg.svd(rows_VD - rows_VD.mean(axis=0), compute_uv=False)
    ours = basis.energies_D.sqrt().cpu().numpy()
    large = expected > 1e-3 * expected[0]
    error = float(np.max(np.abs(ours[large] / expected[large] - 1)))
    say(f"    {int(large.sum())} of {len(expected)} singular values above 1e-3 of the largest: error {error:.1e}")
    return error
