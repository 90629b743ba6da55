"""One step of the model: N tokens of many sequences through all layers, rows added where they are due.

    base    h = x + Attn(norm(x));  x' = h + FFN(norm(h))
    memory  x' = x + Attn(norm(x)) + alpha * row_L
    flex    h = x + Attn(norm(x));  x' = h + FFN-C(norm(h)) + alpha * row_L

Low-rank rows cost one longer product: memory [attn, codes] @ [W_o; basis] + mean, flex [act, codes] @ [W_down; basis]
+ mean. See `segments` for where a step waits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tolbuild.config import ModelConfig
from tolserve.engine.attention import chunk_attention
from tolserve.engine.expand import MemoryTerms
from tolserve.engine.flow import Flow, LayerProducts, StepTensors
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.product import make_product
from tolserve.engine.segments import Half, Segment, plan_segments
from tolserve.engine.weights import LayerWeights, ModelWeights


class StepModel:
    """Weights, memory terms and KV cache of one model; computes steps, knows no requests."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, cache: KVCache, terms: MemoryTerms | None) -> None:
        self.config = config
        self._embedding_VD = weights.embedding_VD
        self._layers = [LayerProducts.of(layer) for layer in weights.layers]
        self._norm_D = weights.norm_D
        self._head = make_product(weights.head_DV)
        self.cache = cache
        self.terms = terms
        self.segments = plan_segments(config.num_hidden_layers, terms.requested if terms else {})
        self._rotations_PF = _rotations(config, cache.table.shape[1] * cache.block_size, cache.keys.device)
        head_dim = config.head_dim
        self._key_pools = [pool.view(-1, head_dim) for pool in cache.keys]
        self._value_pools = [pool.view(-1, head_dim) for pool in cache.values]

    def with_terms(self, merges: Sequence[LayerWeights], terms: MemoryTerms | None) -> StepModel:
        """This model with other memory terms: it shares the KV cache and all weights but the `merges` of the layers."""
        other = copy.copy(self)
        other.terms = terms
        other._layers = [
            replace(layer, merge=make_product(merge.merge_ED, merge.merge_bias_D))
            for layer, merge in zip(self._layers, merges, strict=True)
        ]
        other.segments = plan_segments(self.config.num_hidden_layers, terms.requested if terms else {})
        return other

    @property
    def device(self) -> torch.device:
        """Where steps are computed."""
        return self.cache.keys.device

    @property
    def bands(self) -> tuple[int, ...]:
        """Bands that a step waits for, in order."""
        return tuple(s.band for s in self.segments if s.band is not None)

    def forward(
        self,
        step: StepTensors,
        receive: Callable[[int], Tensor],
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """The residual stream [N, D] behind the last layer.

        Args:
            receive: gives a band's rows as stored when they are due.
            watch: is shown each segment's number and the residual stream behind it, which the next one overwrites.
        """
        flow = self.begin(step)
        for index, segment in enumerate(self.segments):
            if segment.band is not None:
                flow.received[segment.band] = receive(segment.band)
            self.run(segment, flow)
            if watch is not None:
                watch(index, flow.x_ND)
        return flow.x_ND

    def begin(self, step: StepTensors) -> Flow:
        """Embed the step's tokens."""
        x_ND = F.embedding(step.token_ids_N, self._embedding_VD)
        return Flow(step=step, x_ND=x_ND, rotation_N1F=self._rotations_PF[step.positions_N].unsqueeze(1))

    def run(self, segment: Segment, flow: Flow) -> None:
        """Compute one segment; its band is in `flow.received`."""
        for half in segment.halves:
            self._run_half(half, flow)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [N, V] of residual streams behind the last layer, in the weights' dtype."""
        return self._head(self._norm(x_ND, self._norm_D))

    def _run_half(self, half: Half, flow: Flow) -> None:
        layer = self._layers[half.layer]
        if half.kind == "merge":
            self._merge(half.layer, layer, flow)
            return
        mixed_NE = self._attend(half.layer, layer, flow)
        if layer.gate_up is None:
            flow.branch_NE = mixed_NE
            return
        assert layer.out is not None
        assert layer.context_norm_D is not None
        layer.out.add_to(flow.x_ND, mixed_NE)
        gate_NK, up_NK = layer.gate_up(self._norm(flow.x_ND, layer.context_norm_D)).chunk(2, dim=-1)
        flow.branch_NE = F.silu(gate_NK).mul_(up_NK)

    def _attend(self, index: int, layer: LayerProducts, flow: Flow) -> Tensor:
        config, step = self.config, flow.step
        qkv = layer.qkv(self._norm(flow.x_ND, layer.attention_norm_D))
        qkv = qkv.view(len(qkv), -1, config.head_dim)
        num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        rotated = rotate(qkv[:, : num_heads + num_kv_heads], flow.rotation_N1F)
        queries, keys, values = rotated[:, :num_heads], rotated[:, num_heads:], qkv[:, num_heads + num_kv_heads :]
        self._key_pools[index].index_copy_(0, step.cache_rows, keys.reshape(-1, config.head_dim))
        self._value_pools[index].index_copy_(0, step.cache_rows, values.reshape(-1, config.head_dim))
        pools = self.cache.keys[index], self.cache.values[index]
        parts = []
        if step.decode is not None:
            parts.append(step.decode(queries[: step.num_decodes], *pools).flatten(1))
        for group in step.groups:
            own = group.tokens
            parts.append(chunk_attention(queries[own], keys[own], values[own], *pools, group))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _merge(self, index: int, layer: LayerProducts, flow: Flow) -> None:
        assert flow.branch_NE is not None
        term = self.terms.layers.get(index) if self.terms else None
        if term is None:
            layer.merge.add_to(flow.x_ND, flow.branch_NE)
        else:
            assert self.terms is not None
            codes_NC = self.terms.codes(term, flow.codes, flow.received, flow.step.token_ids_N)
            term.merge(flow.x_ND, flow.branch_NE, layer.merge, codes_NC)
        flow.branch_NE = None

    def _norm(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_ND, weight_D.shape, weight_D, self.config.rms_norm_eps)


def _rotations(config: ModelConfig, num_positions: int, device: torch.device) -> Tensor:
    """exp(i * position * frequency), complex64 [positions, head_dim / 2]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
    angle = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequency
    return torch.complex(angle.cos(), angle.sin())


def rotate(heads_NHE: Tensor, rotation_N1F: Tensor) -> Tensor:
    """Rotary embedding of heads whose pairs lie side by side (`weights.interleave_halves`), in their dtype."""
    pairs = torch.view_as_complex(heads_NHE.float().reshape(*heads_NHE.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation_N1F).flatten(-2).to(heads_NHE.dtype)
