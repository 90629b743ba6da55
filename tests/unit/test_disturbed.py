"""Turns in which the core was taken away are found by the system's own counts and left out, unless they are many."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tolserve.bench import disturbed
from tolserve.bench.disturbed import Disturbances, Turns


def write(folder: Path, *, steal: int, delay_ns: int) -> None:
    (folder / "stat").write_text(f"cpu  1 2 3 4 5 6 7 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 {steal} 0 0\n")
    (folder / "schedstat").write_text(f"155541 {delay_ns} 2\n")


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disturbed, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(disturbed, "_SCHEDSTAT", tmp_path / "schedstat")
    return tmp_path


def test_what_grew_is_seen_once(counts: Path) -> None:
    write(counts, steal=10, delay_ns=10**6)
    found = Disturbances()
    assert not found.any()
    write(counts, steal=12, delay_ns=10**6)
    assert found.any() and not found.any()
    write(counts, steal=12, delay_ns=9 * 10**6)
    assert found.any() and not found.any()
    write(counts, steal=12, delay_ns=9 * 10**6 + 1000)
    assert not found.any()


@pytest.mark.parametrize("text", [None, "cpu  1 2 3 4\n", ""])
def test_a_system_that_does_not_count_it_has_none(text: str | None, counts: Path) -> None:
    if text is not None:
        (counts / "stat").write_text(text)
    assert not Disturbances().any()


def test_what_threads_of_this_process_took_is_none(counts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_ns = iter([0, 5 * 10**6, 5 * 10**6])
    monkeypatch.setattr("time.process_time_ns", lambda: next(own_ns))
    monkeypatch.setattr("time.thread_time_ns", lambda: 0)
    write(counts, steal=0, delay_ns=0)
    found = Disturbances()
    write(counts, steal=0, delay_ns=5 * 10**6)
    assert not found.any()
    write(counts, steal=0, delay_ns=10 * 10**6)
    assert found.any()


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="this system counts no run delay")
def test_another_process_on_the_core_is_a_disturbance() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, {core})
    found = Disturbances()
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:
        assert _is_seen(found)
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, before)


def _is_seen(found: Disturbances) -> bool:
    for _ in range(100):
        _spin(0.05)
        if found.any():
            return True
    return False


def _spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_few_disturbed_turns_are_left_out_and_many_are_kept(counts: Path) -> None:
    turns = list(range(20))
    few = taken([turn in (3, 9) for turn in turns], counts)
    assert few.undisturbed == [turn for turn in turns if turn not in (3, 9)] and few.all == turns
    assert few.counts() == {"num_disturbed": 2, "num_left_out": 2}
    many = taken([turn < 3 for turn in turns], counts)
    assert many.undisturbed == turns and many.counts() == {"num_disturbed": 3, "num_left_out": 0}
    none = taken([], counts)
    assert none.undisturbed == [] and none.counts() == {"num_disturbed": 0, "num_left_out": 0}


def test_warm_turns_are_forgotten_with_what_disturbed_them(counts: Path) -> None:
    turns = taken([True, True, False, False], counts)
    turns.forget(2)
    assert turns.undisturbed == turns.all == [2, 3] and turns.num_disturbed == 0


def taken(was_disturbed: list[bool], counts: Path) -> Turns[int]:
    """Turns of which some were disturbed, by the counts of the system."""
    write(counts, steal=0, delay_ns=0)
    turns: Turns[int] = Turns()
    for number in range(len(was_disturbed)):
        write(counts, steal=sum(was_disturbed[: number + 1]), delay_ns=0)
        turns.add(number)
    return turns
