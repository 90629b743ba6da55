"""The load generator's arithmetic: options, workloads, figures as vLLM defines them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tolserve.bench.load.client import Outcome
from tolserve.bench.load.config import LoadConfig, parse_goodput
from tolserve.bench.load.run import LoadRun
from tolserve.bench.load.summary import peak_concurrency, peak_tokens_per_s, summarise, table
from tolserve.bench.load.workload import HASH_BLOCK, make_workload, poisson_times

URL = "http://127.0.0.1:1"


def config(**options: Any) -> LoadConfig:
    return LoadConfig(**{"url": URL, "max_concurrency": 2, **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "127.0.0.1"}, "--url"),
        ({"max_concurrency": None}, "give --request-rate"),
        ({"request_rate": 1.0}, "give one of them"),
        ({"max_concurrency": 0}, "--max-concurrency"),
        ({"max_concurrency": None, "request_rate": 0.0}, "--request-rate"),
        ({"num_prompts": 0}, "--num-prompts"),
        ({"dataset": "trace"}, "--dataset-path"),
        ({"dataset": "trace", "dataset_path": Path("t"), "input_len": 3}, "--input-len says nothing"),
        ({"dataset_path": Path("t")}, "--dataset-path says nothing"),
        ({"goodput": ("ttft",)}, "--goodput ttft"),
        ({"goodput": ("itl:3",)}, "--goodput itl:3"),
        ({"goodput": ("ttft:3", "ttft:4")}, "--goodput ttft:4"),
        ({"goodput": ("ttft:-1",)}, "--goodput"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config(**options)


def test_goodput_limits_are_milliseconds() -> None:
    assert parse_goodput(("ttft:200", "tpot:12.5")) == {"ttft": 200, "tpot": 12.5}
    assert config(url=URL + "/v1/").base_url == URL


def test_the_same_seed_gives_the_same_requests_and_times() -> None:
    options = {"max_concurrency": None, "request_rate": 5.0, "num_prompts": 7, "input_len": 9, "output_len": 3}
    first, again = (make_workload(config(**options), 50) for _ in range(2))
    assert first == again != make_workload(config(**options, seed=1), 50)
    assert [ask.at_s for ask in first] == sorted(ask.at_s for ask in first)
    assert all(len(ask.prompt) == 9 and max(ask.prompt) < 50 and ask.max_tokens == 3 for ask in first)


def test_arrivals_have_the_gaps_of_a_poisson_process() -> None:
    times = poisson_times(20.0, 4000, random.Random(1))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)
    assert poisson_times(float("inf"), 3, random.Random(1)) == [0.0] * 3


def test_corpus_prompts_are_pieces_of_text_or_their_tokens(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"the whale number {n} swims on"}) + "\n" for n in range(30)))
    options = {"dataset": "corpus", "dataset_path": path, "input_len": 5, "num_prompts": 4}
    asks = make_workload(config(**options), None)
    assert len(asks) == 4 and all(len(str(ask.prompt).split(" ")) == 5 for ask in asks)
    asks = make_workload(config(**options, tokenizer="builtin:tiny"), None)
    assert all(len(ask.prompt) == 5 and isinstance(ask.prompt[0], int) for ask in asks)
    with pytest.raises(ValueError, match="need more"):
        make_workload(config(**options | {"input_len": 1000}), None)


def test_a_trace_has_lengths_times_and_equal_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 3000, "input_length": HASH_BLOCK + 4, "output_length": 5, "hash_ids": [7, 8]},
        {"timestamp": 1000, "input_length": HASH_BLOCK + 2, "output_length": 6, "hash_ids": [7, 9]},
        {"timestamp": 1500, "prompt": [1, 2], "output_length": 7},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"dataset": "trace", "dataset_path": path, "max_concurrency": None}
    first, second, third = make_workload(config(**options), 100)
    assert [(ask.at_s, ask.max_tokens) for ask in (first, second, third)] == [(0.0, 6), (0.5, 7), (2.0, 5)]
    assert second.prompt == [1, 2] and len(third.prompt) == HASH_BLOCK + 4
    assert first.prompt[:HASH_BLOCK] == third.prompt[:HASH_BLOCK]
    assert first.prompt[HASH_BLOCK:] != third.prompt[HASH_BLOCK:][:2]
    assert all(ask.at_s == 0 for ask in make_workload(config(**options | {"max_concurrency": 3}), 100))
    path.write_text('{"timestamp": 1}\n')
    with pytest.raises(ValueError, match=r"trace.jsonl, line 1: .*output_length|input_length"):
        make_workload(config(**options), 100)


def outcome(start: float, ttft: float, gaps: list[float], **more: Any) -> Outcome:
    usage = {"prompt_tokens": 10, "completion_tokens": len(gaps) + 1, **more}
    return Outcome(start_s=start, ttft_s=ttft, itl_s=gaps, latency_s=ttft + sum(gaps), usage=usage, text="t")


RUN = LoadRun(
    model="m",
    duration_s=4.0,
    outcomes=(
        outcome(0.0, 0.1, [0.1, 0.3], memory_bill={"bytes_moved": 2.0, "hits_by_tier": {"cache": 1.0}}),
        outcome(0.2, 0.3, [], memory_bill={"bytes_moved": 3.0, "hits_by_tier": {"cache": 1.0, "remote": 4.0}}),
        outcome(2.0, 0.2, [0.2], memory_bill=None),
        Outcome(start_s=2.1, lag_s=0.5, error="429: full"),
    ),
)


def test_figures_are_vllms() -> None:
    result = summarise(RUN, config(goodput=("ttft:250", "tpot:200"), memory_bill=True, save_detailed=True))
    expected = {
        "duration": 4.0, "completed": 3, "failed": 1, "total_input_tokens": 30, "total_output_tokens": 6,
        "request_throughput": 0.75, "request_goodput": 0.5, "output_throughput": 1.5, "total_token_throughput": 9.0,
        "max_concurrent_requests": 2, "mean_ttft_ms": 200.0, "median_ttft_ms": 200.0, "mean_tpot_ms": 200.0,
        "mean_itl_ms": 200.0, "p50_itl_ms": 200.0, "p99_itl_ms": 298.0, "mean_e2el_ms": 400.0,
    }  # fmt: skip
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    assert result["std_ttft_ms"] == pytest.approx(81.6497, abs=1e-3)
    assert result["errors_by_reason"] == {"429: full": 1} and result["errors"] == ["", "", "", "429: full"]
    assert result["memory_bill"] == {"bytes_moved": 5.0, "hits_by_tier": {"cache": 2.0, "remote": 4.0}}
    assert result["output_lens"] == [3, 1, 2, 0]
    assert json.loads(json.dumps(result)) == result
    text = table(result)
    assert "3 requests answered by m, 1 failed" in text and "1 failed with 429: full" in text


def test_without_limits_there_is_no_goodput_and_without_answers_no_fault() -> None:
    lost = LoadRun(model="m", duration_s=1.0, outcomes=(Outcome(error="x"),))
    result = summarise(lost, config())
    assert result["request_goodput"] is None and result["completed"] == 0 and result["mean_ttft_ms"] == 0
    assert "errors" not in result and table(result)


def test_peaks() -> None:
    one_after_another = [outcome(0.0, 1.0, []), outcome(1.0, 0.5, [0.25])]
    assert peak_concurrency(one_after_another) == 1
    assert peak_tokens_per_s(one_after_another) == 3
    assert peak_tokens_per_s([]) == 0
