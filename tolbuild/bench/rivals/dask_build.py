"""A table by a straightforward pipeline of dask and zarr: what one would write who has no builder.

The same work as `python -m tolbuild.run --rank R --codes int8`: rows, mean, fp64 Gram matrix, components, codes in
int8 with a scale a component, and the error of every layer. Without what makes a build last: no checksums, no fsync, no
receipts, no resuming; scales are the largest value's, not fitted; and a layer's rows all stay in memory meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tolbuild.bench.rivals.cores import all_to_one_kernel, thread_a_core
from tolbuild.bench.rivals.modes import load

PIECE_ROWS = 4096

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A layer's tensors as the checkpoint names them."""

    norm_weight_D: torch.Tensor
    norm_bias_D: torch.Tensor
    gate_KD: torch.Tensor
    up_KD: torch.Tensor
    down_DK: torch.Tensor

    def rows(self, embedding_ND: Floats) -> Floats:
        """FFN(LN(E)) [N, D] of a piece of the embedding."""
        torch.set_num_threads(1)
        x_ND = torch.from_numpy(embedding_ND)
        z_ND = F.layer_norm(x_ND, x_ND.shape[-1:], self.norm_weight_D, self.norm_bias_D)
        hidden_NK = F.silu(z_ND @ self.gate_KD.t()) * (z_ND @ self.up_KD.t())
        rows_ND: Floats = (hidden_NK @ self.down_DK.t()).numpy()
        return rows_ND


def build(checkpoint: Path, table: Path, rank: int) -> list[float]:
    """Write int8 codes, bases, means and scales of every layer as zarr arrays; returns each layer's relative error."""
    safetensors, array, zarr = load("safetensors"), load("dask.array"), load("zarr")
    group = zarr.create_group(table)
    errors = []
    with safetensors.safe_open(checkpoint / "model.safetensors", framework="pt") as weights, thread_a_core():
        embedding_VD = weights.get_tensor("model.embed_tokens.weight").float().numpy()
        pieces_VD = array.from_array(embedding_VD, chunks=(PIECE_ROWS, embedding_VD.shape[1]))
        layer = 0
        while f"model.layers.{layer}.memory_mlp.gate_proj.weight" in weights.keys():  # noqa: SIM118 - no mapping
            network = _network(weights, layer)
            rows_VD = pieces_VD.map_blocks(network.rows, dtype=np.float32).persist()
            errors.append(_write_layer(group, layer, rows_VD, rank))
            layer += 1
    return errors


def _network(weights: Any, layer: int) -> Network:
    def tensor(name: str) -> torch.Tensor:
        found: torch.Tensor = weights.get_tensor(f"model.layers.{layer}.{name}").float()
        return found

    return Network(
        norm_weight_D=tensor("memory_layernorm.weight"),
        norm_bias_D=tensor("memory_layernorm.bias"),
        gate_KD=tensor("memory_mlp.gate_proj.weight"),
        up_KD=tensor("memory_mlp.up_proj.weight"),
        down_DK=tensor("memory_mlp.down_proj.weight"),
    )


def _write_layer(group: Any, layer: int, rows_VD: Any, rank: int) -> float:
    dask, array = load("dask"), load("dask.array")
    rows64_VD = rows_VD.astype(np.float64)
    gram_DD, mean_D = dask.compute(array.dot(rows64_VD.T, rows64_VD), rows64_VD.mean(axis=0))
    gram_DD -= len(rows_VD) * np.outer(mean_D, mean_D)
    mean_D = mean_D.astype(np.float32)
    with all_to_one_kernel():
        vectors_DD = np.linalg.eigh(gram_DD)[1]
    basis_RD = np.ascontiguousarray(vectors_DD[:, ::-1][:, :rank].T, np.float32)
    codes_VR = ((rows_VD - mean_D) @ basis_RD.T).persist()
    scale_R = (abs(codes_VR).max(axis=0) / np.float32(127)).compute()
    packed_VR = array.round(codes_VR / scale_R).clip(-127, 127).astype(np.int8)
    rebuilt_VD = (packed_VR.astype(np.float32) * scale_R) @ basis_RD + mean_D
    target = group.create_array(
        f"codes_{layer}", shape=packed_VR.shape, dtype="int8", chunks=(PIECE_ROWS, rank), compressors=None
    )
    stored = array.store(packed_VR, target, lock=False, compute=False)
    squared, missed = (rows_VD**2).sum(), ((rebuilt_VD - rows_VD) ** 2).sum()
    _, total, lost = dask.compute(stored, squared, missed)
    for name, values in (("basis", basis_RD), ("mean", mean_D), ("scale", scale_R)):
        group.create_array(f"{name}_{layer}", data=values)
    return float(np.sqrt(lost / total))
