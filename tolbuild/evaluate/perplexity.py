"""Perplexity of variants of a model on packed text, all on the same windows, taking turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tolbuild.evaluate.text import PackedText
from tolbuild.evaluate.variant import Variant
from tolbuild.model import MemoryLLM

_LOGIT_TOKENS = 1024
"""Tokens whose logits are held at a time."""


@dataclass
class Score:
    """What one variant has reached so far.

    loss_nats: sum over tokens of -log p(token). num_bytes: of the text that the tokens stand for.
    """

    variant: Variant
    loss_nats: float = 0.0
    num_tokens: int = 0
    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def perplexity(self) -> float:
        """exp of the mean loss a token."""
        return math.exp(self.loss_nats / self.num_tokens)

    @property
    def byte_perplexity(self) -> float:
        """exp of the loss over the bytes of text: comparable between tokenizers."""
        return math.exp(self.loss_nats / self.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        """The same as bits a byte of text."""
        return self.loss_nats / self.num_bytes / math.log(2)

    def as_dict(self) -> dict[str, object]:
        """The figures for a program."""
        return {
            "variant": self.variant.name,
            "alpha": self.variant.alpha,
            "drop_layers": list(self.variant.drop_layers),
            "loss_nats_per_token": round(self.loss_nats / self.num_tokens, 6),
            "perplexity_per_token": round(self.perplexity, 4),
            "perplexity_per_byte": round(self.byte_perplexity, 5),
            "bits_per_byte": round(self.bits_per_byte, 5),
            "tokens_per_s": round(self.num_tokens / self.seconds, 1),
        }


def measure(
    model: MemoryLLM, variants: Sequence[Variant], text: PackedText, *, length: int, limit: int | None, batch: int
) -> Iterator[list[Score]]:
    """Score `variants` on the same windows and yield their scores so far after every batch.

    Windows of `length` tokens follow each other without overlap and each starts with no context but its first input
    token; what is left at the end and fills no window is not scored. These are the windows of training's validation.

    Args:
        limit: score at most so many tokens; None all.

    Raises:
        ValueError: the text does not fill one window.
    """
    count = min(len(text.ids_N) - 1, len(text.ids_N) if limit is None else limit) // length
    if count < 1:
        raise ValueError(f"{len(text.ids_N)} tokens (limit {limit}) do not fill one window of {length} and a target")
    device = model.head_VD.device
    ids_N = torch.from_numpy(text.ids_N)
    scores = [Score(variant) for variant in variants]
    for first in range(0, count, batch):
        last = min(first + batch, count)
        windows_BT = torch.stack([ids_N[i * length : (i + 1) * length + 1] for i in range(first, last)]).to(device)
        for score in scores:
            began = time.perf_counter()
            score.loss_nats += window_loss(model, score.variant, windows_BT)
            score.seconds += time.perf_counter() - began
            score.num_tokens = last * length
            score.num_bytes = text.num_bytes(last * length)
        yield scores


@torch.inference_mode()
def window_loss(model: MemoryLLM, variant: Variant, windows_BT: Tensor) -> float:
    """Sum in nats of the losses of a batch of windows int64 [B, S + 1]."""
    hidden_ND = variant.hidden(model, windows_BT[:, :-1]).flatten(0, 1)
    targets_N = windows_BT[:, 1:].flatten()
    total = 0.0
    for start in range(0, len(targets_N), _LOGIT_TOKENS):
        part = slice(start, start + _LOGIT_TOKENS)
        logits_NV = F.linear(hidden_ND[part], model.head_VD).float()
        total += float(F.cross_entropy(logits_NV, targets_N[part], reduction="sum"))
    return total
