"""Processes by pid and start time, found by mark, ended whole; signals that wait for a good moment."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import processes
from cluster.interrupts import Interrupted, Interrupts
from cluster.processes import ProcessId

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, 1); print('set', flush=True); time.sleep(600)"


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark of its own; nothing that carries it outlives the test."""
    name = secrets.token_hex(8)
    yield name
    for process in processes.family(name):
        process.kill()


def start(mark: str, code: str, folder: Path) -> ProcessId:
    child = processes.spawn(
        [sys.executable, "-c", code], mark=mark, environment=os.environ, log=folder / "log", folder=folder
    )
    return ProcessId.of(child.pid)


def wait_for_text(path: Path, text: str) -> None:
    end = time.monotonic() + 20
    while text not in path.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_marked_process_is_found_and_ended(mark: str, tmp_path: Path) -> None:
    one = start(mark, SLEEP, tmp_path)
    assert [process.pid for process in processes.family(mark)] == [one.pid]
    assert processes.end(mark, [one]) == 1
    assert one.find() is None
    assert processes.family(mark) == []


def test_an_orphan_is_found_by_its_mark(mark: str, tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    parent = start(mark, code, tmp_path)
    os.waitpid(parent.pid, 0)
    assert parent.find() is None
    assert len(processes.family(mark)) == 1
    assert processes.end(mark, [parent]) == 1


def test_a_process_that_ignores_sigterm_is_killed(mark: str, tmp_path: Path) -> None:
    one = start(mark, STUBBORN, tmp_path)
    wait_for_text(tmp_path / "log", "set")
    assert processes.end(mark, [one], grace_s=0.2) == 1
    assert one.find() is None


def test_a_pid_given_to_another_process_is_not_touched(mark: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as stranger:
        recycled = ProcessId(pid=stranger.pid, started=psutil.Process(stranger.pid).create_time() - 100)
        assert recycled.find() is None
        assert processes.end(mark, [recycled]) == 0
        assert stranger.poll() is None
        stranger.kill()


def test_children_of_another_mark_stay(mark: str, tmp_path: Path) -> None:
    other = mark + "-other"
    one, two = start(mark, SLEEP, tmp_path), start(other, SLEEP, tmp_path)
    processes.end(mark, [one])
    assert two.find()
    processes.end(other, [two])


def test_a_signal_waits_for_the_next_check() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        done = "this line is reached"
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
        assert done
        assert caught.value.exit_code == 130


def test_a_signal_ends_a_wait() -> None:
    with Interrupts() as interrupts:
        began = time.monotonic()

        def done() -> bool:
            if time.monotonic() - began > 0.1:
                os.kill(os.getpid(), signal.SIGTERM)
            return False

        with pytest.raises(Interrupted) as caught:
            interrupts.wait(done, timeout_s=60)
        assert caught.value.exit_code == 143


def test_a_wait_ends_when_it_is_done_or_late() -> None:
    with Interrupts() as interrupts:
        assert interrupts.wait(lambda: True, timeout_s=0)
        assert not interrupts.wait(lambda: False, timeout_s=0.01)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
