"""From an engine that steps to requests that wait: a thread runs the steps, an asyncio loop gets the outputs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tolserve.engine.request import FinishReason, RequestOutput, SamplingParams

_log = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.5
"""How old the statistics of a busy engine may be."""

Work = tuple[list[int], SamplingParams]
"""One generation: prompt ids and parameters."""


class StepEngine(Protocol):
    """The part of `tolserve.engine.Engine` that serving needs; one thread uses it."""

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        """Queue a request; a ValueError refuses it."""

    def cancel(self, request_id: str) -> Any:
        """End a request and free what it holds; unknown ids are ignored."""

    def step(self) -> list[RequestOutput]:
        """Compute one step; what it added to each request."""
        ...

    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        ...

    def stats(self) -> Any:
        """Counts since the start and the state now."""


class Submission(Protocol):
    """The generations of one HTTP request, numbered as they were given."""

    @property
    def fingerprint(self) -> str:
        """What names the table version that all of them are computed with, once one of them has given an output; empty
        where there is no table.
        """

    async def next(self) -> list[tuple[int, RequestOutput]]:
        """All outputs since the last call, at least one; every generation ends with a finished one."""
        ...

    def cancel(self) -> None:
        """End what still runs; `next` then gives it as finished with "abort". Idempotent, nothing is left running."""
        ...


class CompletionEngine(Protocol):
    """What the HTTP application submits to: an engine in this process or a fleet of them."""

    def submit(self, works: Sequence[Work], *, stream: bool) -> Submission:
        """Start every generation; without `stream` each may come as one output."""
        ...

    def stats(self) -> dict[str, dict[str, Any]]:
        """The latest statistics of each engine, by its name."""
        ...

    def ready(self) -> bool:
        """Whether a request would be computed now."""
        ...


class Mailbox:
    """Outputs on their way to the one coroutine that waits for them; used on one event loop."""

    def __init__(self) -> None:
        self._items: list[tuple[int, RequestOutput]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, index: int, output: RequestOutput) -> None:
        """Add an output and wake the reader."""
        self._items.append((index, output))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> list[tuple[int, RequestOutput]]:
        """Everything put since the last call, at least one item."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items


def aborted(request_id: str, error: Exception | None = None) -> RequestOutput:
    """The last output of a generation that was cancelled or, with `error`, failed."""
    reason: FinishReason = "abort" if error is None else "error"
    return RequestOutput(request_id=request_id, tokens=(), finished=True, finish_reason=reason, error=error)


class EngineThread:
    """Runs an engine: takes requests at any time from any thread, steps while there is work, waits otherwise.

    `deliver` gets the outputs of each step, in this thread. A step that raises ends all open requests with that
    error and the thread with it; `failure` then holds it. `stats` is a recent snapshot.
    """

    def __init__(self, engine: StepEngine, deliver: Callable[[list[RequestOutput]], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._inbox: deque[tuple[str, Work | None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._open: set[str] = set()
        self.failure: Exception | None = None
        self.stats: dict[str, Any] = {}
        self._stats_time = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request_id: str, work: Work) -> None:
        """Queue one generation; a refusal arrives as its only output.

        Raises:
            RuntimeError: the engine has failed or was stopped.
        """
        self._post(request_id, work)

    def cancel(self, request_id: str) -> None:
        """End a generation and free what it holds; no further output of it is delivered. Unknown ids are ignored."""
        self._post(request_id, None)

    def stop(self) -> None:
        """End the thread after the current step; open requests get no further output."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether steps are still run."""
        return self._thread.is_alive()

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open) + len(self._inbox)

    def _post(self, request_id: str, work: Work | None) -> None:
        with self._wake:
            if work is not None and (self.failure is not None or self._stopping):
                raise RuntimeError(f"the engine does not run any more: {self.failure or 'stopped'}")
            self._inbox.append((request_id, work))
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                outputs = self._take_inbox()
                outputs += [one for one in self._engine.step() if one.request_id in self._open]
                self._open.difference_update(one.request_id for one in outputs if one.finished)
                if outputs:
                    self._deliver(outputs)
                if time.monotonic() - self._stats_time > STATS_INTERVAL_S:
                    self._read_stats()
        except Exception as error:  # noqa: BLE001 - whatever it was, its requests must learn of it
            _log.exception("the engine's step failed; its %d open requests end", len(self._open))
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._wake:
            self.failure = error
            self._open.update(request_id for request_id, work in self._inbox if work is not None)
        self._deliver([aborted(request_id, error) for request_id in sorted(self._open)])

    def _read_stats(self) -> None:
        self.stats, self._stats_time = dict(self._engine.stats()), time.monotonic()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False once stopped."""
        with self._wake:
            while not self._stopping and not self._inbox and not self._engine.has_work():
                self._read_stats()
                self._wake.wait()
            return not self._stopping

    def _take_inbox(self) -> list[RequestOutput]:
        """Hand posted requests to the engine; the outputs of those it refuses."""
        refused = []
        while self._inbox:
            request_id, work = self._inbox.popleft()
            if work is None:
                self._open.discard(request_id)
                self._engine.cancel(request_id)
                continue
            try:
                self._engine.add_request(request_id, *work)
                self._open.add(request_id)
            except ValueError as error:
                refused.append(aborted(request_id, error))
        return refused


class LocalEngine:
    """A `CompletionEngine` over an engine in this process, for one event loop: make it where that loop runs."""

    def __init__(self, engine: StepEngine) -> None:
        self._loop = asyncio.get_running_loop()
        self._routes: dict[str, tuple[Mailbox, int]] = {}
        self._ids = itertools.count()
        self._thread = EngineThread(engine, self._from_engine)

    def submit(self, works: Sequence[Work], *, stream: bool) -> LocalSubmission:
        """Start every generation (see `CompletionEngine`); outputs come step by step either way."""
        mailbox = Mailbox()
        names = [f"local-{next(self._ids)}" for _ in works]
        for index, (name, work) in enumerate(zip(names, works, strict=True)):
            self._routes[name] = (mailbox, index)
            self._thread.submit(name, work)
        return LocalSubmission(self, mailbox, names)

    def cancel(self, name: str) -> None:
        """End one generation by its engine name."""
        route = self._routes.pop(name, None)
        if route is not None:
            self._thread.cancel(name)
            route[0].put(route[1], aborted(name))

    def stats(self) -> dict[str, dict[str, Any]]:
        """Statistics of the one engine."""
        return {"0": self._thread.stats}

    def ready(self) -> bool:
        """Whether steps are run."""
        return self._thread.alive

    def stop(self) -> None:
        """End the engine's thread."""
        self._thread.stop()

    def _from_engine(self, outputs: list[RequestOutput]) -> None:
        self._loop.call_soon_threadsafe(self._route, outputs)

    def _route(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            route = self._routes.get(output.request_id)
            if route is None:
                continue
            if output.finished:
                del self._routes[output.request_id]
            route[0].put(route[1], output)


class LocalSubmission:
    """The generations of one request on a `LocalEngine`."""

    fingerprint = ""

    def __init__(self, engine: LocalEngine, mailbox: Mailbox, names: list[str]) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._names = names

    async def next(self) -> list[tuple[int, RequestOutput]]:
        """See `Submission`."""
        return await self._mailbox.get()

    def cancel(self) -> None:
        """See `Submission`."""
        for name in self._names:
            self._engine.cancel(name)
