"""Several ways to do a thing with one library: the fastest of them competes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tolbuild.bench.measure import Contestant, Timing, in_turn, say


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of a rival. contestant: named after both, so that no two ways have one name."""

    rival: str
    text: str
    contestant: Contestant


@dataclass(kw_only=True)
class Result:
    """Figures of one regime by rival, None for one that is missing; the way that each was measured in."""

    medians_s: dict[str, float | None] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)


def compete(
    ways: Iterable[Way], *, rivals: Sequence[str], trial_rounds: int, rounds: int, warm_up: bool = True
) -> Result:
    """Each rival's ways in a trial, then the best of each in turn with the others.

    Args:
        rivals: names of the result, in order; those without a way are None there.
        trial_rounds: turns of each way of a rival that has several.
        rounds: turns of each rival.
        warm_up: whether each runs once before, untimed, in trial and race.
    """
    by_rival: dict[str, list[Way]] = {}
    for way in ways:
        by_rival.setdefault(way.rival, []).append(way)
    best = {rival: _best(some, trial_rounds, warm_up) for rival, some in by_rival.items()}
    timings = in_turn([way.contestant for way in best.values()], rounds=rounds, warm_up=warm_up)
    result = Result(medians_s=dict.fromkeys(rivals))
    for rival, way in best.items():
        timing = timings[way.contestant.name]
        say(timing.line)
        result.medians_s[rival] = timing.median_s
        result.ways[rival] = way.text
    return result


def _best(ways: Sequence[Way], rounds: int, warm_up: bool) -> Way:
    if len(ways) == 1:
        return ways[0]
    timings = in_turn([way.contestant for way in ways], rounds=rounds, warm_up=warm_up)
    chosen = min(ways, key=lambda way: timings[way.contestant.name].median_s)
    for way in ways:
        say(_trial_line(way, timings[way.contestant.name], is_chosen=way is chosen))
    return chosen


def _trial_line(way: Way, timing: Timing, *, is_chosen: bool) -> str:
    return f"    trial: {way.rival}, {way.text}: {timing.median_s * 1e3:,.2f} ms{' <- its best' if is_chosen else ''}"
