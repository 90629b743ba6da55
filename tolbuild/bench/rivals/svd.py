"""The leading components of a layer's rows and all codes: our Gram matrix against the usual randomised methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.bench.measure import Contestant, say
from tolbuild.bench.rivals.best import Way, compete
from tolbuild.bench.rivals.cores import thread_a_core
from tolbuild.bench.rivals.modes import MissingError, load
from tolbuild.bench.svd import components, falling_rows

ITERATIONS = 2
"""Power iterations of the randomised methods, torch's default: without any, the last components are badly off."""

PIECE_ROWS = 4096

Method = Callable[[Tensor, int], tuple[NDArray[Any], NDArray[Any]]]
"""Rows [V, D] and a rank -> singular values [R] of the centred rows and the codes [V, R]."""


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Medians in s by rival for V 32,768, d 1024, rank 512, and each one's largest relative error."""
    num_rows, width, rank = (8192, 384, 192) if quick else (32_768, 1024, 512)
    say(f"svd: V {num_rows:,}, d {width}, {rank} components and the codes of all rows")
    rows_VD = falling_rows(num_rows, width, seed)
    centred_VD = rows_VD.double().numpy()
    expected = np.linalg.svd(centred_VD - centred_VD.mean(axis=0), compute_uv=False)[:rank]
    last: dict[str, NDArray[Any]] = {}
    missing: dict[str, str] = {}
    ways = []
    for rival, text, libraries, method in METHODS:
        try:
            for library in libraries:
                load(library)
        except MissingError as reason:
            missing[rival] = str(reason)
            continue
        ways.append(_way(rival, text, method, rows_VD, rank, last))
    rivals = [rival for rival, *_ in METHODS]
    result = compete(ways, rivals=rivals, trial_rounds=1, rounds=2 if quick else 3, warm_up=quick)
    errors = {rival: float(np.max(np.abs(sizes / expected - 1))) for rival, sizes in last.items()}
    for rival, error in errors.items():
        say(f"    {rival}: largest relative error of a component's size {error:.1e}")
    return {"seconds": result.medians_s, "modes": result.ways, "max_rel_error": errors, "missing": missing}


def _way(rival: str, text: str, method: Method, rows_VD: Tensor, rank: int, last: dict[str, NDArray[Any]]) -> Way:
    def run() -> None:
        last[rival] = np.asarray(method(rows_VD, rank)[0], np.float64)

    return Way(rival=rival, text=text, contestant=Contestant(name=f"{rival}, {text}", run=run))


def _ours(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    basis, codes_VR = components(rows_VD, rank)
    return basis.energies_D[:rank].sqrt().numpy(), codes_VR.numpy()


def _lowrank(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    torch.manual_seed(0)
    left_VR, sizes_R, _ = torch.svd_lowrank(rows_VD - rows_VD.mean(dim=0), q=rank, niter=ITERATIONS)
    return sizes_R.numpy(), (left_VR * sizes_R).numpy()


def _randomized(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    centred_VD = (rows_VD - rows_VD.mean(dim=0)).numpy()
    method = load("sklearn.utils.extmath").randomized_svd
    options = {"n_iter": ITERATIONS, "power_iteration_normalizer": "QR", "random_state": 0}
    left_VR, sizes_R, _ = method(centred_VD, n_components=rank, **options)
    return sizes_R, left_VR * sizes_R


def _covariance(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    fitted = load("sklearn.decomposition").PCA(n_components=rank, svd_solver="covariance_eigh")
    codes_VR = fitted.fit_transform(rows_VD.numpy())
    return fitted.singular_values_, codes_VR


def _tall_skinny(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return _dask(rows_VD, rank, lambda linalg, array: linalg.svd(array))


def _compressed(rows_VD: Tensor, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    options = {"n_power_iter": ITERATIONS, "iterator": "QR", "seed": 0}
    return _dask(rows_VD, rank, lambda linalg, array: linalg.svd_compressed(array, rank, **options))


def _dask(rows_VD: Tensor, rank: int, svd: Callable[[Any, Any], Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    library = load("dask.array")
    array = library.from_array(rows_VD.numpy(), chunks=(PIECE_ROWS, rows_VD.shape[1]))
    left_VR, sizes_R, _ = svd(library.linalg, array - array.mean(axis=0))
    with thread_a_core():
        sizes, codes = load("dask").compute(sizes_R[:rank], left_VR[:, :rank] * sizes_R[:rank])
    return sizes, codes


METHODS: tuple[tuple[str, str, tuple[str, ...], Method], ...] = (
    ("ours", "fp64 Gram matrix, eigh, projection", (), _ours),
    ("torch_lowrank", f"torch.svd_lowrank, {ITERATIONS} iterations", (), _lowrank),
    ("sklearn_randomized", f"randomized_svd, {ITERATIONS} QR iterations", ("sklearn",), _randomized),
    ("sklearn_covariance", "PCA by covariance_eigh, in fp32", ("sklearn",), _covariance),
    ("dask_tall_skinny", "linalg.svd", ("dask.array", "threadpoolctl"), _tall_skinny),
    (
        "dask_compressed",
        f"linalg.svd_compressed, {ITERATIONS} QR iterations",
        ("dask.array", "threadpoolctl"),
        _compressed,
    ),
)
"""Rival, way, libraries and what it does."""
