"""FFN rows of a range of tokens: what a layer's memory adds, as a plain function of the tokens' embeddings.

    row_L(v) = FFN_L(LN_L(E[v])),  FFN(z) = W_down((W_up z) * SiLU(W_gate z))     (arXiv 2602.00398)

The bits of a row depend on the shape of the product that it was computed in, so rows are always computed in chunks of
one fixed size: whoever computes a chunk, alone or among others, gets the same bits. One kernel thread (callers set it
with torch.set_num_threads(1)); parallelism is over chunks, layers and processes: torch's products release the GIL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS = 64
"""Token ids in a block of the table; chunks are whole blocks."""

MAX_CHUNK_ROWS = 2048
"""Beyond this a product gains nothing, and a worker's memory grows."""

_TILE_ROWS = 512
"""Rows of one product on a CPU: 512 reach 0.96 of a large square product, 2048 0.98 with four times the scratch."""

_ALIGNMENT_BYTES = 64
"""BLAS may add in another order where an operand starts off a cache line, as a tensor in a mapped file can."""


@dataclass(frozen=True, kw_only=True)
class MemoryFFN:
    """One layer's LayerNorm and SwiGLU, as `ffn_rows` wants them: contiguous, aligned, on one device.

    norm_weight_D, norm_bias_D: fp32. gate_up_2KD: the K rows of W_gate, then the K rows of W_up. down_DK: W_down.
    gate_up and down have the type that products are computed in: fp32, or bf16 or fp16 on a GPU.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    norm_weight_D: Tensor
    norm_bias_D: Tensor
    gate_up_2KD: Tensor
    down_DK: Tensor
    eps: float

    def __post_init__(self) -> None:
        width, hidden = self.down_DK.shape
        expected = {
            "norm_weight_D": (width,),
            "norm_bias_D": (width,),
            "gate_up_2KD": (2 * hidden, width),
            "down_DK": (width, hidden),
        }
        for name, shape in expected.items():
            tensor: Tensor = getattr(self, name)
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}; W_down {[width, hidden]} asks for {list(shape)}"
                )
            object.__setattr__(self, name, _aligned(tensor.float() if name.startswith("norm") else tensor))

    @property
    def hidden_units(self) -> int:
        """K, the width of the hidden layer."""
        return self.down_DK.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MemoryFFN:
        """The same on another device, its products in `dtype` (None keeps the type); norms stay fp32."""
        return MemoryFFN(
            norm_weight_D=self.norm_weight_D.to(device),
            norm_bias_D=self.norm_bias_D.to(device),
            gate_up_2KD=self.gate_up_2KD.to(device, dtype),
            down_DK=self.down_DK.to(device, dtype),
            eps=self.eps,
        )


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone()


def chunk_rows(shard_rows: int) -> int:
    """Rows of a chunk for shards of `shard_rows`: the largest multiple of 64 that divides it, at most 2048.

    Raises:
        ValueError: `shard_rows` is no positive multiple of 64.
    """
    if shard_rows < BLOCK_ROWS or shard_rows % BLOCK_ROWS:
        raise ValueError(f"shard_rows is {shard_rows}; it must be a positive multiple of {BLOCK_ROWS}")
    candidates = range(min(shard_rows, MAX_CHUNK_ROWS), 0, -BLOCK_ROWS)
    return next(rows for rows in (c // BLOCK_ROWS * BLOCK_ROWS for c in candidates) if shard_rows % rows == 0)


def ffn_rows(embedding_ND: Tensor, ffn: MemoryFFN, *, out: Tensor | None = None) -> Tensor:
    """FFN(LN(E)) [N, D] in fp32 of N embeddings on the network's device.

    The normalisation is fp32, products are in the network's type. Equal N gives equal bits for equal rows; another N
    need not. Give `out` (fp32 [N, D], contiguous) where the result should go.

    Raises:
        ValueError: embeddings of another width than the network's.
    """
    count, width = embedding_ND.shape
    if width != ffn.down_DK.shape[0]:
        raise ValueError(f"embeddings have width {width}; the network has {ffn.down_DK.shape[0]}")
    if out is None:
        out = torch.empty((count, width), dtype=torch.float32, device=embedding_ND.device)
    assert out.shape == embedding_ND.shape and out.dtype == torch.float32
    tile = count if embedding_ND.is_cuda else _TILE_ROWS
    scratch = torch.empty((min(tile, count), 2 * ffn.hidden_units), dtype=ffn.down_DK.dtype, device=embedding_ND.device)
    for start in range(0, count, max(tile, 1)):
        part_ND = embedding_ND[start : start + tile]
        _tile_rows(part_ND, ffn, scratch[: len(part_ND)], out[start : start + tile])
    return out


def _tile_rows(embedding_ND: Tensor, ffn: MemoryFFN, scratch: Tensor, out_ND: Tensor) -> None:
    width, hidden = ffn.down_DK.shape
    z_ND = F.layer_norm(embedding_ND.float(), (width,), ffn.norm_weight_D, ffn.norm_bias_D, ffn.eps)
    torch.mm(z_ND.to(scratch.dtype), ffn.gate_up_2KD.t(), out=scratch)
    gate_NK, up_NK = scratch[:, :hidden], scratch[:, hidden:]
    F.silu(gate_NK, inplace=True).mul_(up_NK)
    if scratch.dtype == out_ND.dtype:
        torch.mm(gate_NK, ffn.down_DK.t(), out=out_ND)
    else:
        out_ND.copy_(torch.mm(gate_NK, ffn.down_DK.t()))


def compute_rows(embedding_ND: Tensor, ffn: MemoryFFN, *, chunk: int) -> Tensor:
    """FFN(LN(E)) [N, D] in fp32 of any number of embeddings, in chunks from the first row on.

    A short last chunk is filled up with zeros before it is computed, so that a row's bits depend on the chunk that it
    is in and on nothing else. The bits are those of a build whose chunks start at the same tokens.
    """
    count = len(embedding_ND)
    out = torch.empty(embedding_ND.shape, dtype=torch.float32, device=embedding_ND.device)
    for start in range(0, count, chunk):
        part_ND = embedding_ND[start : start + chunk]
        if len(part_ND) == chunk:
            ffn_rows(part_ND, ffn, out=out[start : start + chunk])
        else:
            padded_ND = F.pad(part_ND, (0, 0, 0, chunk - len(part_ND)))
            out[start:] = ffn_rows(padded_ND, ffn)[: len(part_ND)]
    return out
