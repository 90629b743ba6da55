"""Reuse of prompt prefixes: the same tokens with and without, no rows for what is reused, and no wrong reuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from engine_models import (
    VOCAB_SIZE,
    mixed_requests,
    run_all,
    staged_source,
    tiny_engine,
    tiny_model,
    token_ids,
)

from tolserve.engine.engine import Engine
from tolserve.engine.prefix import prefix_root
from tolserve.engine.request import SamplingParams
from tolserve.engine.sequence import Sequence
from tolserve.memory.spec import RowSpec

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPT = list(range(20))
Requests = dict[str, tuple[list[int], SamplingParams]]


def hits(engine: Engine) -> int:
    return engine.stats()["prefix_cache"]["num_hits"]  # type: ignore[no-any-return]


def shared_requests(count: int, *, seed: int) -> Requests:
    """Ragged prompts that begin with pieces of three texts; greedy and seeded sampling in turn."""
    draw = np.random.default_rng(seed)
    texts = draw.integers(0, VOCAB_SIZE, (3, 40))
    requests = {}
    for index in range(count):
        head = texts[draw.integers(3), : draw.integers(0, 41)].tolist()
        tail = draw.integers(0, VOCAB_SIZE, draw.integers(1, 12)).tolist()
        params = SamplingParams(
            max_tokens=int(draw.integers(1, 20)),
            temperature=0.0 if index % 2 else 0.8,
            seed=index,
            logprobs=1,
            ignore_eos=True,
        )
        requests[str(index)] = head + tail, params
    return requests


@pytest.mark.parametrize(("kind", "num_blocks"), [("base", 40), ("memory", 200), ("flex", 40)])
def test_tokens_are_the_same_with_and_without(kind: str, num_blocks: int) -> None:
    model = tiny_model(kind)
    settings: dict[str, Any] = {"num_blocks": num_blocks, "max_num_seqs": 5, "max_num_batched_tokens": 24}
    plain = tiny_engine(model, prefix_cache=False, **settings)
    engine = tiny_engine(model, **settings)
    for seed in range(2):
        requests = shared_requests(12, seed=seed)
        expected, found = run_all(plain, requests), run_all(engine, requests)
        for name in requests:
            assert token_ids(found[name]) == token_ids(expected[name])
            for one, other in zip(found[name], expected[name], strict=True):
                assert one.tokens[0].logprob == pytest.approx(other.tokens[0].logprob, abs=1e-4)
    assert hits(engine) > 100
    assert "prefix_cache" not in plain.stats()
    assert engine.stats()["num_free_blocks"] == num_blocks


def test_no_rows_are_fetched_for_reused_blocks() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source)
    first = run_all(engine, {"a": (PROMPT, GREEDY)})["a"][-1]
    source.log.clear()
    second = run_all(engine, {"b": ([*PROMPT[:18], 90, 91], GREEDY)})["b"][-1]
    assert first.bill is not None and second.bill is not None
    assert (first.num_reused, first.bill.rows_needed) == (0, 27)
    assert (second.num_reused, second.bill.rows_needed) == (16, 4 + 7)
    assert source.log[0] == [16, 17, 90, 91]
    assert not set(range(16)) & {token for ids in source.log for token in ids} - set(token_ids([second]))
    engine.close()
    source.close()


def test_rows_are_not_requested_ahead_for_what_a_waiting_request_will_reuse() -> None:
    model = tiny_model("memory")
    source = staged_source(model)
    engine = tiny_engine(model, source=source, max_num_batched_tokens=8, max_num_seqs=2)
    run_all(engine, {"a": (PROMPT, GREEDY)})
    source.log.clear()
    engine.add_request("b", list(range(50, 58)), GREEDY)
    engine.add_request("c", [*PROMPT[:16], 95], GREEDY)
    engine.step()
    assert source.log[:2] == [list(range(50, 58)), [95]]


def test_the_whole_of_a_prompt_is_never_reused() -> None:
    engine = tiny_engine(tiny_model("base"))
    first = run_all(engine, {"a": (PROMPT[:16], GREEDY)})["a"]
    again = run_all(engine, {"a": (PROMPT[:16], GREEDY)})["a"]
    assert again[-1].num_reused == 12
    assert token_ids(again) == token_ids(first)


def test_outputs_are_reused_by_the_next_turn() -> None:
    engine = tiny_engine(tiny_model("base"))
    answer = token_ids(run_all(engine, {"a": (PROMPT, GREEDY)})["a"])
    second = run_all(engine, {"b": (PROMPT + answer + [7, 8], GREEDY)})["b"]
    assert second[-1].num_reused == 24, "the last sampled token's keys and values were never computed"


def test_prompt_log_probabilities_reuse_nothing_and_are_all_there() -> None:
    model = tiny_model("memory")
    engine, plain = tiny_engine(model), tiny_engine(model, prefix_cache=False)
    for seed in (0, 1):
        requests = mixed_requests(6, seed=0)
        found, expected = run_all(engine, requests), run_all(plain, requests)
        for name, (prompt, _) in requests.items():
            scores, others = found[name][0].prompt_logprobs, expected[name][0].prompt_logprobs
            assert scores is not None and others is not None and len(scores) == len(prompt)
            assert [one and one.token_id for one in scores] == [one and one.token_id for one in others]
            assert found[name][-1].num_reused == 0, f"round {seed}"
    assert engine.stats()["prefix_cache"] == {"num_queries": 0, "num_hits": 0}


def test_requests_given_at_once_share_what_an_earlier_step_computed() -> None:
    engine = tiny_engine(tiny_model("base"), max_num_seqs=2)
    requests = {str(i): ([*PROMPT, 30 + i], GREEDY) for i in range(6)}
    outputs = run_all(engine, requests)
    assert [outputs[name][-1].num_reused for name in requests] == [0, 0, 20, 20, 20, 20]


def test_a_changed_root_finds_nothing() -> None:
    engine = tiny_engine(tiny_model("base"))
    prefix = engine._scheduler.prefix
    assert prefix is not None
    for root, expected in ((prefix.root, 0), (prefix.root, 16), (b"another", 0), (b"another", 16)):
        prefix.root = root
        assert run_all(engine, {"a": (PROMPT, GREEDY)})["a"][-1].num_reused == expected


def test_a_request_that_waited_for_another_root_is_named_anew() -> None:
    engine = tiny_engine(tiny_model("base"))
    prefix = engine._scheduler.prefix
    assert prefix is not None
    run_all(engine, {"a": (PROMPT, GREEDY)})
    waiting = Sequence("b", PROMPT, GREEDY, None)
    assert len(prefix.match(waiting)) == 4
    prefix.root = b"another"
    assert prefix.match(waiting) == []


def test_the_root_has_all_that_keys_and_values_depend_on() -> None:
    model = tiny_model("memory")

    def spec(identity: int, rank: int = 48) -> RowSpec:
        return RowSpec.uniform(
            num_layers=5,
            layers_per_band=2,
            rank=rank,
            dtype="float32",
            vocab_size=VOCAB_SIZE,
            identity=bytes([identity] * 16),
        )

    def root(spec: RowSpec | None, **settings: Any) -> bytes:
        return prefix_root(model.config, tiny_engine(model, **settings).config, spec)

    roots = [
        root(None),
        root(spec(1)),
        root(spec(2)),
        root(spec(1, rank=8)),
        root(spec(1), alpha=0.9),
        root(spec(1), drop_layers=(2,)),
        root(spec(1), block_size=8),
    ]
    assert len(set(roots)) == len(roots)
    assert root(spec(1), pinned_bands=1, max_num_seqs=4) == roots[1]


def test_blocks_are_given_to_new_requests_when_none_is_blank() -> None:
    engine = tiny_engine(tiny_model("base"), num_blocks=16)
    for start in range(0, 60, 20):
        run_all(engine, {"a": (list(range(start, start + 20)), GREEDY)})
    assert engine.stats()["num_free_blocks"] == 16
    assert run_all(engine, {"a": (list(range(40, 60)), GREEDY)})["a"][-1].num_reused == 16
    assert run_all(engine, {"a": (PROMPT, GREEDY)})["a"][-1].num_reused == 4, "of the oldest, the end had to go"
