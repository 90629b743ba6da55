"""`python -m tolbuild.synthesize`: a checkpoint with random weights at any size, to build, serve and measure with.

Examples:

  the paper's 1B model (V 128,256, d 2048, K 5464, 24 layers), 2.9 GB in bf16:
    python -m tolbuild.synthesize --out /srv/models/random-1b --shape 1b

  a vocabulary of a million at a small width:
    python -m tolbuild.synthesize --out /srv/models/wide --vocab-size 1000000 --hidden-size 256 \\
      --intermediate-size 688 --layers 4

It is written piece by piece, in tens of MB of memory whatever the size; the same seed gives the same bytes. There is no
tokenizer: builds need none, and prompts of token ids do not either.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tolbuild.checkpoint.header import ITEM_BYTES
from tolbuild.checkpoint.synthetic import FORMAT_DTYPES, write_synthetic
from tolbuild.cli import parse
from tolbuild.config import Kind, ModelConfig
from tolbuild.table.errors import ToLError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

_HEAD_DIM = 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, as counts of elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int


SHAPES = {
    "1b": Shape(vocab_size=128_256, hidden_size=2048, intermediate_size=5464, layers=24, heads=32),
    "750m": Shape(vocab_size=128_256, hidden_size=1600, intermediate_size=4272, layers=24, heads=16),
    "250m": Shape(vocab_size=128_256, hidden_size=960, intermediate_size=2560, layers=24, heads=16),
}
"""The models of the paper (arXiv 2602.00398)."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Which checkpoint to make, and where.

    Raises:
        ValueError: sizes that are missing or that no model has, with the option's name.
    """

    out: Path
    """Folder of this machine for the checkpoint; it must not hold one."""
    shape: Literal["1b", "750m", "250m"] | None = None
    """One of the paper's models; sizes that are given go before its own."""
    vocab_size: int = 0
    """Token ids (V)."""
    hidden_size: int = 0
    """Width of the residual stream (d)."""
    intermediate_size: int = 0
    """Hidden units of a layer's whole feed-forward network (K)."""
    layers: int = 0
    """Layers."""
    heads: int = 0
    """Attention heads; 0 takes the shape's, or heads about 64 wide."""
    kind: Kind = "memory"
    """base has no table; flex divides its feed-forward network by --beta."""
    beta: int = 0
    """For flex: 1, 2 or 3."""
    seed: int = 0
    """The same seed gives the same bytes."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the weights."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_option(name)} is {getattr(self, name)}; it cannot be negative")
        if self.shape is None:
            sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers")
            missing = [_option(name) for name in sizes if not getattr(self, name)]
            if missing:
                raise ValueError(f"{', '.join(missing)} must be given, or a --shape ({', '.join(SHAPES)})")
        self.model_config()

    def model_config(self) -> ModelConfig:
        """The model's config."""
        sizes = SHAPES[self.shape] if self.shape else Shape(**_NO_SIZES)
        given = {name: getattr(self, name) for name in _NO_SIZES if getattr(self, name)}
        sizes = replace(sizes, **given)
        return ModelConfig(
            kind=self.kind,
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads or pick_heads(sizes.hidden_size),
            intermediate_size=sizes.intermediate_size,
            beta=self.beta,
            torch_dtype=DTYPES[self.dtype],
        )


_NO_SIZES = {"vocab_size": 0, "hidden_size": 0, "intermediate_size": 0, "layers": 0, "heads": 0}


def pick_heads(hidden_size: int) -> int:
    """The most attention heads at least 64 wide whose width is even; 1 where there are none."""
    most = max(1, hidden_size // _HEAD_DIM)
    return next((heads for heads in range(most, 0, -1) if hidden_size % (2 * heads) == 0), 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the checkpoint; 0 when it is there, 1 with the reason on standard error."""
    began = time.perf_counter()
    try:
        config = parse(SynthesizeConfig, module="tolbuild.synthesize", doc=__doc__, arguments=arguments)
        num_bytes = write_synthetic(config.out, config.model_config(), seed=config.seed)
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    num_weights = num_bytes // ITEM_BYTES[FORMAT_DTYPES[DTYPES[config.dtype]]]
    seconds = time.perf_counter() - began
    print(f"checkpoint: {config.out}\n{num_weights:,} weights, {num_bytes / 1e9:,.2f} GB, {seconds:,.1f} s")
    return 0


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
