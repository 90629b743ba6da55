"""The order of cells: dependencies hold, nothing is lost, and a dead worker's cells come back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tolbuild.build_config import BuildConfig
from tolbuild.config import ModelConfig
from tolbuild.drive.pool import free_slots
from tolbuild.drive.schedule import MAX_ATTEMPTS, Schedule
from tolbuild.grid import FitCell, RanksCell, ShardCell, SumCell
from tolbuild.plan import Plan, make_plan


def make(vocab_size: int = 1000, layers: int = 3, **options: object) -> Plan:
    model = ModelConfig(
        kind="memory",
        vocab_size=vocab_size,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
    )
    config = BuildConfig(checkpoint="c", table="t", **{"shard_rows": 128, "layers_per_band": 2, **options})  # type: ignore[arg-type]
    return make_plan(config, model, "f" * 64)


@settings(max_examples=60, deadline=None)
@given(
    vocab_size=st.integers(1, 3000),
    layers=st.integers(1, 5),
    rank=st.sampled_from(["full", 8, "energy:0.9"]),
    codes=st.sampled_from(["fp32", "fp16", "int8"]),
    workers=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_every_cell_runs_once_after_what_it_needs(
    vocab_size: int, layers: int, rank: object, codes: str, workers: int, seed: int
) -> None:
    plan = make(vocab_size, layers, rank=rank, codes=codes)
    schedule, chance, finished, running = Schedule(plan), random.Random(seed), [], []
    while schedule.num_left:
        while (cell := schedule.take(f"w{chance.randrange(workers)}")) and len(running) < workers:
            assert set(plan.needs(cell)) <= set(finished)
            running.append(cell)
        if cell is not None:
            running.append(cell)
        done = running.pop(chance.randrange(len(running)))
        schedule.finish(done)
        finished.append(done)
    every = (*plan.sum_cells(), *plan.fit_cells(), *plan.ranks_cells(), *plan.scale_cells(), *plan.shard_cells())
    assert sorted(map(str, finished)) == sorted(map(str, every))


def test_finished_cells_are_not_given_again() -> None:
    plan = make(rank=8)
    done = (SumCell(0, 0), ShardCell(0, 1))
    assert not set(done) & set(Schedule(plan, done).total)


def test_sums_whose_fit_is_done_are_not_needed() -> None:
    plan = make(rank=8)
    assert SumCell(1, 0) not in Schedule(plan, [FitCell(1)]).total


def test_no_codes_before_the_ranks_of_all_layers_are_known() -> None:
    plan = make(rank="energy:0.9", layers_per_band=1)
    fits = [FitCell(layer) for layer in range(3)]
    schedule = Schedule(plan, fits)
    assert schedule.take("a") == RanksCell() and schedule.take("b") is None
    schedule.finish(RanksCell())
    assert isinstance(schedule.take("b"), ShardCell)
    assert RanksCell() not in Schedule(plan, [*fits, RanksCell()]).total


def test_codes_are_made_before_more_sums_so_that_the_spool_stays_small() -> None:
    plan = make(rank=8, layers_per_band=1)
    done = [SumCell(0, s) for s in range(len(plan.segments))]
    schedule = Schedule(plan, done)
    assert schedule.take("a") == FitCell(0)
    schedule.finish(FitCell(0))
    assert schedule.take("a") == ShardCell(0, 0)


def test_workers_spread_over_layers_and_stay_there() -> None:
    schedule = Schedule(make(rank=8))
    first = [schedule.take(worker) for worker in ("a", "b")]
    assert first == [SumCell(0, 0), SumCell(1, 0)]
    assert [schedule.take(worker) for worker in ("a", "b")] == [SumCell(0, 1), SumCell(1, 1)]


def test_a_lost_workers_cells_come_back_to_others() -> None:
    schedule = Schedule(make())
    cell = schedule.take("a")
    assert schedule.lose("a") == [cell]
    assert schedule.take("b") == cell


def test_a_cell_that_kills_its_workers_is_given_up() -> None:
    schedule = Schedule(make(vocab_size=64, layers=1))
    for _ in range(MAX_ATTEMPTS - 1):
        assert schedule.take("a")
        schedule.lose("a")
    schedule.take("a")
    with pytest.raises(RuntimeError, match="band-000-shard-00000 has lost its worker"):
        schedule.lose("a")


def test_free_slots_fill_idle_workers_first() -> None:
    assert free_slots(["a", "b"], ["a"]) == ["b", "a", "b"]
    assert free_slots(["a"], ["a", "a"]) == []
