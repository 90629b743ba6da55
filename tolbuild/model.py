"""The three kinds of model: base, memory and flex, as plain torch modules.

One block L, with X0 the embedding of the token ids (arXiv 2602.00398):

    base    h = x + Attn(norm(x));  x' = h + FFN(norm(h))
    memory  x' = x + Attn(norm(x)) + FFN_L(LN_L(X0))
    flex    h = x + Attn(norm(x));  x' = h + FFN-C(norm(h)) + FFN-M(LN_L(X0))

FFN(z) = W_down((W_up z) * SiLU(W_gate z)). The memory term depends on the token id alone, so a forward computes it
once for each *unique* id of the batch, or takes it as looked-up rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tolbuild.config import ModelConfig


def initial_distribution(config: ModelConfig, name: str) -> tuple[float, float]:
    """Mean and standard deviation of a new model's weight of this name.

    N(0, initializer_range), output projections smaller by sqrt(2 L); norms at one, their biases at zero.
    """
    if "norm" in name:
        return (0.0 if name.endswith("bias") else 1.0), 0.0
    is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
    return 0.0, config.initializer_range / (math.sqrt(2 * config.num_hidden_layers) if is_output else 1.0)


def rope_tables(config: ModelConfig, positions_S: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary embedding, each fp32 [S, head_dim / 2], for int64 positions [S]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=positions_S.device) / half)
    angle = positions_S.float()[:, None] * frequency
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head of x [..., S, head_dim] by position (Llama's convention)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and, where num_key_value_heads is smaller, grouped queries."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.config = config
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention output [B, S, D]."""
        batch, length, _ = x_BSD.shape
        queries = self._heads(self.q_proj(x_BSD), self.config.num_attention_heads)
        keys = self._heads(self.k_proj(x_BSD), self.config.num_key_value_heads)
        values = self._heads(self.v_proj(x_BSD), self.config.num_key_value_heads)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        grouped = self.config.num_key_value_heads != self.config.num_attention_heads
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped)
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return projected

    def _heads(self, x_BSE: Tensor, num_heads: int) -> Tensor:
        batch, length, _ = x_BSE.shape
        return x_BSE.view(batch, length, num_heads, self.config.head_dim).transpose(1, 2)


class SwiGLU(nn.Module):
    """FFN(z) = W_down((W_up z) * SiLU(W_gate z)) with K hidden units."""

    def __init__(self, width: int, hidden_units: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_units, bias=False)
        self.up_proj = nn.Linear(width, hidden_units, bias=False)
        self.down_proj = nn.Linear(hidden_units, width, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """The network of z [..., D], in z's dtype."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(z)) * self.up_proj(z))
        return out


class Block(nn.Module):
    """One layer of any kind; which modules it has follows from the config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.kind
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        if config.has_context_ffn:
            self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = SwiGLU(config.hidden_size, config.context_intermediate_size)
        if config.has_memory:
            self.memory_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.memory_mlp = SwiGLU(config.hidden_size, config.memory_intermediate_size)

    def rows(self, embedding_ND: Tensor) -> Tensor:
        """The memory term FFN_L(LN_L(E)) [N, D] of N embeddings."""
        out: Tensor = self.memory_mlp(self.memory_layernorm(embedding_ND))
        return out

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, memory_BSD: Tensor | None) -> Tensor:
        """The residual stream after this layer; `memory_BSD` is None where there is no memory term to add."""
        h = x_BSD + self.self_attn(self.input_layernorm(x_BSD), cos, sin)
        if self.kind != "memory":
            h = h + self.mlp(self.post_attention_layernorm(h))
        out: Tensor = h if memory_BSD is None else h + memory_BSD
        return out


class Decoder(nn.Module):
    """Embedding, layers and final norm (Hugging Face's `model.` prefix)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not nn.Embedding(V, D): its own initialisation on the meta device imports torch._dynamo, 1 to 3 s and 90 MB.
        empty_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty_VD, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class MemoryLLM(nn.Module):
    """A model of any kind, to be filled by `reset_parameters` or from a checkpoint, whose names it has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_VD(self) -> Tensor:
        """The output projection [V, D], which a tied model shares with its embedding."""
        weight: Tensor = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return weight

    def reset_parameters(self, seed: int) -> None:
        """Draw every weight from its `initial_distribution`."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            mean, std = initial_distribution(self.config, name)
            if std:
                nn.init.normal_(parameter, mean=mean, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, mean)

    def hidden(self, token_ids_BS: Tensor, rows_NLD: Tensor | None = None, inverse_BS: Tensor | None = None) -> Tensor:
        """The normalised last hidden state [B, S, D].

        Args:
            token_ids_BS: int64.
            rows_NLD: looked-up rows of N tokens; a zero row leaves that layer's memory out. None computes them.
            inverse_BS: for each position, which of the N rows is its own; required with `rows_NLD`.

        Raises:
            ValueError: rows without `inverse_BS`, for a model without memory, or of the wrong shape.
        """
        self._check_rows(rows_NLD, inverse_BS)
        x = self.model.embed_tokens(token_ids_BS)
        cos, sin = rope_tables(self.config, torch.arange(token_ids_BS.shape[1], device=token_ids_BS.device))
        unique_N: Tensor | None = None
        if self.config.has_memory and rows_NLD is None:
            unique_N, inverse_BS = torch.unique(token_ids_BS, return_inverse=True)
        embedding_ND = None if unique_N is None else self.model.embed_tokens(unique_N)
        for index, layer in enumerate(self.model.layers):
            assert isinstance(layer, Block)
            memory = None
            if inverse_BS is not None and rows_NLD is not None:
                memory = F.embedding(inverse_BS, rows_NLD[:, index].to(x.dtype))
            elif inverse_BS is not None and embedding_ND is not None:
                memory = F.embedding(inverse_BS, layer.rows(embedding_ND))
            x = layer(x, cos, sin, memory)
        normed: Tensor = self.model.norm(x)
        return normed

    def _check_rows(self, rows_NLD: Tensor | None, inverse_BS: Tensor | None) -> None:
        if rows_NLD is None:
            return
        if not self.config.has_memory:
            raise ValueError(f"a {self.config.kind} model adds no looked-up rows")
        if inverse_BS is None:
            raise ValueError("rows_NLD needs inverse_BS: the row index of every position")
        expected = (self.config.num_hidden_layers, self.config.hidden_size)
        if tuple(rows_NLD.shape[1:]) != expected:
            raise ValueError(f"rows have shape {tuple(rows_NLD.shape)}; expected [N, {expected[0]}, {expected[1]}]")

    def forward(self, token_ids_BS: Tensor, rows_NLD: Tensor | None = None, inverse_BS: Tensor | None = None) -> Tensor:
        """Logits [B, S, V]; the arguments are those of `hidden`."""
        return F.linear(self.hidden(token_ids_BS, rows_NLD, inverse_BS), self.head_VD)
