"""Speculative rows: a step's residual stream, taken behind a middle segment, already says which token may come next.

The rows of the k likeliest tokens by that estimate are requested while the later layers run, so that the one that is
sampled may be on its way already. What is computed does not change: an estimate that is wrong costs its bytes.
"""

from __future__ import annotations

from torch import Tensor

from tolserve.engine.batch import StepBatch
from tolserve.engine.model import StepModel
from tolserve.engine.rows import RowFeed
from tolserve.engine.segments import Segment

EXIT_SHARE = 0.5
"""Share of the layers behind which the estimate is made: later it is better, earlier it leaves more time."""


def exit_segment(segments: tuple[Segment, ...], num_layers: int) -> int:
    """The first segment, but for the last one, at whose end `EXIT_SHARE` of the layers are done; else the last such."""
    num_done = 0
    for index, segment in enumerate(segments[:-1]):
        num_done += sum(half.kind == "merge" for half in segment.halves)
        if num_done >= EXIT_SHARE * num_layers:
            return index
    return len(segments) - 2


class EarlyExit:
    """Requests from `feed` the rows of the `num_guesses` likeliest next tokens of each sequence.

    Attributes:
        segment: behind which one `guess` is to be called.
    """

    def __init__(self, model: StepModel, feed: RowFeed, num_guesses: int) -> None:
        self._model = model
        self._feed = feed
        self._num_guesses = min(num_guesses, model.config.vocab_size)
        self.segment = exit_segment(model.segments, model.config.num_hidden_layers)

    def guess(self, x_ND: Tensor, batch: StepBatch) -> None:
        """Guess for the sequences that will need another row; `x_ND` is the step's residual stream as it is now."""
        going = [i for i, s in enumerate(batch.sampled) if s.num_output + 1 < s.params.max_tokens]
        if going:
            index = batch.sampled_index[going].tolist()
            self._feed.guess(likeliest(self._model, x_ND[index], self._num_guesses).flatten().cpu().numpy())


def likeliest(model: StepModel, x_ND: Tensor, count: int) -> Tensor:
    """Token ids [N, count] that final norm and head find likeliest, the best first."""
    return model.logits(x_ND).topk(count, dim=-1).indices
