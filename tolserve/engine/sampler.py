"""Choosing the next tokens of a batch, and their log-probabilities.

Every draw is an inverse-CDF look-up of one number from the request's own stream, over probabilities sorted from the
most likely down and, where they are equal, by token id, so a seeded request draws the same tokens in any batch.
Log-probabilities are those of the model, before temperature and truncation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tolserve.engine.request import SamplingParams, TokenOutput
from tolserve.engine.sequence import Sequence

_SCORE_ROWS = 128
"""Prompt positions whose logits are in memory at once."""


def sample(logits_BV: Tensor, sequences: tuple[Sequence, ...]) -> list[TokenOutput]:
    """The next token of each sequence, from logits in any float dtype."""
    if all(s.params.plain_greedy for s in sequences):
        return [TokenOutput(token) for token in logits_BV.argmax(-1).tolist()]
    logits_BV = logits_BV.float()
    tokens_B = logits_BV.argmax(-1)
    drawn = [index for index, s in enumerate(sequences) if not s.params.greedy]
    if drawn:
        chosen = draw(
            logits_BV[drawn],
            [sequences[index].params for index in drawn],
            np.array([sequences[index].uniform() for index in drawn]),
        )
        tokens_B[torch.tensor(drawn, device=tokens_B.device)] = chosen
    return score(logits_BV, tokens_B, [s.params.logprobs for s in sequences])


def draw(logits_BV: Tensor, params: list[SamplingParams], uniform_B: NDArray[np.float64]) -> Tensor:
    """Token ids int64 [B] drawn by `params` with one number in [0, 1) each.

    Top-k comes before top-p, and top-p keeps the smallest set whose probability reaches it.
    """
    device, num_tokens = logits_BV.device, logits_BV.shape[1]
    scaled_BV = logits_BV / torch.tensor([p.temperature for p in params], device=device)[:, None]
    best_BC, ids_BC = best(scaled_BV, max(p.top_k or num_tokens for p in params))
    rank_C = torch.arange(best_BC.shape[1], device=device)
    kept_B = torch.tensor([p.top_k or num_tokens for p in params], device=device)
    best_BC = best_BC.masked_fill(rank_C >= kept_B[:, None], -torch.inf)
    mass_BC = best_BC.double().softmax(-1).cumsum(-1)
    top_p_B = torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64)
    last_B = torch.minimum((mass_BC < top_p_B[:, None]).sum(-1), kept_B.clamp(max=best_BC.shape[1]) - 1)
    total_B = mass_BC.gather(1, last_B[:, None])[:, 0]
    target_B = torch.from_numpy(uniform_B).to(device) * total_B
    place_B = torch.minimum(torch.searchsorted(mass_BC, target_B[:, None], right=True)[:, 0], last_B)
    return ids_BC.gather(1, place_B[:, None])[:, 0]


def best(values_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their columns, [B, count] each: the largest first, equal ones by column.

    Rows are in this order whatever `count` and the other rows are, which `torch.topk` does not promise for equal ones.
    """
    values_BV, num_columns = values_BV + 0.0, values_BV.shape[1]  # -0.0 becomes 0.0, as which it counts
    if count >= num_columns:
        return values_BV.sort(dim=-1, descending=True, stable=True)
    bits_BV = values_BV.view(torch.int32).long()
    rank_BV = torch.where(bits_BV < 0, bits_BV ^ 0x7FFFFFFF, bits_BV)  # ascends with the value
    early_V = torch.arange(num_columns - 1, -1, -1, device=values_BV.device)
    ids_BC = (rank_BV * 2**32 + early_V).topk(count, dim=-1).indices
    return values_BV.gather(1, ids_BC), ids_BC


def score(logits_BV: Tensor, tokens_B: Tensor, wanted: list[int | None]) -> list[TokenOutput]:
    """Tokens with log-probabilities of those rows that want them; `wanted` is the number of alternatives."""
    tokens = tokens_B.tolist()
    rows = [index for index, count in enumerate(wanted) if count is not None]
    outputs = [TokenOutput(token) for token in tokens]
    if not rows:
        return outputs
    logprobs_RV = logits_BV[rows].float().log_softmax(-1)
    own_R = logprobs_RV.gather(1, tokens_B[rows][:, None])[:, 0].tolist()
    most = max(wanted[index] or 0 for index in rows)
    values, ids = best(logprobs_RV, min(most, logprobs_RV.shape[1]))
    for index, own, row_values, row_ids in zip(rows, own_R, values.tolist(), ids.tolist(), strict=True):
        count = wanted[index] or 0
        alternatives = tuple(zip(row_ids[:count], row_values[:count], strict=True))
        outputs[index] = TokenOutput(tokens[index], own, alternatives)
    return outputs


def score_ranges(start: int, stop: int) -> list[slice]:
    """Consecutive slices of start .. stop whose logits fit into memory together."""
    return [slice(i, min(i + _SCORE_ROWS, stop)) for i in range(start, stop, _SCORE_ROWS)]
