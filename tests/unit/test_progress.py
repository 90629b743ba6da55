"""What a build says while nothing ends: that time passes, and what it waits for."""

from __future__ import annotations

import io

import pytest

from tolbuild.build_config import BuildConfig
from tolbuild.config import ModelConfig
from tolbuild.drive import progress
from tolbuild.drive.pool import Event
from tolbuild.drive.progress import Progress
from tolbuild.drive.voice import Voice
from tolbuild.grid import Cell
from tolbuild.plan import make_plan


class Idle:
    """A pool whose workers do not start for a while."""

    num_workers = 2

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def free(self) -> list[str]:
        return []

    def submit(self, worker: str, cell: Cell) -> None:
        raise AssertionError("nobody is free")

    def wait(self, timeout_s: float) -> list[Event]:
        return []

    def waits_for(self) -> str:
        return self.reason

    def close(self, *, stopped: bool) -> None:
        pass


@pytest.fixture
def plan_progress() -> Progress:
    model = ModelConfig(
        kind="memory",
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=96,
    )
    plan = make_plan(BuildConfig(checkpoint="c", table="t"), model, "f")
    return Progress(plan, plan.shard_cells(), spools=False, voice=Voice(stream=io.StringIO()))


def said(progress: Progress) -> list[str]:
    stream = progress._voice.stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue().splitlines()


def test_a_long_cell_ticks_in_a_log(plan_progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_progress.start(Idle(""))
    plan_progress.tick()
    assert said(plan_progress) == []
    monkeypatch.setattr(progress, "QUIET_LINE_EVERY_S", 0.0)
    plan_progress.start(Idle(""))
    plan_progress.tick()
    plan_progress.tick()
    assert len(said(plan_progress)) == 2
    assert said(plan_progress)[0].startswith("-  codes 0/1") and " after 0.0 s" in said(plan_progress)[0]


def test_what_a_build_waits_for_is_said_once_in_a_while(
    plan_progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WAITING_AFTER_S", 0.0)
    pool = Idle("2 workers wanted")
    plan_progress.start(pool)
    plan_progress.tick()
    plan_progress.tick()
    assert said(plan_progress) == ["no worker is ready after 0.0 s: 2 workers wanted"]
    pool.reason = ""
    plan_progress.tick()
    assert len(said(plan_progress)) == 1
