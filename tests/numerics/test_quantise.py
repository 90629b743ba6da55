"""Codes of 8 bits: their error bounds, their saturation and the fit of their scales."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolbuild.compress.quantise import dequantise, fit_scales, quantise, sample_ids


def error_of(x_NC: Tensor, scale_C: Tensor) -> Tensor:
    return (dequantise(quantise(x_NC, scale_C), scale_C).double() - x_NC.double()).square().sum(dim=0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(1e-6, 1e6), scale=st.floats(1e-8, 1e8))
def test_error_is_half_a_step_inside_the_range_and_the_excess_beyond_it(seed: int, spread: float, scale: float) -> None:
    x_NC = spread * torch.randn(50, 3, generator=torch.Generator().manual_seed(seed))
    scale_C = torch.full((3,), scale)
    error_NC = (dequantise(quantise(x_NC, scale_C), scale_C).double() - x_NC.double()).abs()
    step_C, reach_C = scale_C.double(), 127 * scale_C.double()
    bound_NC = torch.maximum(step_C / 2, x_NC.double().abs() - reach_C)
    assert bool((error_NC <= bound_NC * (1 + 1e-4)).all())


def test_halves_go_to_even_and_extremes_saturate() -> None:
    x_NC = torch.tensor([[0.5], [1.5], [2.5], [-0.5], [-1.5], [126.6], [1e30], [-1e30], [0.0]])
    codes = quantise(x_NC, torch.ones(1)).flatten().tolist()
    assert codes == [0, 2, 2, 0, -2, 127, 127, -127, 0]


def test_the_scale_is_the_best_of_a_fine_search() -> None:
    x_NC = torch.randn(4096, 4, generator=torch.Generator().manual_seed(3))
    x_NC[17] = torch.tensor([5.0, 8.0, 20.0, 100.0])
    widest_C = x_NC.abs().amax(dim=0) / 127
    tried = torch.stack([error_of(x_NC, widest_C * share) for share in torch.linspace(0.2, 1.2, 401).tolist()])
    error_C = error_of(x_NC, fit_scales(x_NC))
    assert bool((error_C < error_of(x_NC, widest_C)).all())
    assert bool((error_C <= 1.02 * tried.amin(dim=0)).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), count=st.integers(1, 300), columns=st.integers(1, 70))
def test_fitted_scales_are_never_worse_than_the_largest_value(seed: int, count: int, columns: int) -> None:
    draw = np.random.default_rng(seed)
    x_NC = torch.from_numpy(draw.standard_t(2.5, (count, columns)).astype(np.float32))
    scale_C = fit_scales(x_NC)
    assert scale_C.shape == (columns,) and bool((scale_C > 0).all())
    widest = error_of(x_NC, x_NC.abs().amax(dim=0) / 127)
    assert bool((error_of(x_NC, scale_C) <= widest * (1 + 1e-4) + 1e-12).all())


def test_each_component_is_fitted_for_itself() -> None:
    x_NC = torch.randn(200, 130, generator=torch.Generator().manual_seed(5))
    alone_C = torch.cat([fit_scales(x_NC[:, c : c + 1]) for c in range(130)])
    assert torch.allclose(fit_scales(x_NC), alone_C, rtol=1e-6)


def test_components_without_values_keep_their_zeros() -> None:
    x_NC = torch.zeros(10, 3)
    x_NC[:, 1] = 1e-42
    scale_C = fit_scales(x_NC)
    assert scale_C.tolist() == [1.0, 1.0, 1.0]
    assert not quantise(x_NC, scale_C).any()


@given(vocab_size=st.integers(1, 300_000))
def test_the_sample_is_fixed_distinct_and_spread_evenly(vocab_size: int) -> None:
    ids = sample_ids(vocab_size)
    assert len(ids) == min(vocab_size, 4096) and ids[0] == 0 and ids[-1] < vocab_size
    if len(ids) > 1:
        gaps = np.diff(ids)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
        assert vocab_size - ids[-1] <= gaps.max() + 1
