"""Which tokens the next step computes: continuous batching with chunked prefill over a bounded KV cache.

Requests go by rank: the lower priority first, then the older. Every running sequence that needs one token gets it
first; what is left of the token budget goes to unfinished prompts and to waiting requests whose whole sequence fits
into free blocks, by rank, and none overtakes one of its priority. When a decoding sequence finds no block, the running
one of the last rank is preempted: its blocks are given back and it waits in the place of its rank, before newer ones,
to be computed again from its own tokens. A request that finds no room preempts those of a less urgent priority.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter

from tolserve.engine.config import EngineConfig
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.prefix import PrefixCache
from tolserve.engine.sequence import Sequence

_BY_RANK = attrgetter("rank")


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
    """Owns the queues, both by rank, and the KV cache's rows and blocks; `prefix` is None where nothing is reused."""

    def __init__(self, config: EngineConfig, cache: KVCache, prefix: PrefixCache | None = None) -> None:
        self.config = config
        self.cache = cache
        self.prefix = prefix
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._num_added = 0

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
        self._num_added += 1
        sequence.arrival = self._num_added
        insort(self.waiting, sequence, key=_BY_RANK)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and give back what it holds."""
        if sequence.row is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._release(sequence)

    def schedule(self) -> StepPlan:
        """The next step; empty where nothing is left to do. Blocks for its tokens are taken."""
        self._make_way()
        decodes = self._schedule_decodes()
        if len(decodes) == len(self.running) and not self.waiting:
            return StepPlan(decodes=decodes)
        budget = self.config.max_num_batched_tokens - len(decodes)
        return StepPlan(decodes=decodes, chunks=self._schedule_chunks(budget))

    def advance(self, plan: StepPlan) -> None:
        """A planned step is computed: the cache has its tokens' keys and values, which others may reuse."""
        prefix, block_size = self.prefix, self.config.block_size
        for sequence in plan.decodes:
            sequence.num_computed += 1
            if prefix is not None and sequence.num_computed % block_size == 0:
                prefix.publish(sequence)
        for chunk in plan.chunks:
            chunk.sequence.num_computed += chunk.length
            if prefix is not None:
                prefix.publish(chunk.sequence)

    def upcoming(self, plan: StepPlan) -> list[int]:
        """Token ids that the step after `plan` will probably prefill, at most one step's budget."""
        budget = self.config.max_num_batched_tokens - len(plan.decodes)
        taken = {id(chunk.sequence): chunk.length for chunk in plan.chunks}
        decoding = {id(sequence) for sequence in plan.decodes}
        ids: list[int] = []
        for sequence, start in chain(((one, one.num_computed) for one in self.running), self._admissible()):
            if id(sequence) not in decoding:
                first = start + taken.get(id(sequence), 0)
                ids.extend(sequence.tokens[first : first + budget - len(ids)])
            if len(ids) >= budget:
                break
        return ids

    def _admissible(self) -> Iterator[tuple[Sequence, int]]:
        """Waiting sequences for which there is room, with the first token that would be computed of each."""
        free = self.cache.num_free_blocks
        for sequence in self.waiting:
            free -= self.cache.blocks_for(len(sequence.tokens))
            if free < 0 or not self.cache.has_free_row:
                return
            yield sequence, len(self._reusable(sequence)) * self.cache.block_size

    def _make_way(self) -> None:
        """Preempt less urgent requests for the first that waits, where that gives it room."""
        if not self.waiting or not self.running:
            return
        head = self.waiting[0]
        urgency = head.params.priority
        if self.running[-1].params.priority <= urgency or self._has_room(head, self._reusable(head)):
            return
        rows = [one.row for one in self.running if one.params.priority > urgency and one.row is not None]
        if self.cache.num_free_blocks + self.cache.num_freed_by(rows) < self.cache.blocks_for(len(head.tokens)):
            return
        while not self._has_room(head, self._reusable(head)):
            self._preempt(self.running[-1])

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

    def _schedule_chunks(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        unfinished = deque(one for one in self.running if one.num_uncomputed > 1)
        while budget > 0:
            sequence = self._next_to_prefill(unfinished)
            if sequence is None:
                break
            chunks.append(Chunk(sequence=sequence, length=min(budget, sequence.num_uncomputed)))
            budget -= chunks[-1].length
        return chunks

    def _next_to_prefill(self, unfinished: deque[Sequence]) -> Sequence | None:
        """By rank, the next unfinished prompt or waiting request that finds room."""
        if self.waiting and (not unfinished or self.waiting[0].rank < unfinished[0].rank):
            head = self.waiting[0]
            if self._admit(head):
                del self.waiting[0]
                return head
        return unfinished.popleft() if unfinished else None

    def _reusable(self, sequence: Sequence) -> list[int]:
        return [] if self.prefix is None else self.prefix.match(sequence)

    def _has_room(self, sequence: Sequence, reusable: list[int]) -> bool:
        held = sum(self.cache.pool.num_holders(block) > 0 for block in reusable)
        need = self.cache.blocks_for(len(sequence.tokens)) - held
        return self.cache.has_free_row and self.cache.num_free_blocks >= need

    def _admit(self, sequence: Sequence) -> bool:
        if not self.cache.has_free_row:
            return False
        reusable = self._reusable(sequence)
        if not self._has_room(sequence, reusable):
            return False
        sequence.row = self.cache.take_row()
        self.cache.share(sequence.row, reusable)
        grown = self.cache.grow(sequence.row, len(sequence.tokens))
        assert grown, "blocks were free a moment ago"
        sequence.num_computed = len(reusable) * self.cache.block_size
        if self.prefix is not None:
            self.prefix.admitted(sequence)
        insort(self.running, sequence, key=_BY_RANK)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        insort(self.waiting, sequence, key=_BY_RANK)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        assert sequence.row is not None
        self.cache.release(sequence.row)
        sequence.row = None
        sequence.num_computed = 0
