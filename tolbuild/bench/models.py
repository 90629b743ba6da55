"""Checkpoints of a chosen shape with random weights: a build takes as long on them as on trained ones."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from tolbuild.checkpoint.shapes import expected_shapes
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
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.ones(shape) if "norm" in name else 0.02 * torch.randn(shape, generator=draw)).bfloat16()
        for name, shape in expected_shapes(config).items()
    }
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return str(folder)
