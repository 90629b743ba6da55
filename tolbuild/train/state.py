"""The resumable state of a run: weights, optimizer and step in one file that is replaced as a whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tolbuild.model import MemoryLLM
from tolbuild.train.config import TrainConfig

_FREE_TO_CHANGE = (
    "steps", "out", "device", "log_every", "validate_every", "save_every", "validation_tokens",
    "data", "valid", "tokenizer",
)  # fmt: skip
"""What a resumed run may change: its length, what decides no weight, and paths to files that may have moved."""


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in _FREE_TO_CHANGE}


def state_path(config: TrainConfig) -> Path:
    """Where a run keeps its state."""
    return config.out / "state.pt"


def save_state(config: TrainConfig, model: MemoryLLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Replace the state by the one after `step` steps; a kill in between leaves the old one whole."""
    part = state_path(config).with_suffix(".part")
    state = {
        "config": _settings(config),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, part)
    part.replace(state_path(config))


def load_state(config: TrainConfig, model: MemoryLLM, optimizer: torch.optim.Optimizer) -> int:
    """Load the state under `out` into model and optimizer, and return its step; 0 where there is none.

    Raises:
        ValueError: the state is of a run with other settings, which are named.
    """
    if not state_path(config).exists():
        return 0
    state = torch.load(state_path(config), map_location="cpu", weights_only=True)
    ours, theirs = _settings(config), state["config"]
    differing = [
        f"{key}: {theirs.get(key)!r} there, {value!r} here" for key, value in ours.items() if value != theirs.get(key)
    ]
    if differing:
        raise ValueError(f"{config.out} holds a run with other settings ({'; '.join(differing)}); choose another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
