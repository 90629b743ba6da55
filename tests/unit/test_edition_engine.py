"""Engines of two editions as one: requests stay where they began, statistics add up, nothing is dropped in use."""

from __future__ import annotations

import pytest
from scripted_engine import ScriptedEngine

from tolserve.edition_engine import EditionEngine, added
from tolserve.engine.request import RequestOutput, SamplingParams
from tolserve.rollout import Edition

ONE, TWO = Edition(version=1, num_partitions=2), Edition(version=2, num_partitions=2)
PARAMS = SamplingParams(max_tokens=2)


class Engine(ScriptedEngine):
    """One that says which requests it was given, and how many of them wait."""

    def __init__(self, *, num_waiting: int = 0) -> None:
        super().__init__({9: ValueError("never fits")})
        self.given: list[str] = []
        self.num_waiting = num_waiting
        self.closed = False

    def add_request(self, request_id: str, prompt_token_ids: list[int], params: SamplingParams) -> None:
        super().add_request(request_id, prompt_token_ids, params)
        self.given.append(request_id)

    def stats(self) -> dict[str, object]:
        return {**super().stats(), "num_waiting": self.num_waiting, "rows": {"rows_needed": 5}}

    def close(self) -> None:
        self.closed = True


def finish(engine: EditionEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    return outputs


def test_requests_run_on_the_edition_that_they_were_placed_on() -> None:
    first, second = Engine(), Engine()
    both = EditionEngine(ONE, first)
    both.put(TWO, second)
    assert both.place("a", ONE.key) and both.place("b", TWO.key) and not both.place("c", "7/2")
    for name in ("a", "b", "unplaced"):
        both.add_request(name, [1, 2], PARAMS)
    assert (first.given, second.given) == (["a"], ["b", "unplaced"])
    assert {one.request_id for one in finish(both) if one.finished} == {"a", "b", "unplaced"}


def test_an_edition_in_use_is_kept_and_its_counts_outlive_it() -> None:
    first, second = Engine(), Engine()
    both = EditionEngine(ONE, first)
    assert not both.drop(ONE)
    both.put(TWO, second)
    both.place("a", ONE.key)
    assert not both.drop(ONE)
    both.add_request("a", [1, 2], PARAMS)
    assert not both.drop(ONE)
    finish(both)
    assert both.stats()["num_steps"] == 6 and both.stats()["num_blocks"] == 8
    assert both.drop(ONE) and first.closed
    assert both.stats() == {**second.stats(), "num_steps": 6, "rows": {"rows_needed": 10}}


def test_what_cancels_or_is_refused_is_forgotten() -> None:
    first = Engine()
    both = EditionEngine(ONE, first)
    both.put(TWO, Engine())
    both.place("a", ONE.key)
    both.add_request("a", [1], PARAMS)
    both.cancel("a")
    both.cancel("nobody")
    both.place("b", ONE.key)
    with pytest.raises(ValueError, match="never fits"):
        both.add_request("b", [9], PARAMS)
    assert first.cancelled == ["a"] and both.drop(ONE)


def test_the_newer_edition_waits_while_the_older_waits_for_room() -> None:
    first, second = Engine(num_waiting=1), Engine()
    both = EditionEngine(ONE, first)
    both.put(TWO, second)
    both.place("old", ONE.key)
    both.add_request("old", [1, 2], PARAMS)
    for name in ("new", "refused", "cancelled"):
        both.place(name, TWO.key)
        both.add_request(name, [9 if name == "refused" else 1], PARAMS)
    assert second.given == [] and both.stats()["num_waiting"] == 4
    both.cancel("cancelled")
    both.step()
    assert second.given == []
    first.num_waiting = 0
    ends = {one.request_id: one.finish_reason for one in finish(both) if one.finished}
    assert ends == {"old": "length", "new": "length", "refused": "error"}
    assert second.given == ["new"] and both.drop(ONE)


def test_statistics_add_up_by_name() -> None:
    total = added({"a": 1, "b": {"c": 2.0}, "s": "x"}, {"a": 2, "b": {"c": 1.0, "d": 4}, "s": "y", "n": None})
    assert total == {"a": 3, "b": {"c": 3.0, "d": 4}, "s": "y", "n": None}
