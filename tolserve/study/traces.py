"""Which rows each step of a server asks for: pieces of text as requests, batched as the scheduler batches them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.spec import Ids
from tolserve.native.lookups import NumpyLookups


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of a kind, and what a step holds.

    Attributes:
        prompt_tokens, output_tokens: means of geometric distributions; 1 is always 1.
        num_seqs: requests that run at once.
        num_batched_tokens: tokens of a step, outputs first.
        in_order: requests follow each other as the text does, not at random.

    Raises:
        ValueError: a number below 1, or a step that cannot hold a token of each request.
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    num_seqs: int
    num_batched_tokens: int
    in_order: bool = False

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.output_tokens, self.num_seqs) < 1:
            raise ValueError(f"{self}: no number may be below 1")
        if self.num_batched_tokens < self.num_seqs:
            raise ValueError(f"{self.num_batched_tokens} tokens a step do not hold one of each of {self.num_seqs}")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a cache is asked for.

    Attributes:
        steps: distinct ids of each step, ascending.
        num_tokens: tokens computed.
    """

    steps: list[Ids]
    vocab_size: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows asked for: distinct ones of each step."""
        return sum(len(ids) for ids in self.steps)

    @property
    def num_distinct(self) -> int:
        """Rows that occur at all."""
        return int(np.count_nonzero(np.bincount(np.concatenate(self.steps), minlength=self.vocab_size)))


def trace(tokens: Ids, vocab_size: int, workload: Workload, *, seed: int) -> Trace:
    """`tokens` (int64 [N], text in order) cut into requests and served.

    A request starts when there is room; prompts are computed in chunks, in the order in which requests started. The
    trace ends when no request waits and less than half of the sequences run.
    """
    server = _Server(workload, _requests(len(tokens), workload, seed))
    steps, num_tokens = [], 0
    while server.busy:
        places = server.step()
        num_tokens += len(places)
        steps.append(NumpyLookups().distinct(tokens[places]))
    return Trace(steps=steps, vocab_size=vocab_size, num_tokens=num_tokens)


class _Server:
    """Which places of the text each step computes."""

    def __init__(self, workload: Workload, requests_R3: NDArray[np.int64]) -> None:
        self._workload = workload
        self._waiting = deque(requests_R3.tolist())
        self._prefilling: deque[list[int]] = deque()
        self._running_N2 = np.empty((0, 2), np.int64)

    @property
    def busy(self) -> bool:
        """Whether there is enough to do."""
        num_open = len(self._running_N2) + len(self._prefilling)
        return bool(self._waiting) or num_open > self._workload.num_seqs // 2

    def step(self) -> NDArray[np.int64]:
        """Places of the next step: one for each running sequence, then as much of prompts as there is room for."""
        while self._waiting and len(self._running_N2) + len(self._prefilling) < self._workload.num_seqs:
            self._prefilling.append(self._waiting.popleft())
        running_N2 = self._running_N2
        places, started = self._prompts(self._workload.num_batched_tokens - len(running_N2))
        places.insert(0, running_N2[:, 0].copy())
        running_N2[:, 0] += 1
        self._running_N2 = np.concatenate([running_N2[running_N2[:, 0] < running_N2[:, 1]], started])
        return np.concatenate(places)

    def _prompts(self, room: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Places of at most `room` prompt tokens, and [n, 2] where outputs begin and end whose prompts are done."""
        places, started = [], []
        while self._prefilling and room:
            first = self._prefilling[0]
            begin, middle, end = first
            stop = min(middle, begin + room)
            places.append(np.arange(begin, stop))
            room -= stop - begin
            first[0] = stop
            if stop == middle:
                self._prefilling.popleft()
                started += [(middle, end)] if middle < end else []
        return places, np.array(started, np.int64).reshape(-1, 2)


def _requests(num_tokens: int, workload: Workload, seed: int) -> NDArray[np.int64]:
    """[requests, 3]: where prompt, output and the request after it begin; all `num_tokens`."""
    draw = np.random.default_rng(seed)
    most = num_tokens // 2 + 1
    lengths = [draw.geometric(1 / mean, most) for mean in (workload.prompt_tokens, workload.output_tokens)]
    ends = np.minimum(np.cumsum(lengths[0] + lengths[1]), num_tokens)
    count = int(np.searchsorted(ends, num_tokens)) + 1
    ends = ends[:count]
    begins = np.concatenate([[0], ends[:-1]])
    requests = np.stack([begins, np.minimum(begins + lengths[0][:count], ends), ends], axis=1)
    return requests if workload.in_order else draw.permutation(requests)
