"""Rows requested by guess: never another output, their bytes in the bill, nothing held back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_models import (
    NUM_LAYERS,
    local_source,
    mixed_requests,
    run_all,
    staged_source,
    tiny_engine,
    tiny_model,
    token_ids,
)
from row_kit import partition_store

from tolbuild.table.errors import StoreError
from tolserve.engine.early_exit import EarlyExit, exit_segment
from tolserve.engine.request import SamplingParams
from tolserve.engine.segments import plan_segments
from tolserve.memory.cached import CachedSource
from tolserve.memory.local import StoreFetcher
from tolserve.memory.policy import LRU

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


class Oracle(EarlyExit):
    """Guesses the tokens that it is told, one a step, and others that are wrong."""

    def __init__(self, early_exit: EarlyExit, feed: Any, tokens: list[int], wrong: list[int]) -> None:
        self.segment = early_exit.segment
        self._source = feed
        self._tokens = iter(tokens)
        self._wrong = wrong

    def guess(self, x_ND: Any, batch: Any) -> None:
        self._source.guess(np.array([*self._wrong, next(self._tokens)], np.int64))


def cached_source(model: Any, num_slots: int) -> CachedSource:
    local = local_source(model)
    store = partition_store(local.spec, [local.pool(band.index) for band in local.spec.bands])
    fetcher = StoreFetcher(store, tier="remote")
    return CachedSource(fetcher, num_slots=num_slots, policy=LRU(num_slots), num_staging=512)


@pytest.mark.parametrize("kind", ["memory", "flex"])
@pytest.mark.parametrize("num_slots", [4, 60])
def test_tokens_and_their_probabilities_are_the_same(kind: str, num_slots: int) -> None:
    model = tiny_model(kind)
    requests = mixed_requests(8)
    expected = run_all(tiny_engine(model, source=cached_source(model, num_slots)), requests)
    source = cached_source(model, num_slots)
    engine = tiny_engine(model, source=source, speculative_rows=3)
    found = run_all(engine, requests)
    for name in requests:
        assert [output.tokens for output in found[name]] == [output.tokens for output in expected[name]]
    assert engine.stats()["rows"]["rows_guessed"] > 0
    engine.close()
    assert source.num_staged == 0


def test_guesses_that_come_true_are_hits_and_all_are_charged() -> None:
    model = tiny_model("memory")
    expected = token_ids(run_all(tiny_engine(model), {"a": ([1, 2, 3], GREEDY)})["a"])
    source = staged_source(model)
    engine = tiny_engine(model, source=source, speculative_rows=1)
    executor = engine._executor
    wrong = [token for token in range(10, 20) if token not in expected][:2]
    assert executor.early_exit is not None
    executor.early_exit = Oracle(executor.early_exit, executor.feed, expected, wrong)
    outputs = run_all(engine, {"a": ([1, 2, 3], GREEDY)})["a"]
    assert token_ids(outputs) == expected
    bill, row_bytes = outputs[-1].bill, sum(band.row_bytes for band in source.spec.bands)
    assert bill is not None
    assert (bill.rows_needed, bill.rows_guessed) == (3 + 11, 3 * 11)
    assert bill.hits_by_tier == {"remote": 3.0, "guess": 11.0}
    assert bill.bytes_moved == (3 + 33) * row_bytes
    assert engine.stats()["rows"]["guess_bytes"] == 33 * row_bytes
    assert all(set(asked) == {*wrong, token} for asked, token in zip(source.log[1:], expected[:-1], strict=False))
    engine.close()
    source.close()


def test_wrong_guesses_cost_their_bytes_and_are_let_go() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, speculative_rows=1)
    executor = engine._executor
    assert executor.early_exit is not None
    executor.early_exit = Oracle(executor.early_exit, executor.feed, [100] * 20, [99])
    outputs = run_all(engine, {"a": ([1, 2, 3], GREEDY)})["a"]
    assert not {99, 100} & set(token_ids(outputs))
    bill = outputs[-1].bill
    assert bill is not None and bill.rows_guessed == 22.0
    assert bill.hits_by_tier == {"remote": 14.0, "guess": 0.0}
    engine.close()
    source.close()


def test_a_guess_that_fails_fails_nobody() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, speculative_rows=2)
    engine.add_request("a", [1, 2, 3], GREEDY)
    engine.step()
    source.fail = StoreError("no node answered")
    (failed,) = engine.step()
    assert failed.finish_reason == "error"
    source.fail = None
    assert len(token_ids(run_all(engine, {"b": ([4, 5], GREEDY)})["b"])) == 12
    engine.close()
    source.close()


def test_what_is_cached_or_on_its_way_is_not_absent() -> None:
    source = cached_source(tiny_model("memory"), num_slots=2)
    ids = np.arange(6)
    first = source.start(ids[:2])
    assert source.absent(ids).tolist() == [2, 3, 4, 5]
    for band in range(3):
        source.arrive(first, band)
    source.release(first)
    assert source.absent(ids).tolist() == [2, 3, 4, 5]
    dropped = source.start(ids[2:4])
    source.release(dropped)
    assert source.absent(ids).tolist() == [2, 3, 4, 5]


def test_the_exit_is_behind_half_of_the_layers_but_never_the_last_segment() -> None:
    bands = dict(enumerate([0, 0, 1, 1, 2, 2]))
    assert exit_segment(plan_segments(6, bands), 6) == 2, "4 layers are done where the third band is due"
    assert exit_segment(plan_segments(6, dict.fromkeys(range(6), 0)), 6) == 0
    assert exit_segment(plan_segments(6, {4: 2, 5: 2}), 6) == 0


def test_where_no_row_is_brought_there_is_nothing_to_guess() -> None:
    for settings in ({}, {"pinned_bands": 3}):
        with pytest.raises(ValueError, match="speculative_rows is 2"):
            tiny_engine(tiny_model("memory"), speculative_rows=2, **settings)
    with pytest.raises(ValueError, match="speculative_rows is 2"):
        tiny_engine(tiny_model("base"), speculative_rows=2)


def test_more_guesses_than_there_are_tokens() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, speculative_rows=1000)
    with torch.inference_mode():
        outputs = run_all(engine, {"a": ([1], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))})["a"]
    bill = outputs[-1].bill
    assert bill is not None and bill.hits_by_tier["guess"] == 2.0
    assert engine.model.config.num_hidden_layers == NUM_LAYERS
    engine.close()
    source.close()
