"""Threads for calls that may hang: they never hold up the end of the process, which `concurrent.futures` waits for."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

Job = Callable[[], None]


class DaemonThreads:
    """At most `num_threads` threads that run jobs in the order in which they came; made when they are needed.

    A job raises nothing. After `close` jobs that have not begun are forgotten; those that run end by themselves.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._closed = False

    def submit(self, job: Job) -> None:
        """Run `job` soon."""
        with self._lock:
            if self._closed:
                return
            self._jobs.put(job)
            if self._num_idle > 0:
                self._num_idle -= 1
                return
            if len(self._threads) == self._num_threads:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self, patience_s: float) -> bool:
        """Take no more jobs and wait a little for those that run; whether all have ended."""
        with self._lock:
            if not self._closed:
                self._closed = True
                while not self._jobs.empty():
                    self._jobs.get_nowait()
                for _ in self._threads:
                    self._jobs.put(None)
        deadline = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job()
            del job  # what it holds goes now, not when the next one comes

    def _next(self) -> Job | None:
        with self._lock:
            if self._jobs.empty():
                self._num_idle += 1
            else:
                return self._jobs.get()
        return self._jobs.get()


@dataclass(kw_only=True, slots=True)
class Alarm:
    """A job and its time; `action` is None when it has run or is wanted no more."""

    action: Job | None

    def cancel(self) -> None:
        """It need not run; it may be running."""
        self.action = None


class Clock:
    """One thread that runs short jobs at given times of `time.monotonic`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, when: float, action: Job) -> Alarm:
        """Run `action`, which raises nothing, at `when`."""
        alarm = Alarm(action=action)
        with self._changed:
            if self._closed:
                return alarm
            heapq.heappush(self._due, (when, next(self._numbers), alarm))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            elif self._due[0][2] is alarm:
                self._changed.notify()
        return alarm

    def close(self) -> None:
        """Forget what is to come."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify()

    def _run(self) -> None:
        while (action := self._next()) is not None:
            action()
            del action

    def _next(self) -> Job | None:
        with self._changed:
            while not self._closed:
                if not self._due:
                    self._changed.wait()
                    continue
                when, _, alarm = self._due[0]
                left = when - time.monotonic()
                if alarm.action is not None and left > 0:
                    self._changed.wait(left)
                    continue
                heapq.heappop(self._due)
                action = alarm.action
                if action is not None:
                    alarm.action = None
                    return action
        return None
