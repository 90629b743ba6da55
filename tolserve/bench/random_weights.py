"""Random weights of any shape, for benches that need a model's arithmetic and not its words."""

from __future__ import annotations

import torch
from torch import Tensor

from tolbuild.config import ModelConfig


class RandomWeights:
    """A source of weights (`engine.weights.TensorSource`) that draws each tensor when it is asked for."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: str) -> None:
        self.config = config
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str) -> Tensor:
        """N(0, initializer_range); ones for norms."""
        shape = self._shape(name)
        if len(shape) == 1:
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        weight = torch.empty(shape, dtype=self._dtype, device=self._device)
        return weight.normal_(std=self.config.initializer_range)

    def _shape(self, name: str) -> tuple[int, ...]:
        config = self.config
        width, hidden = config.hidden_size, config.context_intermediate_size
        heads, kv_heads = (
            count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens": (config.vocab_size, width),
            "q_proj": (heads, width),
            "k_proj": (kv_heads, width),
            "v_proj": (kv_heads, width),
            "o_proj": (width, heads),
            "gate_proj": (hidden, width),
            "up_proj": (hidden, width),
            "down_proj": (width, hidden),
        }
        return shapes.get(name.split(".")[-2], (width,))
