"""Integer codes: their error bounds, their saturation and the fit of their scales, by component and by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tolbuild.compress.quantise import (
    Scales,
    choose_scales,
    dequantise,
    fit_scales,
    fit_token_scales,
    quantise,
    sample_ids,
)

LARGEST = pytest.mark.parametrize("largest", [127, 7])


def error_of(x_NC: Tensor, scale_C: Tensor, largest: int = 127) -> Tensor:
    return (dequantise(quantise(x_NC, scale_C, largest), scale_C).double() - x_NC.double()).square().sum(dim=0)


@LARGEST
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.floats(1e-6, 1e6), scale=st.floats(1e-8, 1e8))
def test_error_is_half_a_step_inside_the_range_and_the_excess_beyond_it(
    seed: int, spread: float, scale: float, largest: int
) -> None:
    x_NC = spread * torch.randn(50, 3, generator=torch.Generator().manual_seed(seed))
    scale_C = torch.full((3,), scale)
    error_NC = (dequantise(quantise(x_NC, scale_C, largest), scale_C).double() - x_NC.double()).abs()
    step_C, reach_C = scale_C.double(), largest * scale_C.double()
    bound_NC = torch.maximum(step_C / 2, x_NC.double().abs() - reach_C)
    assert bool((error_NC <= bound_NC * (1 + 1e-4)).all())


def test_halves_go_to_even_and_extremes_saturate() -> None:
    x_NC = torch.tensor([[0.5], [1.5], [2.5], [-0.5], [-1.5], [126.6], [1e30], [-1e30], [0.0]])
    codes = quantise(x_NC, torch.ones(1)).flatten().tolist()
    assert codes == [0, 2, 2, 0, -2, 127, 127, -127, 0]


@LARGEST
def test_the_scale_is_the_best_of_a_fine_search(largest: int) -> None:
    x_NC = torch.randn(4096, 4, generator=torch.Generator().manual_seed(3))
    x_NC[17] = torch.tensor([5.0, 8.0, 20.0, 100.0])
    widest_C = x_NC.abs().amax(dim=0) / largest
    shares = torch.linspace(0.05, 1.2, 401).tolist()
    tried = torch.stack([error_of(x_NC, widest_C * share, largest) for share in shares])
    error_C = error_of(x_NC, fit_scales(x_NC, largest), largest)
    assert bool((error_C <= (1 + 1e-6) * error_of(x_NC, widest_C, largest)).all())
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


def sized_tokens(count: int, columns: int, spread: float) -> Tensor:
    """Components that fall to 1/30, tokens whose sizes differ by exp(spread * normal); some are zero."""
    generator = torch.Generator().manual_seed(columns)
    x_NC = torch.randn(count, columns, generator=generator) * torch.logspace(0, -1.5, columns)
    x_NC *= torch.randn(count, 1, generator=generator).mul(spread).exp()
    x_NC[::50] = 0
    return x_NC


def error_with(x_NC: Tensor, scales: Scales, largest: int) -> float:
    token_N1 = fit_token_scales(x_NC, scales.scale_C, largest) if scales.by_token else torch.ones(len(x_NC), 1)
    codes_NC = quantise(x_NC / token_N1, scales.scale_C, largest)
    return float((dequantise(codes_NC, scales.scale_C) * token_N1 - x_NC).double().square().sum())


@LARGEST
@pytest.mark.parametrize("columns", [96, 200])
def test_a_scale_by_token_is_kept_where_tokens_differ_in_size(columns: int, largest: int) -> None:
    x_NC = sized_tokens(1000, columns, 1.0)
    scales = choose_scales(x_NC, largest)
    alone = error_with(x_NC, Scales(scale_C=fit_scales(x_NC, largest), by_token=False), largest)
    assert scales.by_token
    assert error_with(x_NC, scales, largest) < 0.25 * alone


@LARGEST
def test_a_scale_by_token_that_costs_more_than_it_saves_is_left_out(largest: int) -> None:
    """With 4 codes a token it costs 4 bits a code, which would make the error 256 times less."""
    x_NC = sized_tokens(1000, 4, 0.5)
    scales = choose_scales(x_NC, largest)
    assert not scales.by_token
    assert torch.equal(scales.scale_C, fit_scales(x_NC, largest))
    steps = torch.randint(-largest, largest + 1, (1000, 64), generator=torch.Generator().manual_seed(0)).float()
    assert not choose_scales(steps, largest).by_token, "values that are codes already have no error to lower"


@LARGEST
@settings(max_examples=30, deadline=None)
@given(size=st.floats(1e-15, 1e15), seed=st.integers(0, 100))
def test_scales_by_token_are_normal_numbers_of_fp16_and_fit_their_token(size: float, seed: int, largest: int) -> None:
    x_NC = size * torch.randn(20, 33, generator=torch.Generator().manual_seed(seed))
    x_NC[3] = 0
    scale_C = torch.full((33,), size / largest)
    token_N1 = fit_token_scales(x_NC, scale_C, largest)
    assert torch.equal(token_N1.half().float(), token_N1) and bool((token_N1 >= 2.0**-14).all())
    error_N = (dequantise(quantise(x_NC / token_N1, scale_C, largest), scale_C) * token_N1 - x_NC).double().norm(dim=1)
    widest_N1 = (x_NC / scale_C).abs().amax(dim=1, keepdim=True).clamp(min=1e-3) / largest
    widest = dequantise(quantise(x_NC / widest_N1, scale_C, largest), scale_C) * widest_N1
    assert bool((error_N <= 1.1 * (widest - x_NC).double().norm(dim=1)).all()) and float(error_N[3]) == 0


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
