"""What tokens and layers count while a table is built: files of token frequencies and of layer sensitivities."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tolbuild.build_config import BuildConfig

Weights = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighting:
    """Weights of tokens and layers.

    token_weights_V: fp64, 1 on average; None where every token counts alike. layer_weights: what a unit of squared
    error in each layer of the model costs; empty where all cost the same.
    """

    token_weights_V: Weights | None = None
    layer_weights: tuple[float, ...] = ()

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the tokens' weights; empty where they are uniform."""
        if self.token_weights_V is None:
            return ""
        return hashlib.sha256(self.token_weights_V.astype("<f8").tobytes()).hexdigest()[:16]


UNIFORM = Weighting()


def load_weighting(config: BuildConfig, vocab_size: int, num_layers: int, fingerprint: str) -> Weighting:
    """What the files that a config names say of the tokens and layers of a checkpoint.

    Raises:
        ValueError: a file cannot be read, or does not fit the model; the message names it.
    """
    counts = config.weights.removeprefix("counts:") if config.weights != "uniform" else None
    return Weighting(
        token_weights_V=None if counts is None else token_weights(Path(counts), vocab_size),
        layer_weights=()
        if config.layer_weights is None
        else layer_weights(config.layer_weights, num_layers, fingerprint),
    )


def token_weights(path: Path, vocab_size: int) -> Weights:
    """Weights of tokens in proportion to the counts of a file: V numbers, a JSON list or a .npy array.

    Raises:
        ValueError: the file cannot be read, has not V numbers, or one is negative or not finite, or all are zero.
    """
    counts_V = _numbers(_array(path) if path.suffix == ".npy" else _json(path), vocab_size, path, "tokens")
    weights_V: Weights = counts_V * (vocab_size / counts_V.sum())
    return weights_V


def layer_weights(path: Path, num_layers: int, fingerprint: str) -> tuple[float, ...]:
    """Weights of layers: a JSON list of one number a layer, or an object that has it as `layer_weights`.

    An object's `fingerprint`, where it has one, must be the checkpoint's.

    Raises:
        ValueError: the file cannot be read or does not fit the model.
    """
    found = _json(path)
    if isinstance(found, dict):
        theirs = found.get("fingerprint", fingerprint)
        if theirs != fingerprint:
            raise ValueError(f"{path} was measured on the checkpoint {theirs[:16]}; this one is {fingerprint[:16]}")
        found = found.get("layer_weights")
    return tuple(_numbers(found, num_layers, path, "layers").tolist())


def _array(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a .npy array: {error}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


def _numbers(found: Any, count: int, path: Path, of: str) -> Weights:
    try:
        numbers: Weights = np.asarray(found, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has no list of numbers: {error}") from error
    if numbers.shape != (count,):
        raise ValueError(f"{path} has numbers of shape {list(numbers.shape)}; the model has {count} {of}")
    if not np.isfinite(numbers).all() or numbers.min() < 0 or not numbers.any():
        raise ValueError(f"{path}: weights are finite, none below zero and not all zero")
    return numbers
