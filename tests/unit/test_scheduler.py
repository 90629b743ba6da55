"""Who goes first, who is preempted, who comes back when: the scheduler alone, step by step, and through the engine."""

from __future__ import annotations

import time

import pytest
import torch
from engine_models import run_all, tiny_engine, tiny_model, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from tolserve.engine.config import EngineConfig
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.prefix import PrefixCache
from tolserve.engine.request import DeadlineError, RequestOutput, SamplingParams
from tolserve.engine.scheduler import Scheduler
from tolserve.engine.sequence import Sequence


class Serving:
    """A scheduler whose steps compute nothing; each gives its sequences a token until they have `max_tokens`."""

    def __init__(
        self, *, num_blocks: int, max_num_seqs: int = 8, max_num_batched_tokens: int = 64, prefix: bool = False
    ):
        config = EngineConfig(
            block_size=4,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=256,
        )
        cache = KVCache(
            num_layers=1,
            num_blocks=num_blocks,
            block_size=4,
            num_kv_heads=1,
            head_dim=1,
            num_rows=max_num_seqs,
            blocks_per_row=64,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.scheduler = Scheduler(config, cache, PrefixCache(cache, b"") if prefix else None)
        self.finished: list[str] = []

    def add(self, name: str, *, prompt: int = 4, output: int = 8, priority: int = 0) -> None:
        params = SamplingParams(max_tokens=output, priority=priority)
        self.scheduler.check_fits(prompt, output)
        first = sum(name.encode())
        self.scheduler.add(Sequence(name, [first + i for i in range(prompt)], params, None))

    def step(self) -> list[str]:
        """Names of those computed."""
        plan = self.scheduler.schedule()
        done = [*plan.decodes, *(chunk.sequence for chunk in plan.chunks if chunk.completes)]
        computed = [*plan.decodes, *(chunk.sequence for chunk in plan.chunks)]
        self.scheduler.advance(plan)
        for sequence in done:
            sequence.tokens.append(sequence.num_output)
            if sequence.num_output == sequence.params.max_tokens:
                self.scheduler.remove(sequence)
                self.finished.append(sequence.request_id)
        return [sequence.request_id for sequence in computed]

    def run(self) -> list[str]:
        """All steps; who finished in what order."""
        while self.scheduler.running or self.scheduler.waiting:
            assert self.step(), "nothing is computed though there is work"
        return self.finished

    @property
    def running(self) -> list[str]:
        return [sequence.request_id for sequence in self.scheduler.running]

    @property
    def waiting(self) -> list[str]:
        return [sequence.request_id for sequence in self.scheduler.waiting]


def test_the_latest_is_preempted_first_and_comes_back_before_newer_ones() -> None:
    serving = Serving(num_blocks=6)
    for name in "abc":
        serving.add(name, prompt=7, output=8)
    serving.step()
    serving.add("d", prompt=7, output=8)
    while serving.running == ["a", "b", "c"]:
        serving.step()
    assert (serving.running, serving.waiting) == (["a", "b"], ["c", "d"])
    assert serving.run() == ["a", "b", "c", "d"]


def test_the_least_urgent_is_preempted_first_though_it_is_older() -> None:
    serving = Serving(num_blocks=6)
    serving.add("a", prompt=7, output=8, priority=5)
    for name in "bc":
        serving.add(name, prompt=7, output=8)
    serving.step()
    while len(serving.running) == 3:
        serving.step()
    assert (serving.running, serving.waiting) == (["b", "c"], ["a"])
    assert serving.run() == ["b", "c", "a"]


def test_more_urgent_requests_go_first_and_equal_ones_as_they_came() -> None:
    serving = Serving(num_blocks=100, max_num_seqs=1)
    for name, priority in (("a", 0), ("b", 2), ("c", -1), ("d", 2), ("e", -1)):
        serving.add(name, priority=priority)
    assert serving.run() == ["c", "e", "a", "b", "d"]


def test_an_urgent_request_takes_the_place_of_less_urgent_ones_only() -> None:
    serving = Serving(num_blocks=100, max_num_seqs=2)
    serving.add("a", priority=1)
    serving.add("b", priority=1)
    serving.step()
    serving.add("c", priority=1)
    assert sorted(serving.step()) == ["a", "b"]
    serving.add("d", priority=0)
    assert sorted(serving.step()) == ["a", "d"]
    assert serving.waiting == ["b", "c"]
    assert serving.run() == ["a", "d", "b", "c"]
    assert serving.scheduler.num_preemptions == 1


def test_nobody_is_preempted_where_that_would_not_give_room() -> None:
    serving = Serving(num_blocks=12)
    serving.add("a", prompt=30, output=8)
    serving.add("b", prompt=4, output=8, priority=1)
    serving.step()
    serving.add("c", prompt=40, output=4)
    serving.step()
    assert (serving.running, serving.waiting) == (["a", "b"], ["c"])
    assert serving.run() == ["a", "c", "b"]


def test_an_urgent_prompt_is_computed_before_the_rest_of_a_long_one() -> None:
    serving = Serving(num_blocks=100, max_num_batched_tokens=16)
    serving.add("a", prompt=100)
    serving.step()
    serving.add("b", prompt=10, priority=-1)
    assert serving.step() == ["b", "a"]


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    serving = Serving(num_blocks=100, max_num_seqs=1, prefix=True)
    serving.add("a", prompt=40, output=8, priority=1)
    serving.step()
    serving.add("b", prompt=4, output=1)
    serving.step()
    serving.step()
    (sequence,) = serving.scheduler.running
    assert (sequence.request_id, sequence.num_computed) == ("a", len(sequence.tokens) - 1)
    assert sequence.num_published == 10
    assert serving.scheduler.prefix is not None and serving.scheduler.prefix.num_hits == 0


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=12
    ),
    num_blocks=st.integers(15, 40),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(5, 40),
    prefix=st.booleans(),
)
def test_all_finish_in_any_mix_and_rank_decides_who_runs(
    requests: list[tuple[int, int, int, int]], num_blocks: int, max_num_seqs: int, budget: int, prefix: bool
) -> None:
    serving = Serving(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, prefix=prefix)
    later = sorted(enumerate(requests), key=lambda one: one[1][3])
    step = 0
    while later or serving.scheduler.running or serving.scheduler.waiting:
        while later and later[0][1][3] <= step:
            index, (prompt, output, priority, _) = later.pop(0)
            serving.add(f"{index}", prompt=prompt, output=output, priority=priority)
        serving.step()
        step += 1
        assert step < 3000
        scheduler = serving.scheduler
        assert scheduler.running == sorted(scheduler.running, key=lambda one: one.rank)
        assert scheduler.waiting == sorted(scheduler.waiting, key=lambda one: one.rank)
        of_a_priority = {one.params.priority for one in scheduler.running}
        for priority in of_a_priority:
            running = [one.arrival for one in scheduler.running if one.params.priority == priority]
            waiting = [one.arrival for one in scheduler.waiting if one.params.priority == priority]
            assert not waiting or max(running) < min(waiting), "a newer request overtook one of its priority"
    assert sorted(serving.finished) == sorted(str(index) for index in range(len(requests)))
    assert serving.scheduler.cache.num_free_blocks == num_blocks


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_preempted_requests_keep_their_outputs_whatever_their_priority(prefix_cache: bool) -> None:
    model = tiny_model("memory")
    requests = {
        str(i): (
            [i + 1] * (3 + i),
            SamplingParams(max_tokens=30, temperature=0.9 * (i % 2), seed=i, ignore_eos=True, priority=-i // 2),
        )
        for i in range(5)
    }
    expected = run_all(tiny_engine(model, prefix_cache=False), requests)
    engine = tiny_engine(model, num_blocks=18, max_num_seqs=3, prefix_cache=prefix_cache)
    outputs: dict[str, list[RequestOutput]] = {name: [] for name in requests}
    for name, (prompt, params) in requests.items():
        engine.add_request(name, prompt, params)
        for output in engine.step() + engine.step():
            outputs[output.request_id].append(output)
    while engine.has_work():
        for output in engine.step():
            outputs[output.request_id].append(output)
    assert engine.stats()["num_preemptions"] > 2
    for name in requests:
        assert token_ids(outputs[name]) == token_ids(expected[name])


def test_a_deadline_ends_its_own_request_and_frees_its_blocks() -> None:
    engine = tiny_engine(tiny_model("base"), max_num_seqs=2)
    long = {"max_tokens": 100, "temperature": 0.0, "ignore_eos": True}
    engine.add_request("running", [1, 2], SamplingParams(**long, deadline_s=0.05))
    engine.add_request("other", [3], SamplingParams(**long, deadline_s=1000.0))
    engine.step()
    engine.add_request("waiting", [4], SamplingParams(**long, deadline_s=1e-3))
    engine.add_request("gone", [5], SamplingParams(**long, deadline_s=1e-3))
    engine.cancel("gone")
    engine.add_request("gone", [5], SamplingParams(**long))
    time.sleep(0.06)
    outputs = {output.request_id: output for output in engine.step()}
    for name, message in (("running", "0.05 s passed after 1 of"), ("waiting", "waited for its turn")):
        assert (outputs[name].finished, outputs[name].finish_reason) == (True, "error")
        assert isinstance(outputs[name].error, DeadlineError)
        assert message in str(outputs[name].error)
    assert not outputs["other"].finished and not outputs["gone"].finished
    assert engine.stats()["num_expired"] == 2
    engine.cancel("other")
    engine.cancel("gone")
    assert engine.stats()["num_free_blocks"] == engine.config.num_blocks
    assert not engine.has_work()


def test_a_deadline_that_is_none_is_refused() -> None:
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="deadline_s"):
            SamplingParams(deadline_s=value)
