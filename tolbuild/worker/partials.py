"""What pass 1 leaves under `_build/` for a resumed build: named tensors in one object that carries its own checksum."""

from __future__ import annotations

import hashlib

import safetensors.torch
import torch
from torch import Tensor

from tolbuild.grid import PartialCell
from tolbuild.plan import Plan
from tolbuild.table.errors import TableCorruptError

_DIGEST_BYTES = 32


def build_prefix(plan: Plan) -> str:
    """Folder of everything that goes after the commit."""
    return f"_build/{plan.plan_hash}"


def partial_key(plan: Plan, cell: PartialCell) -> str:
    """Key of a cell's result."""
    return f"{build_prefix(plan)}/{cell.name}"


def weights_key(plan: Plan) -> str:
    """Key of the tokens' weights, which the driver leaves for the workers: fp64 `weights` [V]."""
    return f"{build_prefix(plan)}/weights"


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors (CPU, contiguous) as bytes: a safetensors document and its SHA-256. Equal tensors give equal bytes."""
    body = safetensors.torch.save(tensors)
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes, name: str) -> dict[str, Tensor]:
    """What `pack` was given.

    Raises:
        TableCorruptError: the bytes are not what was packed.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise TableCorruptError(f"{name}: {len(data)} bytes that do not have the checksum at their end", [name])
    return safetensors.torch.load(body)


def pack_upper(gram_DD: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix, row by row, as a vector of D (D + 1) / 2."""
    rows, columns = torch.triu_indices(len(gram_DD), len(gram_DD)).unbind()
    return gram_DD.cpu()[rows, columns]


def unpack_upper(upper: Tensor, width: int) -> Tensor:
    """The symmetric matrix [D, D] of `pack_upper`'s vector."""
    rows, columns = torch.triu_indices(width, width).unbind()
    gram_DD = torch.empty((width, width), dtype=upper.dtype)
    gram_DD[rows, columns] = upper
    gram_DD[columns, rows] = upper
    return gram_DD
