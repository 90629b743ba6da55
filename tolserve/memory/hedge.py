"""Reads of a place that is slow now and then: many at a time, and a second try of one that takes longer than most.

The first answer of the two counts. See Dean and Barroso, "The Tail at Scale" (2013), hedged requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from tolserve.memory.threads import Alarm, Clock, DaemonThreads

T = TypeVar("T")

_SEEN = 512
"""Latencies remembered, the last ones."""
_ENOUGH = 32
"""Below so many the quantile says nothing, and no read is hedged by it; it is computed anew after as many more."""
_LEAST_WAIT_S = 1e-3
"""A quantile below this is scheduling, not the store."""


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How an object store is read.

    Attributes:
        num_reads: reads on their way at a time; as many more may be hedges.
        deadline_s: rows for which the store has sent nothing for so long are an error.
        hedge_quantile: a read is tried a second time when it has taken longer than this share of the last 512; 0 hedges
            none.
        hedge_after_s: hedge after this time instead of the quantile's.

    Raises:
        ValueError: a value outside its range.
    """

    num_reads: int = 32
    deadline_s: float = 5.0
    hedge_quantile: float = 0.95
    hedge_after_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_reads <= 1024:
            raise ValueError(f"the number of reads at a time is {self.num_reads}; it must be in [1, 1024]")
        if not self.deadline_s > 0:
            raise ValueError(f"the deadline of reads is {self.deadline_s} s; it must be positive")
        if not 0 <= self.hedge_quantile < 1:
            raise ValueError(f"the quantile to hedge reads after is {self.hedge_quantile}; it must be in [0, 1)")
        if self.hedge_after_s is not None and not self.hedge_after_s > 0:
            raise ValueError(f"the time to hedge reads after is {self.hedge_after_s} s; it must be positive")


@dataclass(kw_only=True)
class ReadCounters:
    """Since the reader was made.

    Attributes:
        num_reads: reads begun, second tries not among them.
        num_hedges: second tries begun.
        num_hedges_won: second tries whose answer came before that of the first.
        num_hedges_lost: those whose answer came after it.
        num_failed: reads of which no try succeeded.
    """

    num_reads: int = 0
    num_hedges: int = 0
    num_hedges_won: int = 0
    num_hedges_lost: int = 0
    num_failed: int = 0


class Latencies:
    """How long the last tries took, and after how long a read is worth a second one."""

    def __init__(self, config: ReadConfig) -> None:
        self._config = config
        self._ring = np.zeros(_SEEN)
        self._num_seen = 0
        self._wait_s = config.hedge_after_s

    def add(self, took_s: float) -> None:
        """A try succeeded after `took_s`."""
        self._ring[self._num_seen % _SEEN] = took_s
        self._num_seen += 1
        config = self._config
        if config.hedge_after_s is None and config.hedge_quantile > 0 and self._num_seen % _ENOUGH == 0:
            seen = self._ring[: min(self._num_seen, _SEEN)]
            self._wait_s = max(_LEAST_WAIT_S, float(np.quantile(seen, config.hedge_quantile)))

    @property
    def hedge_after_s(self) -> float | None:
        """When a read that began now is tried again; None: it is not."""
        return self._wait_s


@dataclass(kw_only=True, eq=False, slots=True)
class _Read(Generic[T]):
    attempt: Callable[[], T]
    future: Future[T]
    num_running: int = 1
    hedged: bool = False
    settled: bool = False
    alarm: Alarm | None = None


class HedgedReads:
    """Runs reads in threads. A read is a call without arguments that may be made twice, at the same time too.

    Any thread may use it. Tries that hang stay in their threads, of which there are twice `num_reads`; further reads
    wait then, and whoever waits for them has a deadline.
    """

    def __init__(self, config: ReadConfig, clock: Clock) -> None:
        self.counters = ReadCounters()
        self._clock = clock
        self._latencies = Latencies(config)
        self._lock = threading.Lock()
        self._first = DaemonThreads(config.num_reads, "row-read")
        self._second = DaemonThreads(config.num_reads, "row-hedge")

    def submit(self, attempt: Callable[[], T]) -> Future[T]:
        """Begin a read; cancelling the future spares one that has not begun, and the second try of one that has."""
        read = _Read(attempt=attempt, future=Future())
        self._first.submit(lambda: self._try(read, is_hedge=False))
        return read.future

    def close(self, patience_s: float) -> bool:
        """Begin no more reads and wait a little for those that run; whether all have ended."""
        first = self._first.close(patience_s)
        return self._second.close(patience_s) and first

    def _try(self, read: _Read[Any], *, is_hedge: bool) -> None:
        if read.settled or read.future.done():
            return
        if not is_hedge:
            self._begin(read)
        began = time.monotonic()
        try:
            result = read.attempt()
        except Exception as error:  # noqa: BLE001 - whoever waits for the read gets it, whatever it is
            self._failed(read, error)
            return
        self._succeeded(read, result, time.monotonic() - began, is_hedge=is_hedge)

    def _begin(self, read: _Read[Any]) -> None:
        with self._lock:
            self.counters.num_reads += 1
            wait_s = self._latencies.hedge_after_s
        if wait_s is not None:
            read.alarm = self._clock.at(time.monotonic() + wait_s, lambda: self._hedge(read))

    def _hedge(self, read: _Read[Any]) -> None:
        with self._lock:
            if read.settled or read.future.done():
                return
            read.num_running += 1
            read.hedged = True
            self.counters.num_hedges += 1
        self._second.submit(lambda: self._try(read, is_hedge=True))

    def _succeeded(self, read: _Read[Any], result: Any, took_s: float, *, is_hedge: bool) -> None:
        with self._lock:
            self._latencies.add(took_s)
            if not self._settle(read):
                return
            self.counters.num_hedges_won += is_hedge
            self.counters.num_hedges_lost += read.hedged and not is_hedge
        read.future.set_result(result)

    def _failed(self, read: _Read[Any], error: Exception) -> None:
        with self._lock:
            read.num_running -= 1
            if read.num_running or not self._settle(read):
                return
            self.counters.num_failed += 1
        read.future.set_exception(error)

    def _settle(self, read: _Read[Any]) -> bool:
        """Whether the caller may set the result: nobody else has, or wants it no more."""
        if read.settled:
            return False
        read.settled = True
        if read.alarm is not None:
            read.alarm.cancel()
        return read.future.set_running_or_notify_cancel()
