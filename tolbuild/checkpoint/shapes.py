"""Which tensors a config asks for, and whether some set of tensors is that."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that a weight may be stored in."""

_SHOWN = 8
"""Faults that a message lists; more are counted."""


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model of this config."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in MemoryLLM(config).state_dict().items()}


def check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse a set of tensors that is not exactly what the config asks for.

    Raises:
        ValueError: names every tensor that is missing, unexpected or of a wrong shape, with both shapes.
    """
    expected = expected_shapes(config)
    faults = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in shapes]
    faults += [
        f"wrong shape: {name} is {list(shapes[name])}, the config asks for {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    faults += [f"unexpected: {name} {list(shape)}" for name, shape in shapes.items() if name not in expected]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError(f"{where} is not the {config.kind} model of its config: {'; '.join(faults[:_SHOWN])}{more}")


def check_dtype(dtype: torch.dtype, name: str, where: str) -> None:
    """Refuse a type that weights do not have.

    Raises:
        ValueError: names the tensor and the types that are read.
    """
    if dtype not in WEIGHT_DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in WEIGHT_DTYPES)
        raise ValueError(f"{where}: tensor {name} is {str(dtype).removeprefix('torch.')}; expected one of {known}")


def check_finite(tensor: Tensor, name: str, where: str, first_row: int = 0) -> Tensor:
    """The tensor itself, if all its values are finite numbers.

    Args:
        first_row: index of the tensor's first row within the tensor `name`, for the message.

    Raises:
        ValueError: a NaN or an infinity, with its place.
    """
    if tensor.numel() == 0:
        return tensor
    low, high = torch.aminmax(tensor.detach())
    if torch.isfinite(low) and torch.isfinite(high):
        return tensor
    bad = (~torch.isfinite(tensor)).nonzero()
    place = bad[0].tolist()
    value = tensor[tuple(place)].item()
    place[0] += first_row
    raise ValueError(
        f"{where}: tensor {name} holds {len(bad)} values that are no numbers, the first {value} at {place}"
    )
