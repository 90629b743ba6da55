"""Moments at which another process, or the host of a virtual machine, takes the core away.

One of them lasts as long as ten or a hundred steps and falls on whichever contestant is computing. Linux counts them,
so that a turn that was disturbed can be told from a turn that was slow of itself: `steal` in /proc/stat for the host,
the run delay in /proc/thread-self/schedstat for others on the same core. What this process's own threads took of that
is no disturbance; it is what a contestant costs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

_STAT, _SCHEDSTAT = Path("/proc/stat"), Path("/proc/thread-self/schedstat")
_STEAL = 8
"""Column of the first line: cpu, user, nice, system, idle, iowait, irq, softirq, steal."""
_RUN_DELAY = 1
"""Column: nanoseconds on the core, nanoseconds of waiting for it, time slices."""
_NOTICED_NS = 300_000
_MOST = 0.1
"""A machine that is disturbed more often than that is measured as it is."""

T = TypeVar("T")


class _Counts(NamedTuple):
    """steal: of all cores, in ticks. delay_ns: of this thread. own_ns: computed by the other threads."""

    steal: int
    delay_ns: int
    own_ns: int


class Disturbances:
    """Whether this thread was disturbed since one looked last; never, where the system does not count it."""

    def __init__(self) -> None:
        self._last = _counts()

    def any(self) -> bool:
        """Look."""
        last, now = self._last, _counts()
        self._last = now
        taken_ns = (now.delay_ns - last.delay_ns) - (now.own_ns - last.own_ns)
        return now.steal > last.steal or taken_ns > _NOTICED_NS


class Turns(Generic[T]):
    """What turns gave, and which of them were disturbed.

    Attributes:
        all: whatever disturbed them.
    """

    def __init__(self) -> None:
        self.all: list[T] = []
        self._was_disturbed: list[bool] = []
        self._disturbances = Disturbances()

    def add(self, turn: T) -> None:
        """A turn has ended; what disturbed since the last one did so in it."""
        self.all.append(turn)
        self._was_disturbed.append(self._disturbances.any())

    def forget(self, count: int) -> None:
        """The first `count` turns were only to get warm."""
        del self.all[:count], self._was_disturbed[:count]

    @property
    def num_disturbed(self) -> int:
        """Turns that were disturbed."""
        return sum(self._was_disturbed)

    @property
    def undisturbed(self) -> list[T]:
        """The turns that were not disturbed; all of them where more than a tenth would be left out."""
        if self.num_disturbed > _MOST * len(self.all):
            return self.all
        return [turn for turn, was in zip(self.all, self._was_disturbed, strict=True) if not was]

    def counts(self) -> dict[str, int]:
        """How many turns were disturbed, and how many of these are left out: all of them, or none."""
        return {"num_disturbed": self.num_disturbed, "num_left_out": len(self.all) - len(self.undisturbed)}


def _counts() -> _Counts:
    own_ns = time.process_time_ns() - time.thread_time_ns()
    return _Counts(_column(_STAT, _STEAL), _column(_SCHEDSTAT, _RUN_DELAY), own_ns)


def _column(path: Path, index: int) -> int:
    """A number of a file's first line; 0 where there is none."""
    try:
        with path.open() as file:
            fields = file.readline().split()
    except OSError:
        return 0
    return int(fields[index]) if len(fields) > index else 0
