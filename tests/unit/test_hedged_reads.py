"""Reads in threads: one that takes longer than most is tried again, the first answer counts, nothing waits for ever."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
from row_kit import TIMEOUT_S, wait_until

from tolserve.memory.hedge import HedgedReads, Latencies, ReadConfig
from tolserve.memory.threads import Clock, DaemonThreads


class Scripted:
    """A read whose tries end when the test says so, as `ends` says: with a value or an error."""

    def __init__(self, *ends: object) -> None:
        self.ends = ends
        self.gates = [threading.Event() for _ in ends]
        self._tries = itertools.count()
        self.num_begun = 0

    def __call__(self) -> object:
        number = next(self._tries)
        self.num_begun += 1
        assert self.gates[number].wait(TIMEOUT_S)
        end = self.ends[number]
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture
def make() -> object:
    made: list[tuple[HedgedReads, Clock]] = []

    def one(**settings: object) -> HedgedReads:
        clock = Clock("test")
        made.append((HedgedReads(ReadConfig(**settings), clock), clock))  # type: ignore[arg-type]
        return made[-1][0]

    yield one
    for reads, clock in made:
        clock.close()
        assert reads.close(TIMEOUT_S)


Make = Callable[..., HedgedReads]


def counts(reads: HedgedReads) -> tuple[int, int, int, int, int]:
    seen = reads.counters
    return seen.num_reads, seen.num_hedges, seen.num_hedges_won, seen.num_hedges_lost, seen.num_failed


@pytest.mark.parametrize(("winner", "won", "lost"), [(0, 0, 1), (1, 1, 0)])
def test_the_first_answer_of_two_counts(make: Make, winner: int, won: int, lost: int) -> None:
    reads, read = make(hedge_after_s=0.001), Scripted("first", "second")
    future = reads.submit(read)
    wait_until(lambda: read.num_begun == 2)
    read.gates[winner].set()
    assert future.result(TIMEOUT_S) == ("first", "second")[winner]
    read.gates[1 - winner].set()
    assert counts(reads) == (1, 1, won, lost, 0)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_try_that_fails_leaves_the_other(make: Make, failing: int) -> None:
    ends: list[object] = ["a", "b"]
    ends[failing] = OSError("lost")
    reads, read = make(hedge_after_s=0.001), Scripted(*ends)
    future = reads.submit(read)
    wait_until(lambda: read.num_begun == 2)
    read.gates[failing].set()
    read.gates[1 - failing].set()
    assert future.result(TIMEOUT_S) == "ab"[1 - failing]


def test_a_read_fails_with_its_last_try(make: Make) -> None:
    reads, read = make(hedge_after_s=0.001), Scripted(OSError("one"), OSError("two"))
    future = reads.submit(read)
    wait_until(lambda: read.num_begun == 2)
    read.gates[0].set()
    read.gates[1].set()
    with pytest.raises(OSError, match=r"one|two"):
        future.result(TIMEOUT_S)
    assert counts(reads) == (1, 1, 0, 0, 1)


def test_without_a_quantile_or_a_time_nothing_is_hedged(make: Make) -> None:
    reads, read = make(hedge_quantile=0), Scripted("slow")
    others = [reads.submit(lambda: 1) for _ in range(200)]
    assert [other.result(TIMEOUT_S) for other in others] == [1] * 200
    future = reads.submit(read)
    wait_until(lambda: read.num_begun == 1)
    read.gates[0].set()
    assert future.result(TIMEOUT_S) == "slow"
    assert counts(reads) == (201, 0, 0, 0, 0)


def test_the_quantile_is_that_of_the_last_latencies() -> None:
    seen = Latencies(ReadConfig(hedge_quantile=0.9))
    took = np.random.default_rng(0).uniform(0.01, 1.0, 1024)
    for number, one in enumerate(took, start=1):
        seen.add(one)
        if number < 32:
            assert seen.hedge_after_s is None
    assert seen.hedge_after_s == pytest.approx(np.quantile(took[-512:], 0.9))
    given = Latencies(ReadConfig(hedge_after_s=0.25))
    given.add(9.0)
    assert given.hedge_after_s == 0.25


def test_a_slow_read_is_hedged_by_the_quantile_once_enough_were_seen(make: Make) -> None:
    reads, slow = make(hedge_quantile=0.5), Scripted("first", "second")
    for _ in range(32):
        assert reads.submit(lambda: 1).result(TIMEOUT_S) == 1
    future = reads.submit(slow)
    wait_until(lambda: slow.num_begun == 2)
    slow.gates[1].set()
    assert future.result(TIMEOUT_S) == "second"
    slow.gates[0].set()


def test_reads_wait_for_a_free_thread_and_cancelled_ones_are_spared(make: Make) -> None:
    reads = make(num_reads=2, hedge_quantile=0)
    gates = [Scripted(number) for number in range(5)]
    futures: list[Future[object]] = [reads.submit(gate) for gate in gates]
    wait_until(lambda: gates[0].num_begun == gates[1].num_begun == 1)
    assert not any(gate.num_begun for gate in gates[2:])
    assert futures[2].cancel()
    for gate in gates:
        gate.gates[0].set()
    assert [future.result(TIMEOUT_S) for place, future in enumerate(futures) if place != 2] == [0, 1, 3, 4]
    assert gates[2].num_begun == 0


def test_threads_that_hang_are_left_alone_when_closed() -> None:
    threads, begun, gate, ended = DaemonThreads(2, "test"), threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        gate.wait(TIMEOUT_S)
        ended.set()

    threads.submit(hang)
    assert begun.wait(TIMEOUT_S)
    assert not threads.close(0.01)
    threads.submit(ended.set)
    assert not ended.is_set()
    gate.set()
    assert threads.close(TIMEOUT_S) and ended.is_set()


def test_a_clock_rings_in_the_order_of_times_and_not_when_cancelled() -> None:
    clock, rang, done, now = Clock("test"), [], threading.Event(), time.monotonic()
    clock.at(now + 0.03, lambda: rang.append("c"))
    clock.at(now + 0.01, lambda: rang.append("a")).cancel()
    clock.at(now + 0.02, lambda: rang.append("b"))
    clock.at(now + 0.04, done.set)
    assert done.wait(TIMEOUT_S)
    assert rang == ["b", "c"]
    clock.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_reads": 0}, "reads at a time is 0"),
        ({"deadline_s": 0}, "deadline of reads is 0 s"),
        ({"hedge_quantile": 1.0}, "quantile to hedge reads after is 1.0"),
        ({"hedge_after_s": 0}, "time to hedge reads after is 0 s"),
    ],
)
def test_a_wrong_setting_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadConfig(**values)  # type: ignore[arg-type]
