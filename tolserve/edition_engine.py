"""Engines of several editions as one: a generation stays with the edition that it began with.

They share weights and KV cache (see `tolserve.engine.build.make_engine`). A generation of one edition is not begun
while one of an edition before it waits for room, so that those which are to end first are not kept from it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tolserve.async_engine import StepEngine
from tolserve.engine.request import RequestOutput, SamplingParams
from tolserve.rollout import Edition

_OF_THE_CACHE = ("num_blocks", "num_free_blocks")
"""Statistics of what the engines share."""


class Closable(StepEngine, Protocol):
    """An engine that holds something."""

    def close(self) -> None:
        """Give it back; nothing runs any more."""


class EditionEngine:
    """A `StepEngine` over the engines of up to two editions.

    The engine's thread adds, steps and cancels; any thread may `put`, `place` and `drop`.
    """

    def __init__(self, edition: Edition, engine: Closable) -> None:
        self._lock = threading.Lock()
        self._stepping = threading.Lock()
        self._engines: dict[str, Closable] = {edition.key: engine}
        self._of: dict[str, str] = {}
        self._held_back: deque[tuple[str, list[int], SamplingParams]] = deque()
        self._past: dict[str, Any] = {}

    def put(self, edition: Edition, engine: Closable) -> None:
        """Compute with this edition too."""
        with self._lock:
            self._engines = {**self._engines, edition.key: engine}

    def between_steps(self) -> AbstractContextManager[Any]:
        """No step runs inside: captures on a GPU suffer no other work there."""
        return self._stepping

    def place(self, request_id: str, key: str) -> bool:
        """Say which edition a request will be of, before it is added; False where that edition is not here."""
        with self._lock:
            if key in self._engines:
                self._of[request_id] = key
            return key in self._engines

    def drop(self, edition: Edition) -> bool:
        """Give an edition up; False, and nothing happens, while a request is of it or there is no other."""
        with self._lock:
            if edition.key in self._of.values() or len(self._engines) < 2:
                return False
            engine = self._engines[edition.key]
            self._engines = {key: one for key, one in self._engines.items() if key != edition.key}
            past = {name: value for name, value in engine.stats().items() if name not in _OF_THE_CACHE}
            self._past = added(self._past, past)
        engine.close()
        return True

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """See `StepEngine`; a request that was not placed is of the newest edition."""
        with self._lock:
            key = self._of.setdefault(request_id, list(self._engines)[-1])
        if self._held_back or self._waits_before(key):
            self._held_back.append((request_id, prompt_token_ids, params))
            return
        self._add(request_id, prompt_token_ids, params)

    def cancel(self, request_id: str) -> Any:
        """See `StepEngine`."""
        key = self._of.get(request_id)
        output = None if key is None else self._engines[key].cancel(request_id)
        self._held_back = deque(one for one in self._held_back if one[0] != request_id)
        self._forget([request_id])
        return output

    def has_work(self) -> bool:
        """See `StepEngine`."""
        return bool(self._held_back) or any(engine.has_work() for engine in self._engines.values())

    def step(self) -> list[RequestOutput]:
        """A step of each edition that has work, the one that came first before the others."""
        with self._stepping:
            outputs = self._begin_held_back()
            for engine in list(self._engines.values()):
                if engine.has_work():
                    outputs += engine.step()
        self._forget([one.request_id for one in outputs if one.finished])
        return outputs

    def stats(self) -> dict[str, Any]:
        """The statistics of all, added up, with what editions that are gone have done."""
        with self._lock:
            engines, total = list(self._engines.values()), self._past
        for engine in engines:
            total = added(total, engine.stats())
        shared = engines[-1].stats()
        cache = {name: shared[name] for name in _OF_THE_CACHE if name in shared}
        waiting = {"num_waiting": total.get("num_waiting", 0) + len(self._held_back)}
        return {**total, **cache, **waiting}

    def close(self) -> None:
        """Close all of them."""
        for engine in self._engines.values():
            engine.close()

    def _add(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        try:
            self._engines[self._of[request_id]].add_request(request_id, prompt_token_ids, params)
        except ValueError:
            self._forget([request_id])
            raise

    def _begin_held_back(self) -> list[RequestOutput]:
        """Add what may begin now; the outputs of those that are refused."""
        refused = []
        while self._held_back and not self._waits_before(self._of[self._held_back[0][0]]):
            request = self._held_back.popleft()
            try:
                self._add(*request)
            except ValueError as error:
                refused.append(_refused(request[0], error))
        return refused

    def _waits_before(self, key: str) -> bool:
        """Whether a request of an edition before this one waits for room in the KV cache."""
        for other, engine in self._engines.items():
            if other == key:
                return False
            if engine.has_work() and engine.stats()["num_waiting"]:
                return True
        return False

    def _forget(self, request_ids: Sequence[str]) -> None:
        with self._lock:
            for request_id in request_ids:
                self._of.pop(request_id, None)


def added(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics added up: numbers by name, inner mappings likewise, anything else from the second."""
    total = dict(first)
    for name, value in second.items():
        known = total.get(name)
        if isinstance(value, Mapping):
            total[name] = added(known if isinstance(known, Mapping) else {}, value)
        elif isinstance(value, int | float) and isinstance(known, int | float):
            total[name] = known + value
        else:
            total[name] = value
    return total


def _refused(request_id: str, error: Exception) -> RequestOutput:
    return RequestOutput(request_id=request_id, tokens=(), finished=True, finish_reason="error", error=error)
