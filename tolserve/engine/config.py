"""What an engine is told when it is made: its memory, its batch and how it treats the looked-up rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine: bounds of its memory, what it reuses, and where and how it computes.

    Attributes:
        block_size: tokens in one block of the KV cache.
        num_blocks: blocks in the KV cache, all layers counted as one.
        max_num_seqs: sequences in a batch.
        max_num_batched_tokens: tokens computed in one step; longer prompts are split into chunks.
        max_model_len: longest prompt plus output of a request.
        alpha: factor on every layer's memory term; 1 is the model as trained.
        drop_layers: layers whose memory term is left out.
        pinned_bands: the first bands held on the device for every token and never requested.
        prefix_cache: keep full blocks of the KV cache for later requests that begin with the same tokens.
        speculative_rows: rows of so many likely next tokens a sequence are requested in mid-step; 0 guesses nothing.
        verify_every: recompute one row of every n-th step from the checkpoint and compare; 0 never does.
        dtype: of weights and activations; bfloat16 needs a GPU to be of use.
        device: a torch device, "cpu" or "cuda".

    Raises:
        ValueError: a count is not positive, or a value is outside its range.
    """

    block_size: int = 32
    num_blocks: int = 2048
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    max_model_len: int = 2048
    alpha: float = 1.0
    drop_layers: tuple[int, ...] = ()
    pinned_bands: int = 0
    prefix_cache: bool = True
    speculative_rows: int = 0
    verify_every: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: "
                "a step could not decode every sequence"
            )
        for name in ("alpha", "pinned_bands", "speculative_rows", "verify_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if any(layer < 0 for layer in self.drop_layers):
            raise ValueError(f"drop_layers {self.drop_layers} has a negative layer; layers count from 0")
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(_DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return _DTYPES[self.dtype]

    @property
    def blocks_per_seq(self) -> int:
        """Blocks that the longest sequence takes."""
        return -(-self.max_model_len // self.block_size)
