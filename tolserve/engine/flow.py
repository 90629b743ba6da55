"""What a step is made of on the device: its inputs, what runs through the layers, and the layers as products."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tolserve.engine.attention import ChunkTensors, DecodeAttention
from tolserve.engine.product import Product, make_product
from tolserve.engine.weights import LayerWeights


@dataclass(frozen=True, kw_only=True)
class StepTensors:
    """A step's arrays on the device.

    Attributes:
        token_ids_N: int64.
        positions_N: int64.
        cache_rows: int64 [N * Hkv], where keys and values go in a layer's pool seen as [-1, head_dim].
        decode: attention of the first `num_decodes` tokens; None without any.
        groups: the other tokens' chunks.
    """

    token_ids_N: Tensor
    positions_N: Tensor
    cache_rows: Tensor
    decode: DecodeAttention | None
    num_decodes: int
    groups: tuple[ChunkTensors, ...]


@dataclass(kw_only=True)
class Flow:
    """What runs through a step: the residual stream, the branch still to be merged and the codes of each token.

    `received` has rows as stored [N, num_items] by band as they came; `codes` what `MemoryTerms.codes` made of them.
    """

    step: StepTensors
    x_ND: Tensor
    rotation_N1F: Tensor
    branch_NE: Tensor | None = None
    received: dict[int, Tensor] = field(default_factory=dict)
    codes: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerProducts:
    """One layer's weights as products; see `LayerWeights`."""

    attention_norm_D: Tensor
    qkv: Product
    merge: Product
    out: Product | None
    context_norm_D: Tensor | None
    gate_up: Product | None

    @classmethod
    def of(cls, weights: LayerWeights) -> LayerProducts:
        """Products of `weights`, packed where that is faster."""
        return cls(
            attention_norm_D=weights.attention_norm_D,
            qkv=make_product(weights.qkv_DE),
            merge=make_product(weights.merge_ED, weights.merge_bias_D),
            out=None if weights.out_ED is None else make_product(weights.out_ED),
            context_norm_D=weights.context_norm_D,
            gate_up=None if weights.gate_up_D2K is None else make_product(weights.gate_up_D2K),
        )
