"""Every choice of an evaluation, as a frozen dataclass that the command line is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

VALIDATION_TEXT = Path("data/public_domain.valid.jsonl.gz")
"""The public-domain validation text, from the root of the repository."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation.

    Raises:
        ValueError: a count or a temperature that cannot be.
    """

    checkpoint: str
    """Checkpoint folder: a path, s3:// or another URL, or builtin:tiny, the small model that comes with this."""
    data: tuple[Path, ...] = (VALIDATION_TEXT,)
    """Text to measure on: JSON lines with a `text` field, gzip or plain."""
    table: str | None = None
    """A table of this checkpoint; its rows then take the place of the dense networks."""
    version: int | None = None
    """Version of the table; the latest when left out."""
    alpha: float = 1.0
    """Factor on every memory term (0.5 halves what the model recalls)."""
    drop_layers: tuple[int, ...] = ()
    """Layers that go without their memory term."""
    limit: int | None = None
    """Score at most so many tokens of the text; 0 measures nothing and only writes samples."""
    sequence_length: int | None = None
    """Tokens a window; the checkpoint's max_position_embeddings when left out."""
    batch: int = 8
    """Windows at a time."""
    prompt: tuple[str, ...] = ()
    """Write a sample that goes on from each of these."""
    max_tokens: int = 64
    """Tokens of a sample at most."""
    temperature: float = 0.0
    """Of samples; 0 takes the most probable token each time."""
    seed: int = 0
    """Of samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("max_tokens", 1), ("sequence_length", 1), ("limit", 0), ("temperature", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
