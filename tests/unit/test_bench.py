"""The bench's own arithmetic; what it measures is not asserted anywhere."""

from __future__ import annotations

import torch

from tolbuild.bench.measure import Contestant, Timing, in_turn, joined
from tolbuild.bench.products import best_rate, square_products


def test_contestants_take_turns_and_every_other_round_is_reversed() -> None:
    seen: list[str] = []
    contestants = [Contestant(name=name, run=lambda name=name: seen.append(name)) for name in "ab"]
    timings = in_turn(contestants, rounds=4)
    assert "".join(seen) == "ab" + "ba" + "ab" + "ba" + "ab"
    assert [len(timings[name].seconds) for name in "ab"] == [4, 4]


def test_preparation_comes_before_every_turn_and_what_does_not_count_is_taken_off() -> None:
    seen: list[str] = []
    contestant = Contestant(
        name="x", run=lambda: seen.append("run"), prepare=lambda: seen.append("prepare"), uncounted=lambda: 100.0
    )
    (timing,) = in_turn([contestant], rounds=2, warm_up=False).values()
    assert seen == ["prepare", "run"] * 2
    assert all(seconds < -90 for seconds in timing.seconds)


def test_rounds_are_joined_by_name_and_the_median_is_the_middle() -> None:
    first, second = ({"x": Timing(name="x", seconds=seconds)} for seconds in ((3.0,), (1.0, 2.0)))
    timing = joined([first, second])["x"]
    assert timing.seconds == (3.0, 1.0, 2.0) and timing.median_s == 2.0


def test_the_best_product_is_the_one_with_the_highest_rate() -> None:
    small, large = square_products(torch.float32, torch.device("cpu"), (4, 8))
    timings = {c.name: Timing(name=c.name, seconds=(s,)) for c, s in ((small, 1.0), (large, 4.0))}
    assert best_rate(timings, torch.float32, (4, 8)) == 2 * 8**3 / 4.0
