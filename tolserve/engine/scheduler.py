"""Which tokens the next step computes: continuous batching with chunked prefill over a bounded KV cache.

Every running sequence that needs one token gets it first; what is left of the token budget goes to unfinished prompts
in order of arrival, and then to waiting requests whose whole sequence fits into free blocks. When a decoding sequence
finds no block, the last arrived one is preempted: its blocks are given back and it waits, first in line, to be
computed again from its own tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from tolserve.engine.config import EngineConfig
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`length` tokens of a sequence's prompt (or of what preemption made it forget), from its first uncomputed one."""

    sequence: Sequence
    length: int

    @property
    def completes(self) -> bool:
        """Whether the sequence's next token can be sampled after it."""
        return self.length == self.sequence.num_uncomputed


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step's work: one token of each of `decodes`, and `chunks`."""

    decodes: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)


class Scheduler:
    """Owns the queues and the KV cache's rows and blocks."""

    def __init__(self, config: EngineConfig, cache: KVCache) -> None:
        self.config = config
        self.cache = cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def check_fits(self, num_prompt: int, max_tokens: int) -> None:
        """Refuse what could never be computed.

        Raises:
            ValueError: prompt plus output is longer than max_model_len or than the whole KV cache.
        """
        total = num_prompt + max_tokens
        if total > self.config.max_model_len:
            raise ValueError(
                f"{num_prompt} prompt tokens and max_tokens {max_tokens} make {total}; this engine serves at most "
                f"{self.config.max_model_len} (max_model_len)"
            )
        need = self.cache.blocks_for(total)
        if need > self.cache.num_blocks:
            raise ValueError(
                f"{total} tokens need {need} blocks of {self.config.block_size}; the KV cache has "
                f"{self.cache.num_blocks} (num_blocks)"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that `check_fits` accepted."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and give back what it holds."""
        if sequence.row is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._release(sequence)

    def schedule(self) -> StepPlan:
        """The next step; empty where nothing is left to do. Blocks for its tokens are taken."""
        decodes = self._schedule_decodes()
        budget = self.config.max_num_batched_tokens - len(decodes)
        chunks = []
        for sequence in self.running:
            if sequence.num_uncomputed > 1 and budget > 0:
                chunks.append(Chunk(sequence=sequence, length=min(budget, sequence.num_uncomputed)))
                budget -= chunks[-1].length
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            chunks.append(Chunk(sequence=sequence, length=min(budget, sequence.num_uncomputed)))
            budget -= chunks[-1].length
        return StepPlan(decodes=decodes, chunks=chunks)

    def upcoming(self, plan: StepPlan) -> list[int]:
        """Token ids that the step after `plan` will probably prefill, at most one step's budget."""
        budget = self.config.max_num_batched_tokens - len(plan.decodes)
        taken = {id(chunk.sequence): chunk.length for chunk in plan.chunks}
        decoding = {id(sequence) for sequence in plan.decodes}
        ids: list[int] = []
        for sequence in chain(self.running, self._admissible()):
            if id(sequence) not in decoding:
                start = sequence.num_computed + taken.get(id(sequence), 0)
                ids.extend(sequence.tokens[start : start + budget - len(ids)])
            if len(ids) >= budget:
                break
        return ids

    def _admissible(self) -> Iterator[Sequence]:
        free = self.cache.num_free_blocks
        for sequence in self.waiting:
            free -= self.cache.blocks_for(len(sequence.tokens))
            if free < 0 or not self.cache.has_free_row:
                return
            yield sequence

    def _schedule_decodes(self) -> list[Sequence]:
        decodes: list[Sequence] = []
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            index += 1
            if sequence.num_uncomputed != 1:
                continue
            assert sequence.row is not None
            while not self.cache.grow(sequence.row, len(sequence.tokens)):
                self._preempt(self.running[-1])
                if sequence.row is None:
                    break
            if sequence.row is not None:
                decodes.append(sequence)
        return decodes

    def _admit(self, sequence: Sequence) -> bool:
        if not self.cache.has_free_row or self.cache.num_free_blocks < self.cache.blocks_for(len(sequence.tokens)):
            return False
        sequence.row = self.cache.take_row()
        grown = self.cache.grow(sequence.row, len(sequence.tokens))
        assert grown, "blocks were free a moment ago"
        self.running.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        self.cache.release(sequence.row)
        sequence.row = None
        sequence.num_computed = 0
