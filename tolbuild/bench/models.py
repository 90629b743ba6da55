"""Checkpoints of a chosen shape with random weights: a build takes as long on them as on trained ones."""

from __future__ import annotations

from pathlib import Path

from tolbuild.checkpoint.synthetic import write_synthetic
from tolbuild.config import ModelConfig


def write_checkpoint(folder: Path, *, vocab_size: int, width: int, hidden: int, num_layers: int, seed: int) -> str:
    """Write a memory model in bf16 under `folder`; returns its URL."""
    config = ModelConfig(
        kind="memory",
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=1,
        intermediate_size=hidden,
        torch_dtype="bfloat16",
    )
    write_synthetic(folder, config, seed=seed)
    return str(folder)
