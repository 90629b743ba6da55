"""Codes of 8 bits: code = round(x / scale), one scale a component, fitted by error on a fixed sample of tokens.

A maximum over a whole vocabulary is set by a few tokens that hardly occur, so the scale is chosen by the squared error
of an even sample of the tokens, clipping included; values beyond it saturate.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SAMPLE = 4096
"""Tokens that scales are fitted on."""

LARGEST_CODE = 127
"""Codes are -127 to 127, symmetric about zero."""

_CLIPPING = tuple(1 - 0.005 * step for step in range(7))
"""Shares of the sample's largest value that the largest code may stand for. Clipping at c costs the sum of (|x| - c)^2
over the values beyond it and saves on N c^2 / (12 * 127^2): with N <= 4096 the least error lies above 0.979 of the
largest value."""

_NOTHING = 1e-30
"""Steps for values below this would leave the range of fp32's normal numbers."""

_COMPONENTS_AT_ONCE = 64
"""Components fitted together: 64 x 4096 fp32 values are 1 MiB, which stays in cache over the passes."""


def sample_ids(vocab_size: int) -> NDArray[np.int64]:
    """At most 4096 token ids, ascending and evenly spaced over the vocabulary; the same for the same V."""
    count = min(vocab_size, MAX_SAMPLE)
    return np.arange(count, dtype=np.int64) * vocab_size // count


def fit_scales(sample_NC: Tensor) -> Tensor:
    """The scale of each component, fp32 [C], that gives the least squared error on a sample.

    Args:
        sample_NC: fp32, the values of N sampled tokens.

    A component without a value beyond 1e-30 counts as zero throughout and gets the scale 1.
    """
    parts = torch.split(sample_NC, _COMPONENTS_AT_ONCE, dim=1)
    return torch.cat([_fit_some(part_NC.t().contiguous()) for part_NC in parts])


def _fit_some(x_CN: Tensor) -> Tensor:
    largest_C = x_CN.abs().amax(dim=1)
    largest_C = torch.where(largest_C > _NOTHING, largest_C, torch.full_like(largest_C, LARGEST_CODE))
    best_C = torch.full_like(largest_C, torch.inf)
    scale_C = largest_C / LARGEST_CODE
    work_CN = torch.empty_like(x_CN)
    for share in _CLIPPING:
        step_C = largest_C * (share / LARGEST_CODE)
        torch.div(x_CN, step_C[:, None], out=work_CN)
        work_CN.round_().clamp_(-LARGEST_CODE, LARGEST_CODE).mul_(step_C[:, None]).sub_(x_CN)
        error_C = work_CN.square_().sum(dim=1)
        scale_C = torch.where(error_C < best_C, step_C, scale_C)
        best_C = torch.minimum(error_C, best_C)
    return scale_C


def quantise(x_NC: Tensor, scale_C: Tensor) -> Tensor:
    """int8 codes [N, C]: x / scale rounded half to even, saturated at -127 and 127.

    Where |x| <= 127 scale, |x - code * scale| <= scale / 2 up to fp32 rounding.
    """
    return torch.div(x_NC, scale_C).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)


def dequantise(codes_NC: Tensor, scale_C: Tensor) -> Tensor:
    """What codes stand for: codes * scale, fp32 [N, C]."""
    return codes_NC.to(torch.float32) * scale_C
