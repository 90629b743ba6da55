"""Integer codes: code = round(x / (s_token * s_component)), scales fitted by error on a fixed sample of tokens.

A maximum over a whole vocabulary is set by a few tokens that hardly occur, so a component's scale is chosen by the
squared error of an even sample of the tokens, clipping included; values beyond it saturate. s_token, where there is
one, is chosen for each token in the same way over its components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SAMPLE = 4096
"""Tokens that scales are fitted on."""

LARGEST_CODE = 127
"""Codes of 8 bits are -127 to 127, symmetric about zero; those of 4 bits, -7 to 7."""

_EIGHT_BITS = tuple(1 - 0.005 * step for step in range(7))
"""Shares of the sample's largest value that the largest code may stand for. Clipping at c costs the sum of (|x| - c)^2
over the values beyond it and saves on N c^2 / (12 * 127^2): with N <= 4096 the least error lies above 0.979 of the
largest value."""

_FEW_BITS = tuple(0.915**step for step in range(24))
"""The same for 4 bits, where N c^2 / (12 * 7^2) puts the least error above 0.125 of the largest value."""

_TOKEN_SHARES = {127: tuple(1 - 0.004 * step for step in range(4)), 7: tuple(0.92**step for step in range(8))}
"""Shares of a token's largest value that are tried for its s_token, by the largest code. It is fitted for every token
that is stored, so they are few. Clipping gains nothing with 8 bits, but of some steps one rounds best."""

_NOTHING = 1e-30
"""Steps for values below this would leave the range of fp32's normal numbers."""

_LEAST_SCALE, _LARGEST_SCALE = 2.0**-14, 65504.0
"""An s_token is a normal number of fp16. It is near 1: the components' scales have the size of the values."""

_SCALE_BITS = 16

_ROUNDS = 2
"""Times that s_component is fitted, then s_token to it; more rounds gain less than 3 % of the squared error."""

_COMPONENTS_AT_ONCE = 64
"""Components fitted together: 64 x 4096 fp32 values are 1 MiB, which stays in cache over the passes."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """How codes of one layer are scaled. scale_C: fp32, s_component. by_token: whether there is an s_token too."""

    scale_C: Tensor
    by_token: bool


def sample_ids(vocab_size: int) -> NDArray[np.int64]:
    """At most 4096 token ids, ascending and evenly spaced over the vocabulary; the same for the same V."""
    count = min(vocab_size, MAX_SAMPLE)
    return np.arange(count, dtype=np.int64) * vocab_size // count


def choose_scales(sample_NC: Tensor, largest: int) -> Scales:
    """Scales by component, and by token too where that pays.

    s_token costs 16 bits a row, which spent on the codes would divide the squared error by 4 for each bit a code: it is
    chosen where it divides the sample's error by more.
    """
    alone_C = fit_scales(sample_NC, largest)
    size_N = (sample_NC / alone_C).square_().mean(dim=1).sqrt_()
    size_N = torch.where(size_N > 0, size_N / size_N.mean().clamp(min=_NOTHING), torch.ones_like(size_N))
    token_N1 = size_N[:, None]
    for _ in range(_ROUNDS):
        shared_C = fit_scales(sample_NC / token_N1, largest, weight_N=token_N1[:, 0].square())
        token_N1 = fit_token_scales(sample_NC, shared_C, largest)
    error = _squared_error(sample_NC, quantise(sample_NC, alone_C, largest), alone_C)
    coded_NC = quantise(sample_NC / token_N1, shared_C, largest)
    by_token = _squared_error(sample_NC, coded_NC, token_N1 * shared_C) * 4 ** (_SCALE_BITS / len(alone_C)) < error
    return Scales(scale_C=shared_C if by_token else alone_C, by_token=by_token)


def fit_scales(sample_NC: Tensor, largest: int = LARGEST_CODE, *, weight_N: Tensor | None = None) -> Tensor:
    """The scale of each component, fp32 [C], that gives the least squared error on a sample.

    Args:
        sample_NC: fp32, the values of N sampled tokens.
        largest: code.
        weight_N: how much each token's squared error counts; all the same where left out.

    A component without a value beyond 1e-30 counts as zero throughout and gets the scale 1.
    """
    parts = torch.split(sample_NC, _COMPONENTS_AT_ONCE, dim=1)
    return torch.cat([_fit_some(part_NC.t().contiguous(), largest, weight_N) for part_NC in parts])


def _fit_some(x_CN: Tensor, largest: int, weight_N: Tensor | None) -> Tensor:
    largest_C = x_CN.abs().amax(dim=1)
    largest_C = torch.where(largest_C > _NOTHING, largest_C, torch.full_like(largest_C, largest))
    best_C = torch.full_like(largest_C, torch.inf)
    scale_C = largest_C / largest
    work_CN = torch.empty_like(x_CN)
    for share in _EIGHT_BITS if largest == LARGEST_CODE else _FEW_BITS:
        step_C = largest_C * (share / largest)
        torch.div(x_CN, step_C[:, None], out=work_CN)
        work_CN.round_().clamp_(-largest, largest).mul_(step_C[:, None]).sub_(x_CN).square_()
        error_C = work_CN.sum(dim=1) if weight_N is None else work_CN @ weight_N
        scale_C = torch.where(error_C < best_C, step_C, scale_C)
        best_C = torch.minimum(error_C, best_C)
    return scale_C


def fit_token_scales(x_NC: Tensor, scale_C: Tensor, largest: int) -> Tensor:
    """The s_token of each token, fp32 [N, 1] with values of fp16, that gives the least of some tried squared errors.

    Args:
        x_NC: fp32.
        scale_C: s_component.
    """
    y_NC, size_C = x_NC / scale_C, scale_C / scale_C.amax()
    widest_N1 = y_NC.abs().amax(dim=1, keepdim=True) / largest
    token_N1 = _fp16(widest_N1)
    best_N1 = torch.full_like(token_N1, torch.inf)
    for share in _TOKEN_SHARES[largest]:
        tried_N1 = _fp16(widest_N1 * share)
        codes_NC = torch.div(y_NC, tried_N1).round_().clamp_(-largest, largest)
        error_N1 = codes_NC.mul_(tried_N1).sub_(y_NC).mul_(size_C).square_().sum(dim=1, keepdim=True)
        token_N1 = torch.where(error_N1 < best_N1, tried_N1, token_N1)
        best_N1 = torch.minimum(error_N1, best_N1)
    return token_N1


def _fp16(scale_N1: Tensor) -> Tensor:
    """The nearest normal numbers of fp16, as fp32."""
    return scale_N1.clamp(_LEAST_SCALE, _LARGEST_SCALE).half().float()


def quantise(x_NC: Tensor, scale_C: Tensor, largest: int = LARGEST_CODE) -> Tensor:
    """int8 codes [N, C]: x / scale rounded half to even, saturated at -largest and largest.

    Where |x| <= largest * scale, |x - code * scale| <= scale / 2 up to fp32 rounding.
    """
    return torch.div(x_NC, scale_C).round_().clamp_(-largest, largest).to(torch.int8)


def dequantise(codes_NC: Tensor, scale_C: Tensor) -> Tensor:
    """What codes stand for: codes * scale, fp32 [N, C]."""
    return codes_NC.to(torch.float32) * scale_C


def _squared_error(x_NC: Tensor, codes_NC: Tensor, scale: Tensor) -> float:
    return float((dequantise(codes_NC, scale) - x_NC).double().square().sum())
