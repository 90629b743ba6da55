"""Which requests have run out of their own time."""

from __future__ import annotations

import heapq
import itertools

from tolserve.engine.request import DeadlineError
from tolserve.engine.sequence import Sequence


class Deadlines:
    """Sequences that have a deadline, by the time at which it passes (of any one clock)."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._count = itertools.count()

    def add(self, sequence: Sequence, now: float) -> None:
        """Watch a sequence that arrived `now`, where its parameters have a deadline."""
        if sequence.params.deadline_s is not None:
            heapq.heappush(self._heap, (now + sequence.params.deadline_s, next(self._count), sequence))

    def passed(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed since the last call, ended ones among them."""
        late = []
        while self._heap and self._heap[0][0] <= now:
            late.append(heapq.heappop(self._heap)[2])
        return late


def deadline_error(sequence: Sequence) -> DeadlineError:
    """What a sequence is told whose deadline has passed."""
    assert sequence.params.deadline_s is not None
    state = f"after {sequence.num_output} of at most {sequence.params.max_tokens} tokens"
    if sequence.row is None and not sequence.num_output:
        state = "while it waited for its turn"
    return DeadlineError(f"the request's deadline of {round(sequence.params.deadline_s, 3):g} s passed {state}")
