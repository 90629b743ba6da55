"""Which rows each step of a server asks for: pieces of text as requests, batched as the scheduler batches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolserve.memory.cached import distinct
from tolserve.memory.spec import Ids


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of a kind, and what a step holds.

    Attributes:
        prompt_tokens, output_tokens: means of geometric distributions; 1 is always 1.
        num_seqs: requests that run at once.
        num_batched_tokens: tokens of a step, outputs first.

    Raises:
        ValueError: a number below 1, or a step that cannot hold a token of each request.
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    num_seqs: int
    num_batched_tokens: int

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
    """`tokens` (int64 [N], text in order) cut into requests, which are served in random order.

    Every token is computed once. Requests start when there is room, prompts in the order of their requests, in chunks.
    """
    return Trace(steps=list(_steps(tokens, workload, seed)), vocab_size=vocab_size, num_tokens=len(tokens))


def _steps(tokens: Ids, workload: Workload, seed: int) -> Iterator[Ids]:
    prompts = _requests(len(tokens), workload, seed)
    waiting = iter(prompts.tolist())
    chunk: NDArray[np.int64] = np.empty(0, np.int64)
    running = np.empty((0, 2), np.int64)
    prefilling: list[list[int]] = []
    while True:
        for request in waiting:
            prefilling.append(request)
            if len(running) + len(prefilling) >= workload.num_seqs:
                break
        room = workload.num_batched_tokens - len(running)
        ranges, started = [], []
        while prefilling and room:
            begin, middle, end = prefilling[0]
            stop = min(middle, begin + room)
            ranges.append(np.arange(begin, stop))
            room -= stop - begin
            prefilling[0][0] = stop
            if stop == middle:
                prefilling.pop(0)
                if middle < end:
                    started.append((middle, end))
        chunk = np.concatenate([running[:, 0], *ranges])
        if len(chunk) == 0:
            return
        yield distinct(tokens[chunk])
        running[:, 0] += 1
        running = running[running[:, 0] < running[:, 1]]
        if started:
            running = np.concatenate([running, np.array(started, np.int64)])


def _requests(num_tokens: int, workload: Workload, seed: int) -> NDArray[np.int64]:
    """[requests, 3]: where prompt, output and the request after it begin; all `num_tokens`, in random order."""
    draw = np.random.default_rng(seed)
    most = num_tokens // 2 + 1
    lengths = [draw.geometric(1 / mean, most) for mean in (workload.prompt_tokens, workload.output_tokens)]
    ends = np.minimum(np.cumsum(lengths[0] + lengths[1]), num_tokens)
    count = int(np.searchsorted(ends, num_tokens)) + 1
    ends = ends[:count]
    begins = np.concatenate([[0], ends[:-1]])
    requests = np.stack([begins, np.minimum(begins + lengths[0][:count], ends), ends], axis=1)
    return draw.permutation(requests)
