"""Singular values, bases and codes against numpy in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolbuild.compress.allocate import allocate_ranks
from tolbuild.compress.basis import LayerBasis, fit_basis, gram_update, project


def decaying_rows(count: int, width: int, seed: int = 0, last: float = 1e-4) -> Tensor:
    """fp32 rows with a mean and singular values that fall from 1 to `last` of the largest."""
    draw = np.random.default_rng(seed)
    left = np.linalg.qr(draw.standard_normal((count, width)))[0]
    right = np.linalg.qr(draw.standard_normal((width, width)))[0]
    rows = left * np.geomspace(1.0, last, width) @ right * 10 + 0.1 * draw.standard_normal(width)
    return torch.from_numpy(rows.astype(np.float32))


def sums(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    width = rows_ND.shape[1]
    gram_DD, sum_D = torch.zeros((width, width), dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    gram_update(gram_DD, sum_D, rows_ND)
    return gram_DD, sum_D


def fitted(rows_ND: Tensor, rank: int) -> LayerBasis:
    return fit_basis(*sums(rows_ND), len(rows_ND), rank)


@pytest.mark.parametrize(("count", "width"), [(1, 5), (700, 40), (1500, 200)])
def test_sums_agree_with_numpy(count: int, width: int) -> None:
    rows_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    exact = rows_ND.double().numpy()
    gram_DD, sum_D = sums(rows_ND)
    np.testing.assert_allclose(np.triu(gram_DD.numpy()), np.triu(exact.T @ exact), rtol=1e-12, atol=1e-12 * count)
    np.testing.assert_allclose(sum_D.numpy(), exact.sum(axis=0), rtol=1e-12, atol=1e-12 * count)


def test_singular_values_agree_with_numpy_fp64() -> None:
    rows_ND = decaying_rows(1500, 160)
    exact = rows_ND.double().numpy()
    expected = np.linalg.svd(exact - exact.mean(axis=0), compute_uv=False)
    ours = fitted(rows_ND, 160).energies_D.sqrt().numpy()
    large = expected > 1e-3 * expected[0]
    assert large.sum() > 100
    assert np.max(np.abs(ours[large] / expected[large] - 1)) < 1e-6


@pytest.mark.parametrize("rank", [1, 17, 64])
def test_what_codes_leave_out_is_the_energy_beyond_the_rank(rank: int) -> None:
    rows_ND = decaying_rows(900, 64, last=1e-2)
    basis = fitted(rows_ND, rank)
    rebuilt_ND = project(rows_ND, basis).double() @ basis.basis_RD.double() + basis.mean_D.double()
    lost = float((rebuilt_ND - rows_ND.double()).square().sum())
    expected = float(basis.energies_D[rank:].sum())
    assert lost == pytest.approx(expected, rel=1e-3, abs=1e-8 * float(basis.energies_D[0]))


def test_codes_are_the_projection_of_centred_rows() -> None:
    rows_ND = decaying_rows(300, 48)
    basis = fitted(rows_ND, 20)
    exact = (rows_ND.double() - basis.mean_D.double()) @ basis.basis_RD.double().t()
    assert float((project(rows_ND, basis).double() - exact).abs().max()) < 1e-6 * float(exact.abs().max())


def test_basis_is_orthonormal_and_has_one_sign() -> None:
    basis_RD = fitted(decaying_rows(400, 50), 30).basis_RD
    identity = torch.eye(30, dtype=torch.float64)
    assert float((basis_RD.double() @ basis_RD.double().t() - identity).abs().max()) < 1e-6
    peaks = basis_RD.gather(1, basis_RD.abs().argmax(dim=1, keepdim=True))
    assert bool((peaks > 0).all())


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 40), width=st.integers(1, 12), seed=st.integers(0, 9))
def test_any_shape_is_rebuilt_whole_at_full_rank(count: int, width: int, seed: int) -> None:
    rows_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    basis = fitted(rows_ND, width)
    assert basis.rank == width and basis.energies_D.shape == (width,)
    assert bool((basis.energies_D >= 0).all()) and bool((basis.energies_D.diff() <= 0).all())
    rebuilt_ND = project(rows_ND, basis) @ basis.basis_RD + basis.mean_D
    assert float((rebuilt_ND - rows_ND).abs().max()) < 1e-5


def test_only_the_upper_triangle_is_read() -> None:
    gram_DD, sum_D = sums(decaying_rows(300, 200))
    below = torch.ones_like(gram_DD).tril(-1).bool()
    ours = fit_basis(gram_DD, sum_D, 300, 9)
    noisy = fit_basis(torch.where(below, torch.full_like(gram_DD, 7.0), gram_DD), sum_D, 300, 9)
    assert torch.equal(ours.basis_RD, noisy.basis_RD) and torch.equal(ours.energies_D, noisy.energies_D)


def test_the_same_rows_give_the_same_bits() -> None:
    rows_ND = decaying_rows(1100, 130)
    first, second = fitted(rows_ND, 40), fitted(rows_ND.clone(), 40)
    assert torch.equal(first.basis_RD, second.basis_RD)
    assert torch.equal(project(rows_ND, first), project(rows_ND.clone(), second))


def test_sums_that_overflowed_are_refused() -> None:
    rows_ND = torch.tensor([[1.0, torch.inf]])
    with pytest.raises(ValueError, match="not finite"):
        fitted(rows_ND, 1)


def test_ranks() -> None:
    assert allocate_ranks("full", 3, 16) == (16, 16, 16)
    assert allocate_ranks(16, 2, 16) == (16, 16)
    for rank in (0, 17, -1):
        with pytest.raises(ValueError, match=f"rank is {rank}; rows of width 16 have 1 to 16"):
            allocate_ranks(rank, 2, 16)
