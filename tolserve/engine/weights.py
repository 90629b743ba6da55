"""A checkpoint's weights as a step uses them: fused, input dimension first, heads ordered for fast rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tolbuild.config import ModelConfig


class TensorSource(Protocol):
    """Where weights come from: an open checkpoint."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One layer on the device.

    `merge_ED` is the product that ends the layer's last contextual branch, where the memory term is added too: the
    output projection of a memory model, the down projection of the others (which then have `out_ED` besides). Rows
    of a low-rank basis follow in it, and `merge_bias_D` is then their mean.
    """

    attention_norm_D: Tensor
    qkv_DE: Tensor
    merge_ED: Tensor
    merge_bias_D: Tensor | None = None
    out_ED: Tensor | None = None
    context_norm_D: Tensor | None = None
    gate_up_D2K: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ModelWeights:
    """All weights that attention nodes hold; the memory networks are not among them."""

    embedding_VD: Tensor
    layers: tuple[LayerWeights, ...]
    norm_D: Tensor
    head_DV: Tensor


def interleave_halves(weight_ED: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection reordered so that rotated pairs (i, i + head_dim / 2) lie side by side.

    Scores do not change, since queries and keys are reordered alike; rotation becomes one complex product.
    """
    pairs = weight_ED.view(-1, 2, head_dim // 2, weight_ED.shape[1])
    return pairs.transpose(1, 2).reshape(weight_ED.shape)


def load_merges(source: TensorSource, *, dtype: torch.dtype, device: torch.device) -> tuple[LayerWeights, ...]:
    """Of every layer the product that memory terms are added with, and no other weight (those are empty)."""
    name = "mlp.down_proj" if source.config.has_context_ffn else "self_attn.o_proj"
    empty = torch.empty(0, dtype=dtype, device=device)
    return tuple(
        LayerWeights(
            attention_norm_D=empty,
            qkv_DE=empty,
            merge_ED=source.tensor(f"model.layers.{index}.{name}.weight").to(dtype).t().contiguous().to(device),
        )
        for index in range(source.config.num_hidden_layers)
    )


def load_weights(source: TensorSource, *, dtype: torch.dtype, device: torch.device) -> ModelWeights:
    """Read and fuse the weights of `source`; a tied head is a view of the embedding."""
    config = source.config

    def load(name: str) -> Tensor:
        return source.tensor(name).to(dtype)

    def place(weight: Tensor) -> Tensor:
        return weight.contiguous().to(device)

    embedding = place(load("model.embed_tokens.weight"))
    head = embedding if config.tie_word_embeddings else place(load("lm_head.weight"))
    layers = []
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        queries, keys = (
            interleave_halves(load(f"{prefix}self_attn.{name}_proj.weight"), config.head_dim) for name in ("q", "k")
        )
        values = load(f"{prefix}self_attn.v_proj.weight")
        out = place(load(f"{prefix}self_attn.o_proj.weight").t())
        common = {
            "attention_norm_D": place(load(f"{prefix}input_layernorm.weight")),
            "qkv_DE": place(torch.cat((queries, keys, values)).t()),
        }
        if not config.has_context_ffn:
            layers.append(LayerWeights(merge_ED=out, **common))
            continue
        gate_up = torch.cat([load(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up")])
        layers.append(
            LayerWeights(
                merge_ED=place(load(f"{prefix}mlp.down_proj.weight").t()),
                out_ED=out,
                context_norm_D=place(load(f"{prefix}post_attention_layernorm.weight")),
                gate_up_D2K=place(gate_up.t()),
                **common,
            )
        )
    return ModelWeights(
        embedding_VD=embedding,
        layers=tuple(layers),
        norm_D=place(load("model.norm.weight")),
        head_DV=head.t(),
    )
