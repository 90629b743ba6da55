"""Contestants in turn, medians and spread: the one way in which everything here is timed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch


def nothing() -> None:
    """The preparation of a contestant that needs none."""


def no_seconds() -> float:
    """What does not count of a contestant that counts whole."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to time.

    prepare: runs before each turn, outside the time. uncounted: asked after a turn for seconds of it that do not count.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = nothing
    uncounted: Callable[[], float] = no_seconds


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a contestant's turns."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def line(self) -> str:
        """A line of a table: median, least and most."""
        low, high = min(self.seconds), max(self.seconds)
        middle = f"{self.median_s * 1e3:12.2f} ms   ({low * 1e3:.2f} to {high * 1e3:.2f})"
        return f"    {self.name:<44}{middle}   n = {len(self.seconds)}"


def in_turn(
    contestants: Sequence[Contestant], *, rounds: int, warm_up: bool = True, device: torch.device | None = None
) -> dict[str, Timing]:
    """Time contestants in turn, every other round in reverse order; by name.

    Args:
        rounds: turns of each.
        warm_up: whether each runs once before, untimed.
        device: whose queue has to be empty before and after a turn.
    """
    taken: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(-1 if warm_up else 0, rounds):
        for contestant in contestants if number % 2 else reversed(contestants):
            contestant.prepare()
            _wait_for(device)
            began = time.perf_counter()
            contestant.run()
            _wait_for(device)
            if number >= 0:
                taken[contestant.name].append(time.perf_counter() - began - contestant.uncounted())
    return {name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in taken.items()}


def joined(rounds: Iterable[dict[str, Timing]]) -> dict[str, Timing]:
    """All turns of each contestant over several calls of `in_turn`."""
    taken: dict[str, tuple[float, ...]] = {}
    for timings in rounds:
        for name, timing in timings.items():
            taken[name] = taken.get(name, ()) + timing.seconds
    return {name: Timing(name=name, seconds=seconds) for name, seconds in taken.items()}


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


def show(timings: dict[str, Timing]) -> None:
    """The table of some contestants."""
    for timing in timings.values():
        say(timing.line)


def show_ratio(key: str, value: float | None, bound: str) -> None:
    """One result, with what the project asks of it."""
    text = "not measured" if value is None else f"{value:.3g}"
    say(f"  {key:<26}{text:>14}   (asked: {bound})")
    sys.stdout.flush()
