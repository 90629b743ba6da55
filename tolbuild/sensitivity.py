"""`python -m tolbuild.sensitivity`: what a unit of error in each layer's rows costs, for `--layer-weights`.

    python -m tolbuild.sensitivity --checkpoint builtin:tiny --data data/public_domain.valid.jsonl.gz --out layers.json

The weight of layer l is

    s_l = 1 / (2 D T) * sum over tokens v of | d loss / d row_l(v) |^2

with the loss in nats summed over T positions whose labels are drawn from the model's own predictions. By Fisher's
identity that is tr(F_l) / (2 D) a position, F_l the Fisher information of the row: rows that are off by e, |e|^2 on
average over positions and in no particular direction, move the predictions by a Kullback-Leibler divergence of
s_l * |e|^2 nats a token, to second order. One backward pass gives all layers, and there is no size of noise to choose.

The file: {"layer_weights": [s_0, s_1, ...], "fingerprint": of the checkpoint, "num_tokens": T, "unit": ...}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tolbuild.checkpoint import load_model, open_checkpoint
from tolbuild.evaluate.variant import dense_rows
from tolbuild.model import MemoryLLM
from tolbuild.table.errors import ToLError
from tolbuild.train.data import encode_packed, read_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNIT = "nats a token for each unit of squared row error"


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    """One measurement.

    Raises:
        ValueError: a count below 1, or no text.
    """

    checkpoint: str
    """Checkpoint folder: a path, s3:// or another URL, or builtin:tiny, the small model that comes with this."""
    data: tuple[Path, ...]
    """Text: JSON lines with a `text` field, gzip or plain."""
    out: Path
    """Where the layers' weights go, as JSON."""
    limit: int = 32_768
    """Use at most so many tokens of the text."""
    sequence_length: int | None = None
    """Tokens a window; the checkpoint's max_position_embeddings when left out."""
    batch: int = 4
    """Windows at a time."""
    seed: int = 0
    """Of the labels that are drawn."""

    def __post_init__(self) -> None:
        for name in ("limit", "batch", "sequence_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if not self.data:
            raise ValueError("--data names no file")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 0 when done, 1 with the reason on standard error."""
    from tolbuild.cli import parse

    try:
        config = parse(SensitivityConfig, module="tolbuild.sensitivity", doc=__doc__, arguments=arguments)
        checkpoint = open_checkpoint(config.checkpoint)
        ids_N = first_ids(checkpoint.tokenizer(), read_texts(config.data), config.limit)
        length = config.sequence_length or checkpoint.config.max_position_embeddings
        windows_BT = as_windows(ids_N, length)
        weights = layer_sensitivities(load_model(checkpoint), windows_BT, batch=config.batch, seed=config.seed)
        found = {
            "layer_weights": weights,
            "fingerprint": checkpoint.fingerprint,
            "num_tokens": windows_BT.numel(),
            "unit": UNIT,
        }
        config.out.write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, ToLError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{config.out}: on {windows_BT.numel():,} tokens, {UNIT}")
    for layer, weight in enumerate(weights):
        print(f"  layer {layer:>3}  {weight:.4e}")
    return 0


def first_ids(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> NDArray[np.int64]:
    """The first `limit` ids of texts packed as training packs them; texts behind them are not read."""
    ids, found = [np.empty(0, np.int64)], 0
    for text in texts:
        ids.append(encode_packed(tokenizer, iter([text])).astype(np.int64))
        found += len(ids[-1])
        if found >= limit:
            break
    return np.concatenate(ids)[:limit]


def as_windows(ids_N: NDArray[np.int64], length: int) -> Tensor:
    """Ids as windows int64 [B, length]; one shorter window where they fill none.

    Raises:
        ValueError: there are no tokens.
    """
    if not len(ids_N):
        raise ValueError("there is no text to measure on")
    length = min(length, len(ids_N))
    count = len(ids_N) // length
    return torch.from_numpy(ids_N[: count * length].reshape(count, length))


def layer_sensitivities(model: MemoryLLM, windows_BT: Tensor, *, batch: int, seed: int) -> list[float]:
    """Weights s_l of all layers, see the module; the same for the same seed and kind of hardware.

    Raises:
        ValueError: a model without memory.
    """
    if not model.config.has_memory:
        raise ValueError(f"a {model.config.kind} model has no rows whose error could matter")
    generator = torch.Generator().manual_seed(seed)
    total_L = torch.zeros(model.config.num_hidden_layers, dtype=torch.float64)
    for part_BT in torch.split(windows_BT, batch):
        total_L += _squared_gradients(model, part_BT, generator)
    return (total_L / (2 * model.config.hidden_size * windows_BT.numel())).tolist()


def _squared_gradients(model: MemoryLLM, windows_BT: Tensor, generator: torch.Generator) -> Tensor:
    """|d loss / d row|^2 of each layer, summed over the tokens of some windows, fp64 [L]."""
    unique_N, inverse_BT = torch.unique(windows_BT, return_inverse=True)
    with torch.no_grad():
        rows_NLD = dense_rows(model, unique_N)
    rows_NLD.requires_grad_(True)
    logits_NV = F.linear(model.hidden(windows_BT, rows_NLD, inverse_BT), model.head_VD).flatten(0, 1)
    with torch.no_grad():
        labels_N = torch.multinomial(logits_NV.softmax(dim=-1), 1, generator=generator)[:, 0]
    loss = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    (gradient_NLD,) = torch.autograd.grad(loss, rows_NLD)
    return gradient_NLD.double().square().sum(dim=(0, 2))


if __name__ == "__main__":
    sys.exit(main())
