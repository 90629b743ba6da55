"""Samples from the reference model: every token by a forward pass over all that came before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tolbuild.evaluate.variant import Variant
from tolbuild.model import MemoryLLM


def generate(
    model: MemoryLLM,
    variant: Variant,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Token ids that follow a prompt, up to `max_tokens`, ending before the config's eos_token_id.

    Args:
        temperature: 0 takes the most probable token, else tokens are drawn from softmax(logits / temperature).
        seed: of the draws; the same seed gives the same tokens on the same machine.

    Raises:
        ValueError: an empty prompt, or a negative temperature.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty; a model needs one token to go on from")
    if temperature < 0:
        raise ValueError(f"the temperature is {temperature}; it cannot be negative")
    config, device = model.config, model.head_VD.device
    draw = torch.Generator().manual_seed(seed)
    ids = list(prompt_ids)
    for _ in range(max_tokens):
        logits_V = next_logits(model, variant, torch.tensor(ids[-config.max_position_embeddings :], device=device))
        if temperature == 0:
            token_id = int(logits_V.argmax())
        else:
            token_id = int(torch.multinomial((logits_V / temperature).softmax(-1).cpu(), 1, generator=draw))
        if token_id == config.eos_token_id:
            return
        ids.append(token_id)
        yield token_id


@torch.inference_mode()
def next_logits(model: MemoryLLM, variant: Variant, ids_S: Tensor) -> Tensor:
    """Logits fp32 [V] of the token after ids int64 [S]."""
    hidden_SD = variant.hidden(model, ids_S[None])[0]
    return F.linear(hidden_SD[-1], model.head_VD).float()
