"""One way to give a model its memory: dense, or rows from somewhere, scaled, with layers left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.model import Block, MemoryLLM

RowsOf = Callable[[NDArray[np.int64]], Tensor]
"""Rows fp32 [n, L, D] of n token ids."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """x' = x + Attn(norm(x)) + alpha * row: the model with rows of one origin.

    rows_of: None computes the dense networks. alpha: factor on every memory term. drop_layers: layers without one.
    """

    name: str
    rows_of: RowsOf | None = None
    alpha: float = 1.0
    drop_layers: tuple[int, ...] = ()

    def check(self, model: MemoryLLM) -> None:
        """Refuse what the model cannot do.

        Raises:
            ValueError: a model without memory, or a layer that it does not have.
        """
        if (self.rows_of or self.alpha != 1 or self.drop_layers) and not model.config.has_memory:
            raise ValueError(f"a {model.config.kind} model has no memory to look up, scale or drop")
        wrong = [layer for layer in self.drop_layers if not 0 <= layer < model.config.num_hidden_layers]
        if wrong:
            raise ValueError(f"layers {wrong} cannot be dropped; the model has {model.config.num_hidden_layers}")

    def hidden(self, model: MemoryLLM, ids_BS: Tensor) -> Tensor:
        """The model's normalised last hidden state [B, S, D] for token ids int64 [B, S]."""
        if self.rows_of is None and self.alpha == 1 and not self.drop_layers:
            return model.hidden(ids_BS)
        unique_N, inverse_BS = torch.unique(ids_BS, return_inverse=True)
        rows_NLD = dense_rows(model, unique_N) if self.rows_of is None else self.rows_of(unique_N.cpu().numpy())
        rows_NLD = rows_NLD.to(ids_BS.device) * self.alpha
        rows_NLD[:, list(self.drop_layers)] = 0
        return model.hidden(ids_BS, rows_NLD, inverse_BS)


def dense_rows(model: MemoryLLM, ids_N: Tensor) -> Tensor:
    """Rows [N, L, D] of the model's own networks."""
    embedding_ND = model.model.embed_tokens(ids_N)
    blocks = [block for block in model.model.layers if isinstance(block, Block)]
    return torch.stack([block.rows(embedding_ND) for block in blocks], dim=1)
